"""Attention, bidirectional or causal, with rotary positions and a soft cap on the scores.

Four forms of the same function behind `attend`:

    einsum    all scores at once; the reference that the others are tested against
    chunked   the scores of a block of queries at a time, again in the backward pass: memory
              O(block * L) instead of O(L * L), the arithmetic of the reference row by row
    splash    JAX's kernel for TPUs (`models/splash.py`); no forward-mode derivative
    tokamax   a kernel of that library (`models/kernels.py`); no forward-mode derivative

The first two are ordinary JAX: every derivative works through them, forward mode included.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flm_jax.models import kernels, splash
from flm_jax.models.products import device_kind

ROTARY_BASE = 10_000.0


def rotary_frequencies(head_width: int) -> np.ndarray:
    """base ** (-2 i / head_width) for every pair i, float32 (head_width / 2,).

    Rounded to float32 at each step like the buffer in official checkpoints, so that float64 runs
    of both agree, and angles at far positions agree in float32.
    """
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / np.float32(head_width)
    wavelengths = (ROTARY_BASE ** exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1.0) / wavelengths


def rotary_tables(length: int, head_width: int, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position times frequency, (L, head_width / 2)."""
    frequency = jnp.asarray(rotary_frequencies(head_width), dtype)
    angle = jnp.arange(length, dtype=dtype)[:, None] * frequency[None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BLHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions on half-split pairs: (a, b) -> (a cos - b sin, a sin + b cos)."""
    wide_BLHK = x_BLHK.astype(jnp.promote_types(x_BLHK.dtype, jnp.float32))
    if device_kind() == "cpu":  # where concatenations of computed halves are slow
        halves = wide_BLHK.reshape(*x_BLHK.shape[:-1], 2, -1)
        cos, sin = (jnp.stack(pair, axis=1)[None, :, None] for pair in ((cos, cos), (-sin, sin)))
        turned = (halves * cos + jnp.flip(halves, axis=-2) * sin).reshape(x_BLHK.shape)
    else:
        cos, sin = cos[None, :, None, :], sin[None, :, None, :]
        a, b = jnp.split(wide_BLHK, 2, axis=-1)
        turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.astype(x_BLHK.dtype)


# Queries whose scores exist at one time in "chunked".
QUERY_BLOCK = 128
# Scores of a rematerialised block's gradient are 4.5 H L floats per token and everything else there
# 30 H K (flm_jax/lab/plan/memory.py): beyond so many head widths they are most of the memory.
LONG = 7


def attend(
    q_BLHK: jax.Array,
    k_BMHK: jax.Array,
    v_BMHK: jax.Array,
    cap: float,
    visible_LM: jax.Array | None = None,
    backend: str = "auto",
    *,
    causal: bool = False,
    share: splash.Share | None = None,
) -> jax.Array:
    """softmax(cap * tanh(q k' / sqrt(K) / cap)) v, (B, L, H, K); ``cap`` 0 means no cap.

    Scores and softmax are in at least float32; the products read the type of the inputs.
    ``visible_LM`` says which keys a query may see (all of them without it); with ``causal`` only
    those at its own and earlier positions. ``backend`` is a form from the top of this file, or
    "auto": "chunked" where sequences are long (`is_long`), else "einsum". That is taken, too, where
    "splash" has no kernel. ``share`` divides a kernel over devices (None: there is one).
    """
    length, head_width = q_BLHK.shape[1], q_BLHK.shape[3]
    if backend == "splash":
        if visible_LM is None and splash.fits(q_BLHK.shape, share):
            form = functools.partial(splash.attend, cap=cap, causal=causal)
            return share(form, q_BLHK, k_BMHK, v_BMHK) if share else form(q_BLHK, k_BMHK, v_BMHK)
        backend = "auto"
    if backend == "auto":
        backend = "chunked" if is_long(length, head_width) else "einsum"
    if backend == "einsum":
        return einsum(q_BLHK, k_BMHK, v_BMHK, cap, visible_LM, causal)
    if backend == "chunked":
        return chunked(q_BLHK, k_BMHK, v_BMHK, cap, visible_LM, causal)
    return kernels.tokamax(q_BLHK, k_BMHK, v_BMHK, cap, visible_LM, causal)


def attend_once(
    q_B1HK: jax.Array,
    k_B1HK: jax.Array,
    v_B1HK: jax.Array,
    cache: tuple[jax.Array, jax.Array],
    position: jax.Array,
    cap: float,
) -> jax.Array:
    """`attend` at one ``position`` to itself and those before it, (B, 1, H, K).

    The cache has keys (B, H, K, M) and values (B, H, M, K), as the products read them, and lacks
    the position itself: if it were read after it is written, XLA would make a copy of all of it.
    """
    k_BHKM, v_BHMK = cache
    wide = jnp.promote_types(q_B1HK.dtype, jnp.float32)
    scale = q_B1HK.shape[-1] ** -0.5
    before = jnp.einsum("blhk,bhkm->bhlm", q_B1HK, k_BHKM, preferred_element_type=wide)
    itself = jnp.einsum("blhk,blhk->bhl", q_B1HK, k_B1HK, preferred_element_type=wide)
    earlier_M = jnp.arange(v_BHMK.shape[2]) < position
    before = jnp.where(earlier_M[None, None, None], _capped(before * scale, cap), -jnp.inf)
    scores = jnp.concatenate([before, _capped(itself * scale, cap)[..., None]], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BHMK.dtype)
    mixed = jnp.einsum("bhlm,bhmk->blhk", weights[..., :-1], v_BHMK)
    return mixed + weights[..., -1].swapaxes(1, 2)[..., None] * v_B1HK


def is_long(length: int, head_width: int) -> bool:
    """Whether "auto" takes the queries block by block."""
    return length > max(LONG * head_width, QUERY_BLOCK)


def queries(backend: str, length: int, head_width: int) -> int:
    """Of "auto", "einsum", "chunked": queries of a sequence whose scores exist at one time."""
    if backend == "einsum" or (backend == "auto" and not is_long(length, head_width)):
        return length
    return -(-length // -(-length // QUERY_BLOCK))


def einsum(q_BLHK, k_BMHK, v_BMHK, cap, visible_LM=None, causal=False, first=0):
    """`attend` with all scores at once; ``first`` is the position of the first query."""
    wide = jnp.promote_types(q_BLHK.dtype, jnp.float32)
    scale = q_BLHK.shape[-1] ** -0.5
    scores = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BMHK, preferred_element_type=wide) * scale
    scores = _capped(scores, cap)
    if causal:
        query, key = (jnp.arange(n) for n in scores.shape[2:])
        earlier_LM = key[None, :] <= query[:, None] + first
        visible_LM = earlier_LM if visible_LM is None else visible_LM & earlier_LM
    if visible_LM is not None:
        scores = jnp.where(visible_LM[None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BMHK.dtype)
    # In this order: on a CPU, XLA takes four times as long for the other one.
    return jnp.einsum("bmhk,bhlm->blhk", v_BMHK, weights)


def _capped(scores, cap):
    return cap * jnp.tanh(scores / cap) if cap else scores


def chunked(q_BLHK, k_BMHK, v_BMHK, cap, visible_LM=None, causal=False, block=QUERY_BLOCK):
    """`attend` on one block of at most ``block`` queries after the other, all keys in each.

    A row of scores is whole, so the softmax needs no running maximum, and nothing of size L * L
    is kept: the backward pass computes the scores of a block again. Gradients of keys and values
    are summed over the blocks in at least float32.
    """
    rows, length, heads, head_width = q_BLHK.shape
    blocks = -(-length // block)
    if blocks == 1:
        return einsum(q_BLHK, k_BMHK, v_BMHK, cap, visible_LM, causal)
    size = -(-length // blocks)
    more = blocks * size - length  # queries of zeros at the end, which see everything
    q_BLHK = jnp.pad(q_BLHK, ((0, 0), (0, more), (0, 0), (0, 0)))
    q_NBLHK = jnp.moveaxis(q_BLHK.reshape(rows, blocks, size, heads, head_width), 1, 0)
    visible_NLM = None
    if visible_LM is not None:
        visible_LM = jnp.pad(visible_LM, ((0, more), (0, 0)), constant_values=True)
        visible_NLM = visible_LM.reshape(blocks, size, -1)
    # The sum of a gradient over a scan has the type of what the scan reads, hence the wide copies.
    wide = jnp.promote_types(q_BLHK.dtype, jnp.float32)
    k_wide, v_wide = k_BMHK.astype(wide), v_BMHK.astype(wide)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(of_block):
        first, q, visible = of_block
        k, v = k_wide.astype(k_BMHK.dtype), v_wide.astype(v_BMHK.dtype)
        return einsum(q, k, v, cap, visible, causal, first)

    out_NBLHK = jax.lax.map(one, (jnp.arange(blocks) * size, q_NBLHK, visible_NLM))
    out_BLHK = jnp.moveaxis(out_NBLHK, 0, 1).reshape(q_BLHK.shape)
    return out_BLHK[:, :length]
