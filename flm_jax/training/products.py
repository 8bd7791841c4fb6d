"""FLOPs of matrix products, counted in a traced program: what the formulas are checked against.

XLA's own count takes the body of a loop once. Here a scan counts as often as it runs, of the
branches of a condition the cheapest one (the fused head's usual one), and a loop without a known
number of rounds (the retries of a Cholesky factor) not at all.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def products(function: Callable[..., Any], arguments: tuple) -> float:
    """FLOPs of all matrix products of ``function(*arguments)`` whose results are used."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _count(partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Any) -> float:
    return sum(_operation(eqn) for eqn in jaxpr.eqns)


def _operation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * inner * math.prod(eqn.outvars[0].aval.shape)
    if name == "while":
        return 0.0
    if name == "cond":
        return min(_count(branch.jaxpr) for branch in params["branches"])
    inside = sum(_count(getattr(p, "jaxpr", p)) for p in params.values() if _is_program(p))
    return inside * (params["length"] if name == "scan" else 1)


def _is_program(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
