"""Euler steps of the probability flow on a grid in tau (the FLM sampler).

    p = D(x, tau_i),   x <- x + (t' - t) * (p - x) / (1 - t + eps),   eps = 1e-5

Time is reparametrised, so steps even in tau, the default, are uneven in t: the first of 1024
already covers half of t.
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
class Euler(LoopSampler):
    """The Euler rule. ``eps`` keeps the velocity finite at t = 1."""

    eps: float = maps.EPS

    uses: ClassVar[frozenset[str]] = LoopSampler.steered

    @property
    def needs(self) -> Needs:
        return Needs(self_conditioning=True)

    def __post_init__(self):
        if self.eps < 0:
            raise UserError(f"sampler option eps={self.eps} must be at least 0; official: 1e-5")

    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        posterior = at.ask(STUDENT, carry.state, tau_s, estimate=carry.estimate)
        keep, add = maps.euler(at.clock.to_t(tau_s), at.clock.to_t(tau_t), self.eps)
        return Move(posterior, keep, add)
