"""The autoregressive baseline: the cross-entropy of the next token.

    loss = -log p(y_i | y_1 ... y_{i-1})      for every position but the first

The first token is given (blocks begin with the begin mark), so a row of L tokens has L - 1
predictions. Its losses are multiplied by L / (L - 1), counting tokens under the mask: the mean
over all tokens, which the step takes, is then the mean over predicted tokens. The network is a
causal one (`model.causal`) and sees no time. The mean is the negative log-likelihood itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.losses.base import Batch, Space, hint


@dataclasses.dataclass(frozen=True)
class Autoregressive:
    """Next-token cross-entropy. Nothing is drawn but dropout."""

    needs_teacher: ClassVar[bool] = False
    needs_two_times: ClassVar[bool] = False
    needs_causal: ClassVar[bool] = True
    needs_mask_token: ClassVar[bool] = False
    denoises: ClassVar[bool] = False

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        return {"dropout": jax.random.fold_in(key, batch.index_B[0])}

    def evaluate(
        self,
        nets: Mapping[str, Net],
        batch: Batch,
        draws: dict[str, jax.Array],
        space: Space,
        clock: Clock,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        counted, predicted = (jnp.sum(m, axis=1) for m in (batch.mask_BL, batch.mask_BL[:, 1:]))
        share_B1 = (counted / jnp.maximum(predicted, 1.0))[:, None]
        nll_BM = self.next_token(
            nets["student"], batch.tokens_BL, draws.get("dropout"), hint(batch)[:, 1:] * share_B1
        )
        loss_BL = jnp.pad(nll_BM * share_B1, ((0, 0), (1, 0)))
        return loss_BL, {"nll": loss_BL}

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
