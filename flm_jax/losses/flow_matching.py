"""FLM pretraining: the denoiser's cross-entropy against the clean tokens (paper, section 3).

    tau ~ U[tau_min, tau_max] stratified,  t = t(tau),  x_t = (1 - t) * eps + t * e_y
    loss = -log p(y | x_t, tau)            per token, no weight over time

With a learned weighting head (`model.loss_weighting`): exp(-w(tau)) * loss + w(tau).

``given`` trains infilling too: some tokens are given (t = 1, no loss), each with the probability
``given_fraction``, or with one that is drawn per sequence, f ~ U(0, 1). The official code has
nothing like it, nor self-conditioning (`model.self_conditioning`): on half of the rows the network
sees what it says without (`losses/self_conditioning.py`).
"""

import dataclasses
from typing import ClassVar

import jax

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import times
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.randomness import uniforms
from flm_jax.flow.space import Space
from flm_jax.losses import given_tokens, options
from flm_jax.losses.base import Batch, Loss, PerToken, hint, weighted
from flm_jax.losses.self_conditioning import Told

CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class FlowMatching(Loss):
    """Cross-entropy of the student at a random time.

    Attributes:
      tau_min: the first of the network's times.
      tau_max: the last one.
      stratified: one time per stratum of the global batch (official); else independent uniforms.
      given_fraction: probability that a token is given instead of predicted, in [0, 1).
      given: that probability is "constant", or "uniform", drawn per sequence: f ~ U(0, 1)
        (`losses/given_tokens.py`).
      given_none: share of the sequences that have no given token with given="uniform".
      tau_spread: above 0 draws tau = sigmoid(centre + spread * z), z ~ N(0, 1), in the place of
        U(0, 1): more of the times around sigmoid(centre).
      tau_centre: that centre.
    """

    tau_min: float = 0.0
    tau_max: float = 1.0
    stratified: bool = True
    given_fraction: float = 0.0
    given: str = CONSTANT
    given_none: float = 0.0
    tau_spread: float = 0.0
    tau_centre: float = 0.0

    keeps_prompts: ClassVar[bool] = True

    def __post_init__(self):
        options.tau_range(self.tau_min, self.tau_max)
        if not 0.0 <= self.given_fraction < 1.0:
            raise UserError(f"given_fraction={self.given_fraction} must be in [0, 1)")
        if self.tau_spread < 0.0:
            raise UserError(f"tau_spread={self.tau_spread} must be at least 0; 0 is U(0, 1)")
        if self.tau_centre and not self.tau_spread:
            raise UserError(
                f"tau_centre={self.tau_centre} has no effect without tau_spread; set it above 0"
            )
        options.one_of("given", self.given, CONSTANT, given_tokens.UNIFORM)
        if self.given == given_tokens.UNIFORM and self.given_fraction:
            raise UserError(
                f"given='uniform' draws the share of given tokens, so given_fraction="
                f"{self.given_fraction} has no effect; omit one of them"
            )
        given_tokens.check_none(self.given, self.given_none)

    @property
    def needs(self) -> Needs:
        given = self.given == given_tokens.UNIFORM or self.given_fraction > 0.0
        return Needs(given=given, self_conditioning=True)

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        key_time, key_noise, key_given, key_dropout = jax.random.split(key, 4)
        uniform_N, permutation_N = times.draw_stratified(key_time, batch.global_size)
        draws = {
            "uniform": uniform_N,
            "permutation": permutation_N,
            "noise": space.noise(batch.keys(key_noise), batch.length),
            "dropout": jax.random.fold_in(key_dropout, batch.index_B[0]),
        }
        if self.given_fraction:
            uniform_BL = uniforms(batch.keys(key_given), batch.length)
            draws["given"] = uniform_BL < self.given_fraction
        if self.given == given_tokens.UNIFORM:
            draws |= given_tokens.draw(key_given, batch)
        return draws

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        tau_B, given_BL = self.times(draws)[batch.index_B], self.given_BL(draws, batch)
        count_BL = given_tokens.open_count(batch, given_BL)
        t = given_tokens.at_given(at.clock.to_t(tau_B), given_BL, 1.0)
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, t)
        told = Told.half(batch.global_size).estimate(at, batch, state, tau_B, None, given_BL)
        output = at.output(STUDENT, state, tau_B, None, draws.get("dropout"), given_BL, told)
        hint_BL = hint(count_BL, output.log_weight)
        nll_BL = -output.posterior.log_prob(batch.tokens_BL, hint_BL)
        return PerToken(weighted(nll_BL, output.log_weight), count_BL, {"nll": nll_BL})

    def given_BL(self, draws: dict[str, jax.Array], batch: Batch) -> jax.Array | None:
        """Which tokens are given, bool (B, L); None: none of any batch."""
        chosen_BL = draws.get("given")
        if self.given == given_tokens.UNIFORM:
            chosen_BL = given_tokens.by_chance(draws, batch, self.stratified, self.given_none)
        return given_tokens.with_prompt(chosen_BL, batch)

    def times(self, draws: dict[str, jax.Array]) -> jax.Array:
        """tau of every sequence of the global batch, (N,)."""
        permutation = draws["permutation"] if self.stratified else None
        if not self.tau_spread:
            return times.in_range(self.tau_min, self.tau_max, draws["uniform"], permutation)
        unit_N = times.in_range(0.0, 1.0, draws["uniform"], permutation)
        unit_N = times.logit_normal(unit_N, self.tau_centre, self.tau_spread)
        return unit_N * (self.tau_max - self.tau_min) + self.tau_min
