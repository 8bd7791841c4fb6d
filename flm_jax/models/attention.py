"""Attention, bidirectional or causal, with rotary positions and a soft cap on the scores.

The plain einsum form: every derivative works through it, forward mode included, and it is the
oracle for faster kernels.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROTARY_BASE = 10_000.0


def rotary_frequencies(head_width: int) -> np.ndarray:
    """base ** (-2 i / head_width) for every pair i, float32 (head_width / 2,).

    Rounded to float32 at each step like the buffer in official checkpoints, so that float64 runs
    of both agree, and angles at far positions agree in float32.
    """
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    wavelengths = (ROTARY_BASE ** exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / wavelengths


def rotary_tables(length: int, head_width: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position times frequency, (L, head_width / 2)."""
    frequency = jnp.asarray(rotary_frequencies(head_width), dtype)
    angle = jnp.arange(length, dtype=dtype)[:, None] * frequency[None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions on half-split pairs: (a, b) -> (a cos - b sin, a sin + b cos)."""
    cos, sin = cos[None, :, None, :], sin[None, :, None, :]
    a, b = jnp.split(x_BLHK.astype(jnp.promote_types(x_BLHK.dtype, jnp.float32)), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x_BLHK.dtype)


def attend(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    cap: float,
    visible_LM: jax.Array | None = None,
) -> jax.Array:
    """softmax(cap * tanh(q k' / sqrt(K) / cap)) v, (B, L, H, K); ``cap`` 0 means no cap.

    Scores and softmax are in at least float32; the products read the type of the inputs.
    ``visible_LM`` says which keys a query may see (all of them without it).
    """
    wide = jnp.promote_types(q_BLHK.dtype, jnp.float32)
    scale = q_BLHK.shape[-1] ** -0.5
    scores = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BMHK, preferred_element_type=wide) * scale
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    if visible_LM is not None:
        scores = jnp.where(visible_LM[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BMHK.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", weights, v_BMHK)
