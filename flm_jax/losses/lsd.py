"""Lagrangian self-distillation (LSD): how the map moves with its end time (paper, appendix).

    delta_{s,t}(x) = D_t(X_{s,t}(x)) - (t - s)(1 - t)/(1 - s) * d delta_{s,t}(x) / dt

The right side without gradient, projected onto the simplex by alpha-entmax, is the target of a
cross-entropy. The derivative is taken through the network's second time, d/dt = dtau/dt * d/dtau.

At t = 1 the derivative's factor is zero: the target is D_1 of the text that the map itself has
written, and D_1 returns any text unchanged. Boundary samples therefore confirm whatever the student
says and drive one step into few texts (benchmarks/proof.md), so there are none unless asked for.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow.at import STUDENT, TEACHER
from flm_jax.flow.combination import Combination
from flm_jax.flow.posterior import Posterior
from flm_jax.losses import options
from flm_jax.losses.flow_map import FlowMapLoss, Setting
from flm_jax.losses.given_tokens import at_given

SELF = "self"


@dataclasses.dataclass(frozen=True)
class LSD(FlowMapLoss):
    """The Lagrangian objective.

    The attributes of `FlowMapLoss`, and these.

    Attributes:
      boundary_fraction: see the top of this file (official: 1/32).
      alpha: of the entmax projection of the target, 1 < alpha <= 2 (2: Euclidean projection).
      end: D_t is the student's own diagonal ("self", official) or the "teacher".
      official_alpha_1: what the official code does at alpha = 1, a uniform target, whatever
        ``alpha`` says; for parity only.
    """

    boundary_fraction: float = 0.0
    alpha: float = 2.0
    end: str = SELF
    official_alpha_1: bool = False

    def __post_init__(self):
        super().__post_init__()
        options.one_of("end", self.end, SELF, TEACHER)
        if not 1.0 < self.alpha <= 2.0:
            raise UserError(f"alpha={self.alpha} of the entmax projection must be above 1, up to 2")

    @property
    def needs(self) -> Needs:
        teacher = TEACHER in (self.on_diagonal, self.end)
        return dataclasses.replace(super().needs, teacher=teacher, forward_derivatives=True)

    @property
    def projects(self) -> bool:
        return True

    def off_diagonal(self, here: Setting, posterior: Posterior) -> jax.Array:
        if self.official_alpha_1:
            return uniform_like(posterior).cross_entropy_to(posterior, here.hint_BL)
        target = self.target(here).entmax(self.alpha)
        return target.cross_entropy_to(posterior, here.hint_BL)

    def target(self, here: Setting) -> Combination:
        """D_t(X_{s,t}) - (t-s)(1-t)/(1-s) d delta/dt, before the projection."""
        at, path = here.at, here.path
        moved = end_derivative(here, at.clock.dtau_dt(path.t))
        keep, add = here.jump(path.s, path.t)
        state_t, told_t = here.moved(keep, add, moved)
        if self.end == TEACHER:
            end = self.teacher_at(here, state_t, path.tau_t)
        else:
            end = here.ask(STUDENT, state_t, path.tau_t, path.tau_t, here.keys[1], told_t)
        left = at_given(1.0 - path.t, here.given_BL, 0.0)
        return end.probability() + moved.tangent(-add * left)


def end_derivative(here: Setting, speed_B: jax.Array) -> Posterior:
    """delta_{s,t}(x_s) of the student with its derivative along speed * d/dtau_t."""
    net, path = here.at.student, here.path

    def features(tau_t):
        found = here.ask(STUDENT, here.state, path.tau_s, tau_t, here.keys[0], here.told)
        return found.features_BLD

    value, tangent = jax.jvp(features, (path.tau_t,), (speed_B,))
    return Posterior(value, net.head, tangent)


def uniform_like(posterior: Posterior) -> Combination:
    """The uniform distribution over the vocabulary, at every position."""
    head = jax.tree.map(jnp.zeros_like, posterior.head)
    return Posterior(jnp.zeros_like(posterior.features_BLD), head).probability()
