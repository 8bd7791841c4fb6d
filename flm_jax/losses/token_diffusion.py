"""What the diffusion baselines on tokens share: a random time t, 0 = data, 1 = noise."""

import abc
import dataclasses
from typing import ClassVar

import jax

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import discrete, times
from flm_jax.flow.at import At
from flm_jax.flow.space import Space
from flm_jax.losses.base import Batch, Loss, PerToken


@dataclasses.dataclass(frozen=True)
class TokenDiffusion(Loss, unfinished=True):
    """Base of the diffusions on tokens: how times are drawn.

    Attributes:
      t_min: smallest time, where the weight of the loss is largest; official: 1e-3.
      stratified: one time per stratum of the global batch (official); else independent uniforms.
    """

    t_min: float = discrete.EPS
    stratified: bool = True

    denoises: ClassVar[bool] = False

    def __post_init__(self):
        if not 0.0 < self.t_min < 1.0:
            raise UserError(
                f"t_min={self.t_min} must be above 0 (where the loss is infinite) and below 1; "
                f"official: {discrete.EPS}"
            )

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        key_time, key_tokens, key_dropout = jax.random.split(key, 3)
        uniform_N, permutation_N = times.draw_stratified(key_time, batch.global_size)
        return {
            "uniform": uniform_N,
            "permutation": permutation_N,
            "dropout": jax.random.fold_in(key_dropout, batch.index_B[0]),
            **self.draw_tokens(batch.keys(key_tokens), batch.length, space),
        }

    @property
    def needs(self) -> Needs:
        return Needs()

    @abc.abstractmethod
    def draw_tokens(self, keys_B: jax.Array, length: int, space: Space) -> dict[str, jax.Array]:
        """The raw numbers that decide what becomes of the tokens, from one key per sequence."""

    def times(self, draws: dict[str, jax.Array]) -> jax.Array:
        """t of every sequence of the global batch, (N,)."""
        permutation = draws["permutation"] if self.stratified else None
        return times.in_range(self.t_min, 1.0, draws["uniform"], permutation)


@dataclasses.dataclass(frozen=True)
class BoundLoss(TokenDiffusion, unfinished=True):
    """Base of those whose mean is an upper bound on the negative log-likelihood."""

    @abc.abstractmethod
    def losses(
        self, at: At, batch: Batch, draws: dict[str, jax.Array], t_B: jax.Array
    ) -> jax.Array:
        """The loss of every token at the given times, (B, L)."""

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        loss_BL = self.losses(at, batch, draws, self.times(draws)[batch.index_B])
        return PerToken(loss_BL, batch.mask_BL, {"nll": loss_BL})


def refuse_weight(log_weight: jax.Array | None, name: str) -> None:
    """UserError if the network learns a weight over time: these losses have their own."""
    if log_weight is not None:
        raise UserError(
            f"loss {name!r} weighs its times itself and takes no learned weight; "
            "set model.loss_weighting=False"
        )
