"""Whether products in bfloat16 are worth it here, which is what `model.dtype=auto` asks.

TPUs and GPUs have units for them. Among CPUs only some do: on the others a product in bfloat16 is
slower than one in float32, so that it is timed.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax import target

FROM = 1.5  # times as fast as float32: below, what the rest of a step costs more eats the gain
SECONDS = 0.05
ROWS, INNER, COLUMNS = 512, 256, 1024  # as in a block of a small model


@dataclasses.dataclass(frozen=True)
class Choice:
    """A type for `model.dtype`, and why in words."""

    dtype: str
    why: str


@functools.cache
def speedup() -> float:
    """How many times as fast a product of bfloat16 operands is, its result float32; timed once."""

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.matmul(a, b, preferred_element_type=jnp.float32)

    calls: dict[str, Callable[[], jax.Array]] = {}
    for dtype in ("float32", "bfloat16"):
        a, b = jnp.ones((ROWS, INNER), dtype), jnp.ones((INNER, COLUMNS), dtype)
        calls[dtype] = functools.partial(jax.jit(product).lower(a, b).compile(), a, b)
        calls[dtype]().block_until_ready()
    best = dict.fromkeys(calls, float("inf"))
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:  # in turn: other load slows both
        for dtype, call in calls.items():
            start = time.perf_counter()
            call().block_until_ready()
            best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best["float32"] / best["bfloat16"]


def choose() -> Choice:
    """bfloat16 on TPUs, GPUs and CPUs that are at least `FROM` times as fast with it."""
    chips = target.current()
    if chips.form == "accelerator":
        return Choice("bfloat16", f"this is a {chips.platform.upper()}")
    ratio = speedup()
    dtype = "bfloat16" if ratio >= FROM else "float32"
    return Choice(dtype, f"bfloat16 products are {ratio:.2g} times as fast as float32 ones here")


def settled(dtype: str) -> str:
    """The type that ``dtype``, perhaps "auto", means on the devices of this process."""
    return choose().dtype if dtype == "auto" else dtype
