"""Jumps of a flow map, with or without fresh noise (paper, section 4; the released FMLM).

    p = delta(z, tau_i, tau~),   z <- (1-t~)/(1-t) z + (t~-t)/(1-t) p + (sigma~ - sigma) p + noise

`flow.maps.gamma_noise` has the coefficients. gamma 0 follows the flow; gamma 1 forgets the old
noise in every step (multistep consistency sampling). One step is the same for all gamma.
"""

import dataclasses
from typing import ClassVar

import jax

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, At
from flm_jax.samplers.base import Carry, Move
from flm_jax.samplers.loops import LoopSampler


@dataclasses.dataclass(frozen=True)
class FlowMap(LoopSampler):
    """The jump rule. ``gamma`` in [0, 1] is the share of fresh noise."""

    gamma: float = 0.0

    uses: ClassVar[frozenset[str]] = LoopSampler.steered | {"gamma"}

    @property
    def needs(self) -> Needs:
        return Needs(two_times=True, self_conditioning=True)

    def __post_init__(self):
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(
                f"sampler option gamma={self.gamma} must be in [0, 1]; official: 0.8 for LM1B, "
                "1.0 for OpenWebText"
            )

    @property
    def stochastic(self) -> bool:
        return self.gamma > 0.0

    @property
    def fresh(self) -> float:
        return self.gamma**2

    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        t_aim, keep, add, noise = maps.gamma_noise(
            at.clock.to_t(tau_s), at.clock.to_t(tau_t), self.gamma
        )
        aim = at.clock.to_tau(t_aim)
        posterior = at.ask(STUDENT, carry.state, tau_s, aim, estimate=carry.estimate)
        return Move(posterior, keep, add, noise)
