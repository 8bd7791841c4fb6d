"""Masked (absorbing) diffusion, the baseline MDLM: a likelihood bound of masked tokens.

    t ~ U[t_min, 1] stratified (t = 1 is noise),   alpha_t = 1 - (1 - 1e-3) t
    x_t = mask with probability 1 - alpha_t, else the token
    loss = -alpha'_t / (1 - alpha_t) * -log p(y | x_t)   where masked, else 0

p never predicts the mask, and a token that shows is known: the loss counts masked tokens only
(Sahoo et al. 2024, "Simple and effective masked diffusion language models"). The network gets
time 0 always. The mask is the last token of the network (`model.mask_token`), one that the
tokenizer does not have. The mean over tokens is an upper bound on the negative log-likelihood.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.flow import discrete
from flm_jax.flow.at import At
from flm_jax.flow.randomness import uniforms
from flm_jax.flow.space import Space
from flm_jax.losses.base import Batch, hint
from flm_jax.losses.token_diffusion import BoundLoss, refuse_weight


@dataclasses.dataclass(frozen=True)
class MaskedDiffusion(BoundLoss):
    """Weighted cross-entropy of the masked tokens at a random time."""

    keeps_prompts: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        return Needs(mask_token=True)

    def draw_tokens(self, keys_B: jax.Array, length: int, space: Space) -> dict[str, jax.Array]:
        return {"mask": uniforms(keys_B, length)}

    def losses(
        self, at: At, batch: Batch, draws: dict[str, jax.Array], t_B: jax.Array
    ) -> jax.Array:
        net, alpha_B1 = at.student, discrete.alpha(t_B)[:, None]
        masked_BL = self.masked(draws, t_B)
        if batch.prompt_BL is not None:
            masked_BL = masked_BL & ~batch.prompt_BL
        output = discrete.predict_masked(net, batch.tokens_BL, masked_BL, draws.get("dropout"))
        refuse_weight(output.log_weight, "masked_diffusion")
        hint_BL = jnp.where(masked_BL, hint(batch.mask_BL) / (1.0 - alpha_B1), 0.0)
        nll_BL = -output.posterior.log_prob(batch.tokens_BL, hint_BL)
        return jnp.where(masked_BL, nll_BL * discrete.RATE / (1.0 - alpha_B1), 0.0)

    def masked(self, draws: dict[str, jax.Array], t_B: jax.Array) -> jax.Array:
        """Which tokens are masked, bool (B, L)."""
        return draws["mask"] < 1.0 - discrete.alpha(t_B)[:, None]
