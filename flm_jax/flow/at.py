"""Where losses and samplers are evaluated: networks by role, their space and the clock, together.

`evaluated_at` makes them of parameters, inside the function that is differentiated.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net, Output, Params
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space, without_gradients

STUDENT, TEACHER, RESIDUAL, EMA = "student", "teacher", "residual", "ema"  # roles of networks
GUIDE = "guide"  # the network that another one is guided away from (samplers/guidance.py)
MASKED_TEACHER = "masked_teacher"  # the one role that sees tokens, not the state
MakeNet = Callable[[Params], Net]  # parameters -> network
MakeSpace = Callable[[dict[str, jax.Array]], Space]  # embedding tables by role -> space


@dataclasses.dataclass(frozen=True)
class At:
    """Networks by role (see above), the state space of those that see it, the clock.

    Attributes:
      given_BL: bool; where tokens are given, `ask` tells networks that both times are 1, whatever
        the times (B,).
      writer: the role of the network that answers where the student is asked.
    """

    nets: Mapping[str, Net]
    space: Space
    clock: Clock
    given_BL: jax.Array | None = None
    writer: str = STUDENT

    @property
    def student(self) -> Net:
        """The network that learns, or that writes."""
        return self.nets[self.writer]

    def ask(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
        given_BL: jax.Array | None = None,
        estimate: jax.Array | None = None,
    ) -> Posterior:
        """The posterior of the network in that role at a state; times as in `Net.__call__`.

        ``estimate`` is one of `estimate`, for a network with self-conditioning; or None.
        """
        return self.output(role, state, tau_s, tau_t, key, given_BL, estimate).posterior

    def output(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
        given_BL: jax.Array | None = None,
        estimate: jax.Array | None = None,
    ) -> Output:
        """`ask`, with the learned loss weighting."""
        given_BL = self.given_BL if given_BL is None else given_BL
        role = self.writer if role == STUDENT else role
        h_BLD = self.space.view(state, role)
        estimate_BLD = None if estimate is None else self.space.view(estimate, role)
        return self.nets[role](h_BLD, tau_s, tau_t, key, given_BL, estimate_BLD)

    def estimate(
        self, posterior: Posterior, state: jax.Array, given_BL: jax.Array | None = None
    ) -> jax.Array:
        """What is expected of the clean sequence after that posterior at a state, itself a state.

        That is p, and at given tokens, which are clean in the state already, the state.
        """
        given_BL = self.given_BL if given_BL is None else given_BL
        mean = self.space.mean(posterior.probability()).astype(state.dtype)
        return mean if given_BL is None else jnp.where(given_BL[..., None], state, mean)

    def moved(
        self,
        state: jax.Array,
        keep: jax.Array,
        add: jax.Array,
        posterior: Posterior,
        given_BL: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """The state keep * x + add * p, and `estimate`: None if the student cannot be told.

        Both take one pass over the vocabulary.
        """
        if not self.student.self_conditioning:
            return self.space.advance(state, keep, add, posterior.probability()), None
        estimate = self.estimate(posterior, state, given_BL)
        return self.space.mixed(state, keep, add, estimate), estimate

    def iterated(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        passes: int,
        given_BL: jax.Array | None = None,
    ) -> Posterior:
        """The posterior after so many passes of a network with self-conditioning at one state.

        Every pass is told the estimate of the one before, the first one nothing: an approach to the
        fixed point of p -> posterior(state, p) (FMLM*, arXiv 2607.00714).
        """
        if passes == 1:
            return self.ask(role, state, tau_s, given_BL=given_BL)

        def again(_, estimate):
            posterior = self.ask(role, state, tau_s, given_BL=given_BL, estimate=estimate)
            return self.estimate(posterior, state, given_BL)

        estimate = jax.lax.fori_loop(0, passes - 1, again, jnp.zeros_like(state))
        return self.ask(role, state, tau_s, given_BL=given_BL, estimate=estimate)

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
