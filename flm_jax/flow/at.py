"""Where losses and samplers are evaluated: networks by role, their space and the clock, together.

`evaluated_at` makes them of parameters, inside the function that is differentiated.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax

from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net, Params
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space, without_gradients

STUDENT, TEACHER, RESIDUAL, EMA = "student", "teacher", "residual", "ema"  # roles of networks
MASKED_TEACHER = "masked_teacher"  # the one role that sees tokens, not the state
MakeNet = Callable[[Params], Net]  # parameters -> network
MakeSpace = Callable[[dict[str, jax.Array]], Space]  # embedding tables by role -> space


@dataclasses.dataclass(frozen=True)
class At:
    """Networks by role (see above), the state space of those that see it, the clock.

    Attributes:
      given_BL: bool; where tokens are given, `ask` tells networks that both times are 1, whatever
        the times (B,).
    """

    nets: Mapping[str, Net]
    space: Space
    clock: Clock
    given_BL: jax.Array | None = None

    @property
    def student(self) -> Net:
        """The network that learns, or that writes."""
        return self.nets[STUDENT]

    def ask(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
        given_BL: jax.Array | None = None,
    ) -> Posterior:
        """The posterior of the network in that role at a state; times as in `Net.__call__`."""
        given_BL = self.given_BL if given_BL is None else given_BL
        return self.nets[role](self.space.view(state, role), tau_s, tau_t, key, given_BL).posterior

    def given(self, mask_BL: jax.Array) -> "At":
        """The same where those tokens are given: whatever is asked, they are at time 1."""
        return dataclasses.replace(self, given_BL=mask_BL)

    def stopped(self) -> "At":
        """The same, and nothing computed with it has a gradient to parameters or tables."""
        nets = {role: net.stopped() for role, net in self.nets.items()}
        space = without_gradients(self.space)
        return dataclasses.replace(self, nets=nets, space=space)


def evaluated_at(
    make_nets: Mapping[str, MakeNet],
    make_space: MakeSpace,
    clock: Clock,
    params: Params,
    others: Mapping[str, Params],
) -> At:
    """The student and the other networks, which get no gradient, with their space and the clock."""
    nets = {STUDENT: make_nets[STUDENT](params)}
    nets |= {role: make_nets[role](jax.lax.stop_gradient(p)) for role, p in others.items()}
    return At(nets, make_space(tables_of(nets)), clock)


def tables_of(nets: Mapping[str, Net]) -> dict[str, jax.Array]:
    """The embedding tables of the networks that see the state, by role."""
    return {role: net.table for role, net in nets.items() if role != MASKED_TEACHER}
