"""Samplers of the first version of the method: two networks, and their compression into one.

`TwoModel`: a denoiser f and a correction g (raw logits) of two times,

    z <- z + dt (f - z) / (1 - t + eps) + dt^2 / 2 * g,   in the last step too; tokens from z.

`TwoStage`: Euler steps with the second time given to the network, p = delta(z, tau, tau').
"""

import dataclasses
from typing import ClassVar

import jax

from flm_jax.contracts import Needs
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, TEACHER, At
from flm_jax.samplers.base import Carry, Move
from flm_jax.samplers.euler import Euler
from flm_jax.samplers.loops import LoopSampler


@dataclasses.dataclass(frozen=True)
class TwoModel(Euler):
    """The rule of a denoiser ("teacher") with a correction ("student")."""

    uses: ClassVar[frozenset[str]] = LoopSampler.uses

    @property
    def needs(self) -> Needs:
        return Needs(two_times=True, teacher=True)

    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        t, t_next = at.clock.to_t(tau_s), at.clock.to_t(tau_t)
        denoiser = at.ask(TEACHER, carry.state, tau_s)
        correction = at.ask(STUDENT, carry.state, tau_s, tau_t)
        keep, add = maps.euler(t, t_next, self.eps)
        step = t_next - t
        return Move(denoiser, keep, add, correction=correction.logits(0.5 * step * step))


@dataclasses.dataclass(frozen=True)
class TwoStage(Euler):
    """Euler steps of a network that is told where the step ends."""

    uses: ClassVar[frozenset[str]] = LoopSampler.uses

    @property
    def needs(self) -> Needs:
        return Needs(two_times=True)

    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        posterior = at.ask(STUDENT, carry.state, tau_s, tau_t)
        keep, add = maps.euler(at.clock.to_t(tau_s), at.clock.to_t(tau_t), self.eps)
        return Move(posterior, keep, add)
