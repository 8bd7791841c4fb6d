"""What losses and samplers are evaluated with; these always travel together."""

import dataclasses
from collections.abc import Mapping

import jax

from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space, without_gradients


@dataclasses.dataclass(frozen=True)
class At:
    """Networks by role ("student", "teacher", "residual", "ema"), their state space, the clock."""

    nets: Mapping[str, Net]
    space: Space
    clock: Clock

    @property
    def student(self) -> Net:
        """The network that learns, or that writes."""
        return self.nets["student"]

    def ask(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Posterior:
        """The posterior of the network in that role at a state; times are (B,) or (B, L)."""
        return self.nets[role](self.space.view(state, role), tau_s, tau_t, key).posterior

    def stopped(self) -> "At":
        """The same, and nothing computed with it has a gradient to parameters or tables."""
        nets = {role: net.stopped() for role, net in self.nets.items()}
        return At(nets, without_gradients(self.space), self.clock)
