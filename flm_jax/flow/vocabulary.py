"""Functions of arrays (..., V) along their last axis, the vocabulary.

They are given a chunk of tokens at a time (`flow/chunks.py`): arrays of that size exist for a few
tokens only.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from flm_jax.flow.head import on_last_axis

SAFE_BOUND = 35.0  # exp(2 * 35) times any vocabulary is a float32, and so is exp(-35)


def softmax_parts(logits: jax.Array, bound: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A shift m (..., 1), exp(logits - m), and the sum of these (..., 1).

    m is the largest logit, so that no exponential overflows. Logits within a small ``bound``
    cannot, and their m is 0: that saves a pass over the vocabulary.
    """
    if bound <= SAFE_BOUND:
        top = jnp.zeros_like(logits[..., :1])
    else:
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weight = jnp.exp(logits - top)
    return top, weight, jnp.sum(weight, axis=-1, keepdims=True)


def first_largest(values: jax.Array) -> jax.Array:
    """Index of the largest entry (..., V), of the first if several are equal; int32, V < 2**24.

    Two maxima of float32, because XLA's arg max carries pairs through one scalar loop: on a CPU it
    takes four times as long. A row with NaN gives V - 1.
    """
    size = values.shape[-1]
    largest = jnp.max(values, axis=-1, keepdims=True)
    from_the_end = on_last_axis(jnp.arange(size - 1, -1, -1, dtype=jnp.float32), values.ndim)
    last = jnp.max(jnp.where(values == largest, from_the_end, 0.0), axis=-1)
    return size - 1 - last.astype(jnp.int32)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """-inf outside the smallest set of entries (..., V) whose probability reaches ``top_p``."""
    descending = jnp.sort(logits, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(descending), axis=-1)
    kept = jnp.sum(mass < top_p, axis=-1, keepdims=True) + 1
    kept = jnp.minimum(kept, logits.shape[-1])
    threshold = jnp.take_along_axis(descending, kept - 1, axis=-1)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def entmax(scores: jax.Array, alpha: float) -> jax.Array:
    """alpha-entmax over the last axis: argmax_p <p, scores> + Tsallis entropy, 1 < alpha <= 2.

    p = max((alpha - 1) * scores - threshold, 0) ** (1 / (alpha - 1)), the threshold found by
    bisection (Peters et al. 2019, eq. 9) and p normalised at the end. Powers other than those of
    alpha 1.5 and 2 take more than ten times as long.
    """
    iterations = jnp.finfo(scores.dtype).nmant + 7  # then both bounds are the same number
    # Below the largest score, so that large scores do not cost the threshold its digits.
    scaled = (alpha - 1.0) * (scores - jnp.max(scores, axis=-1, keepdims=True))
    top = jnp.zeros_like(scaled[..., :1])
    low, high = top - 1.0, top - scores.shape[-1] ** (1.0 - alpha)
    power = 1.0 / (alpha - 1.0)
    power = int(power) if power.is_integer() else power  # alpha 1.5 and 2: an exact product

    def weights(threshold):
        return jnp.maximum(scaled - threshold, 0.0) ** power

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        too_low = jnp.sum(weights(middle), axis=-1, keepdims=True) >= 1.0
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, iterations, halve, (low, high))
    p = weights(0.5 * (low + high))
    return p / jnp.sum(p, axis=-1, keepdims=True)


def side_by_side(arrays: Iterable[jax.Array]) -> jax.Array:
    """[a1 a2 ...] along the last axis."""
    return jnp.concatenate(list(arrays), axis=-1)


def products(x: jax.Array, tables: Iterable[jax.Array]) -> jax.Array:
    """x (..., V) @ [T1 T2 ...]: the tables may be large, so their results are joined instead."""
    return side_by_side(jnp.matmul(x, table) for table in tables)
