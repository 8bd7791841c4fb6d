"""Block diffusion with a flow map (or a denoiser): blocks from left to right, each written at once.

A block is denoised together with everything to its right, from the same noise for every block; its
tokens are committed, and what was behind it is thrown away. One block as long as the text is the
plain sampler. A block whose tokens are all given is skipped.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.samplers.rounds import RoundSampler


@dataclasses.dataclass(frozen=True)
class BlockDiffusion(RoundSampler):
    """Rounds that commit one block each.

    Attributes:
      block_length: tokens of a block; the last block may be shorter. The evaluations are shared
        among the blocks.
    """

    fresh_noise: bool = False
    block_length: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.block_length < 1:
            raise UserError(f"sampler option block_length={self.block_length} must be at least 1")

    def rounds_for(self, steps: int, length: int) -> int:
        blocks = -(-length // self.block_length)
        if steps < blocks:
            raise UserError(
                f"writing {length} tokens in blocks of block_length={self.block_length} takes at "
                f"least {blocks} steps, not {steps}; set steps={blocks} or longer blocks"
            )
        return blocks

    def commit(
        self, which: jax.Array, rounds: int, open_BL: jax.Array, p_BL: jax.Array, keys_B: jax.Array
    ) -> jax.Array:
        return self.of_block(which, open_BL)

    def works(self, which: jax.Array, open_BL: jax.Array) -> jax.Array:
        return jnp.any(self.of_block(which, open_BL), axis=1)

    def of_block(self, which: jax.Array, open_BL: jax.Array) -> jax.Array:
        """The open tokens of a block, bool (B, L)."""
        return open_BL & (jnp.arange(open_BL.shape[1]) // self.block_length == which)[None]
