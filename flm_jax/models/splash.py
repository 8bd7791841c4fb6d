"""JAX's own fused attention for TPUs ("splash attention") in the place of `attention.attend`.

It keeps no scores in memory, forward or backward, and has a soft cap; it has no forward-mode
derivative. A device computes the rows of the batch that it has: `share` divides the call over a
mesh, which JAX does not do with kernels.
"""

from collections.abc import Callable
from typing import Protocol

import jax

LANES = 128  # lengths are multiples of them
BLOCKS = (512, 256, 128)  # queries, and keys, of which a block of scores is made at one time


class Share(Protocol):
    """See `host.sharding.Share`."""

    def divides(self, rows: int) -> bool: ...

    def __call__(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array: ...


def fits(shape: tuple[int, ...], share: Share | None) -> bool:
    """Whether there is a kernel for arrays (B, L, H, K) on the devices that share them."""
    return shape[1] % LANES == 0 and (share is None or share.divides(shape[0]))


def attend(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    cap: float,
    causal: bool = False,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend` of the rows of one device, without ``visible_LM``.

    ``interpret`` computes it without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads, width = q_BLHK.shape[1:]
    shape = length, length
    mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    block = next(one for one in BLOCKS if length % one == 0)
    sizes = kernel.BlockSizes(
        block_q=block, block_kv=block,
        block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    one_row = kernel.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
    )
    # Scaled in the type of the inputs: exact for heads of 64, whose scale is a power of two.
    q_BHLK, k_BHLK, v_BHLK = (x.swapaxes(1, 2) for x in (q_BLHK * width**-0.5, k_BLHK, v_BLHK))
    out_BHLK = jax.vmap(one_row)(q_BHLK, k_BHLK, v_BHLK)
    assert isinstance(out_BHLK, jax.Array)  # without residuals
    return out_BHLK.swapaxes(1, 2)
