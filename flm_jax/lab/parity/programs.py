"""How losses and samplers are compiled here: in pieces that cases share, or each as one program.

Compiling takes most of the time of a run. Cases differ in options, but the expensive parts (the
network, the sums over the vocabulary, the factor of the noise) are the same in many. So a function
runs operation by operation, with those parts compiled once for all. `whole` makes one program of
each function instead, as training and generation do.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.flow import noise
from flm_jax.flow.combination import Combination
from flm_jax.flow.logits import LazyLogits
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.trees import Tree
from flm_jax.samplers import loops

_one_program = False  # what `whole` sets


@contextlib.contextmanager
def whole(on: bool = True) -> Iterator[None]:
    """Inside, functions that are `compiled` are one program each."""
    global _one_program
    before, _one_program = _one_program, on
    try:
        yield
    finally:
        _one_program = before


def compiled(static_argnames: tuple[str, ...]) -> Callable[[Callable], Callable]:
    """Decorator: the function in compiled pieces, or all of it compiled inside `whole`."""

    def decorate(function: Callable) -> Callable:
        program = jax.jit(function, static_argnames=static_argnames)

        @functools.wraps(function)
        def call(*given: Any, **options: Any) -> Any:
            if _one_program:
                return program(*given, **options)
            with contextlib.ExitStack() as stack:
                for owner, name, make in PIECES:
                    right = getattr(owner, name)
                    stack.callback(setattr, owner, name, right)
                    setattr(owner, name, make(right))
                return function(*given, **options)

        return call

    return decorate


def one_by_one(
    step: Callable[[Tree, jax.Array], tuple[Tree, Tree]], state: Tree, steps: int
) -> tuple[Tree, Tree]:
    """`samplers.loops.loop` as a loop of Python: a `lax.scan` would be one more large program."""
    if steps == 0:
        _, one = jax.eval_shape(step, state, jnp.asarray(0, jnp.int32))
        return state, jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), one)
    seen = []
    for i in range(steps):
        state, one = step(state, jnp.asarray(i, jnp.int32))
        seen.append(one)
    return state, jax.tree.map(lambda *every: jnp.stack(every), *seen)


def at_once(which: jax.Array, yes: Callable, no: Callable, *given: Tree) -> Tree:
    """`samplers.loops.either` as Python's if: a `lax.cond` would compile both sides every time."""
    return yes(*given) if which else no(*given)


@functools.cache
def for_each_jitter(function: Callable) -> Callable:
    """The function compiled, once more where `objective.jitter` has changed what it reads."""
    program = jax.jit(lambda jitter, *given: function(*given), static_argnums=0)
    return lambda *given: program(noise.JITTER, *given)


@functools.cache
def by_itself(function: Callable) -> Callable:
    """The function compiled; the same object every time, so that it is compiled once."""
    return jax.jit(function)


# Where a part is found, its name, and what is made of it while a function runs in pieces. The
# networks and the clock are compiled as parts anyway.
PIECES = (
    (LazyLogits, "loss", by_itself),
    (Posterior, "argmax", by_itself),
    (Combination, "mean", by_itself),
    (Combination, "dense", by_itself),
    (Combination, "argmax", by_itself),
    (noise, "cholesky_factor", for_each_jitter),
    (noise, "project_noise", for_each_jitter),
    (Posterior, "most_likely", by_itself),
    (loops, "loop", lambda scan: one_by_one),
    (loops, "either", lambda cond: at_once),
)
