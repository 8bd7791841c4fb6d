"""Samplers of tokens: their state is tokens int32 (B, L), and they bring a loop of their own."""

import dataclasses
from typing import ClassVar

import jax

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow.posterior import Posterior
from flm_jax.samplers.base import Sampler
from flm_jax.sampling import Sampling, SamplingKnobs


@dataclasses.dataclass(frozen=True)
class TokenSampler(Sampler, unfinished=True):
    """What samplers on tokens have in common. Every token is drawn, none is an arg max.

    The temperature of every draw is that of the denoiser (``sampler.denoiser_temperature``).

    Attributes:
      top_p: nucleus of every draw from a prediction, in (0, 1].
    """

    top_p: float = 1.0

    uses: ClassVar[frozenset[str]] = frozenset({"denoiser_temperature"})

    @property
    def needs(self) -> Needs:
        return Needs()

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def kind(self) -> str:
        return "a sampler of tokens"

    def __post_init__(self):
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"sampler option top_p={self.top_p} must be in (0, 1]; 1 = off")

    def without_effect(self, knobs: SamplingKnobs) -> dict[str, str]:
        problems = {}
        if knobs.temperature != 0.0 or knobs.top_p != 1.0:
            problems["temperature"] = (
                f"temperature={knobs.temperature:g} and top_p={knobs.top_p:g} of the last decode "
                "have no effect on a sampler that draws every token; set denoiser_temperature or "
                "the sampler's option top_p instead"
            )
        if knobs.patience:
            problems["patience"] = (
                f"{self.kind} cannot stop early (patience={knobs.patience}), because its steps do "
                "not predict whole texts; set sampler.patience=0"
            )
        rest = dataclasses.replace(knobs, temperature=0.0, top_p=1.0, patience=0)
        return problems | super().without_effect(rest)

    def refuse(self, sampling: Sampling) -> None:
        """UserError for what `without_effect` finds."""
        if problems := self.without_effect(sampling):
            raise UserError("\n".join(problems.values()))

    def predict(self, posterior: Posterior, keys_B: jax.Array) -> jax.Array:
        """Tokens drawn from the prediction, (B, L)."""
        return posterior.sample(keys_B, top_p=self.top_p)
