"""What a program computes, read from its jaxpr."""

from collections.abc import Iterator

import jax
import numpy as np


def equations(jaxpr) -> Iterator:
    """All equations of a jaxpr, of inner ones, too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def most_vectors(jaxpr, vocab_size: int) -> int:
    """The most vectors over the vocabulary that any array has, in a jaxpr and those inside it."""
    most = 0
    for equation in equations(jaxpr):
        for variable in (*equation.invars, *equation.outvars):
            size = int(np.prod(getattr(variable.aval, "shape", ())))
            if size and size % vocab_size == 0:
                most = max(most, size // vocab_size)
    return most
