"""Euler steps of the probability flow on a grid in tau (the FLM sampler).

    p = D(x, tau_i),   x <- x + (t' - t) * (p - x) / (1 - t + eps),   eps = 1e-5

Time is reparametrised, so steps even in tau, the default, are uneven in t: the first of 1024
already covers half of t.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax

from flm_jax.errors import UserError
from flm_jax.flow import maps
from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.samplers.base import Move, Space


@dataclasses.dataclass(frozen=True)
class Euler:
    """The Euler rule. ``eps`` keeps the velocity finite at t = 1."""

    eps: float = maps.EPS

    stochastic: ClassVar[bool] = False
    needs_two_times: ClassVar[bool] = False

    def __post_init__(self):
        if self.eps < 0:
            raise UserError(f"sampler option eps={self.eps} must be at least 0; official: 1e-5")

    def propose(
        self,
        nets: Mapping[str, Net],
        space: Space,
        clock: Clock,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array,
    ) -> Move:
        posterior = nets["student"](space.view(state, "student"), tau_s).posterior
        keep, add = maps.euler(clock.to_t(tau_s), clock.to_t(tau_t), self.eps)
        return Move(posterior, keep, add)
