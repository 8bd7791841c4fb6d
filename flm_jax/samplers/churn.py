"""Steps of a denoiser with fresh noise in every step.

    p = D(x, tau_i),   x <- Euler step beyond t', and back to t' with fresh noise xi ~ N(0, I)

The coefficients are those of a flow map with gamma (`flow.maps.gamma_noise`), with the Euler step
in the place of the jump. Share 1 is x <- t' * p + (1 - t') * xi: only the last prediction counts,
so that errors of earlier steps are not carried on. On stories with a known truth that writes far
better than the probability flow of the same network.
"""

import dataclasses
import functools

import jax

from flm_jax.errors import UserError
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, At
from flm_jax.samplers.base import Carry, Move
from flm_jax.samplers.euler import Euler


@dataclasses.dataclass(frozen=True)
class Churn(Euler):
    """The rule; ``share`` in (0, 1] is that of the fresh noise."""

    share: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.share <= 1.0:
            raise UserError(
                f"sampler option share={self.share} must be in (0, 1]; the sampler euler has no "
                "fresh noise"
            )

    @property
    def stochastic(self) -> bool:
        return True

    @property
    def fresh(self) -> float:
        return self.share**2

    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        posterior = at.ask(STUDENT, carry.state, tau_s, estimate=carry.estimate)
        t, t_next = at.clock.to_t(tau_s), at.clock.to_t(tau_t)
        euler = functools.partial(maps.euler, eps=self.eps)
        _, keep, add, noise = maps.gamma_noise(t, t_next, self.share, euler)
        return Move(posterior, keep, add, noise)
