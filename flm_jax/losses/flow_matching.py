"""FLM pretraining: the denoiser's cross-entropy against the clean tokens (paper, section 3).

    tau ~ U[tau_min, tau_max] stratified,  t = t(tau),  x_t = (1 - t) * eps + t * e_y
    loss = -log p(y | x_t, tau)            per token, no weight over time

With a learned weighting head (`model.loss_weighting`): exp(-w(tau)) * loss + w(tau).

``given_fraction`` f > 0 trains infilling too: every token is given (t = 1, no loss) with
probability f; the official code has nothing like it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import times
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.randomness import uniforms
from flm_jax.flow.space import Space
from flm_jax.losses import options
from flm_jax.losses.base import Batch, Loss, PerToken, hint, weighted


@dataclasses.dataclass(frozen=True)
class FlowMatching(Loss):
    """Cross-entropy of the student at a random time.

    Attributes:
      tau_min, tau_max: range of the network's time.
      stratified: one time per stratum of the global batch (official); else independent uniforms.
      given_fraction: probability that a token is given instead of predicted, in [0, 1).
    """

    tau_min: float = 0.0
    tau_max: float = 1.0
    stratified: bool = True
    given_fraction: float = 0.0

    def __post_init__(self):
        options.tau_range(self.tau_min, self.tau_max)
        if not 0.0 <= self.given_fraction < 1.0:
            raise UserError(f"given_fraction={self.given_fraction} must be in [0, 1)")

    @property
    def needs(self) -> Needs:
        return Needs(given=self.given_fraction > 0.0)

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
        return draws

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        tau, count_BL = self.times(draws)[batch.index_B], batch.mask_BL
        if self.given_fraction:
            tau = jnp.where(draws["given"], 1.0, tau[:, None])
            count_BL = count_BL * ~draws["given"]
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, at.clock.to_t(tau))
        output = at.student(at.space.view(state, STUDENT), tau, key=draws.get("dropout"))
        hint_BL = hint(count_BL, output.log_weight)
        nll_BL = -output.posterior.log_prob(batch.tokens_BL, hint_BL)
        return PerToken(weighted(nll_BL, output.log_weight), count_BL, {"nll": nll_BL})

    def times(self, draws: dict[str, jax.Array]) -> jax.Array:
        """tau of every sequence of the global batch, (N,)."""
        permutation = draws["permutation"] if self.stratified else None
        return times.in_range(self.tau_min, self.tau_max, draws["uniform"], permutation)
