"""Samplers of the first version of the method: two networks, and their compression into one.

`TwoModel`: a denoiser f and a correction g (raw logits) of two times,

    z <- z + dt (f - z) / (1 - t + eps) + dt^2 / 2 * g,   in the last step too; tokens from z.

`TwoStage`: Euler steps with the second time given to the network, p = delta(z, tau, tau').
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax

from flm_jax.flow import maps
from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.samplers.base import Move, Space
from flm_jax.samplers.euler import Euler


@dataclasses.dataclass(frozen=True)
class TwoModel(Euler):
    """The rule of a denoiser ("teacher") with a correction ("student")."""

    needs_two_times: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    def propose(
        self,
        nets: Mapping[str, Net],
        space: Space,
        clock: Clock,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array,
    ) -> Move:
        t, t_next = clock.to_t(tau_s), clock.to_t(tau_t)
        denoiser = nets["teacher"](space.view(state, "teacher"), tau_s).posterior
        correction = nets["student"](space.view(state, "student"), tau_s, tau_t).posterior
        keep, add = maps.euler(t, t_next, self.eps)
        step = t_next - t
        return Move(denoiser, keep, add, correction=correction.logits(0.5 * step * step))


@dataclasses.dataclass(frozen=True)
class TwoStage(Euler):
    """Euler steps of a network that is told where the step ends."""

    needs_two_times: ClassVar[bool] = True

    def propose(
        self,
        nets: Mapping[str, Net],
        space: Space,
        clock: Clock,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array,
    ) -> Move:
        posterior = nets["student"](space.view(state, "student"), tau_s, tau_t).posterior
        keep, add = maps.euler(clock.to_t(tau_s), clock.to_t(tau_t), self.eps)
        return Move(posterior, keep, add)
