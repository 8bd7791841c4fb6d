"""The autoregressive baseline: the cross-entropy of the next token.

    loss = -log p(y_i | y_1 ... y_{i-1})      for every position but the first

The first token is given (sequences begin with BOS) and does not count. The network is a
causal one (`model.causal`) and sees no time. The mean over the tokens that count is the negative
log-likelihood itself.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.flow.at import At
from flm_jax.flow.net import Net
from flm_jax.flow.space import Space
from flm_jax.losses.base import Batch, Loss, PerToken, hint


@dataclasses.dataclass(frozen=True)
class Autoregressive(Loss):
    """Next-token cross-entropy. Nothing is drawn but dropout."""

    denoises: ClassVar[bool] = False
    keeps_prompts: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        return Needs(causal=True)

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        return {"dropout": jax.random.fold_in(key, batch.index_B[0])}

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        count_BL = batch.mask_BL.at[:, 0].set(0.0)
        nll_BM = self.next_token(
            at.student, batch.tokens_BL, draws.get("dropout"), hint(count_BL)[:, 1:]
        )
        nll_BL = jnp.pad(nll_BM, ((0, 0), (1, 0)))
        return PerToken(nll_BL, count_BL, {"nll": nll_BL})

    def next_token(
        self,
        net: Net,
        tokens_BL: jax.Array,
        key: jax.Array | None = None,
        hint_BM: jax.Array | None = None,
    ) -> jax.Array:
        """-log p of every token but the first given those before it, (B, M) with M = L - 1."""
        time_B = jnp.zeros(tokens_BL.shape[:1], net.table.dtype)
        output = net(net.table[tokens_BL[:, :-1]], time_B, key=key)
        return -output.posterior.log_prob(tokens_BL[:, 1:], hint_BM)
