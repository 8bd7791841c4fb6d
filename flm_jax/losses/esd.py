"""Eulerian self-distillation (ESD): how the map moves with its start (paper, appendix).

    delta_{s,t}(x) = D_s(x) + (1 - s)(t - s)/(1 - t) * d delta_{s,t}(x_s) / ds

with the total derivative along the flow, dx/ds = (D_s(x) - x)/(1 - s). The factor 1/(1 - t) is
unbounded; multiplying the residual by (1 - t)/(1 - s) gives the target used here,

    D_s + (t - s)/(1 - s) * (delta - D_s) + (t - s) * d delta/ds,       without gradient,

with the same fixed point and finite at t = 1. ``official=True`` is the published code, for
parity: the unbounded target, a diagonal conditioned on t instead of tau, and, without a teacher,
D_s taken at (tau_s, tau_t).
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, TEACHER
from flm_jax.flow.combination import Combination
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.times import Path
from flm_jax.losses import options
from flm_jax.losses.base import Batch
from flm_jax.losses.flow_map import FlowMapLoss, Setting
from flm_jax.losses.given_tokens import at_given
from flm_jax.losses.lsd import SELF


@dataclasses.dataclass(frozen=True)
class ESD(FlowMapLoss):
    """The Eulerian objective.

    The attributes of `FlowMapLoss`, and these.

    Attributes:
      start: D_s off the diagonal is the "teacher" (official) or the student's own diagonal, "self".
      alpha: 0: squared error over the vocabulary (official); 1 < alpha <= 2: the target is
        projected onto the simplex by alpha-entmax and the loss is a cross-entropy.
      official: the published form, see the top of this file.
    """

    start: str = TEACHER
    alpha: float = 0.0
    official: bool = False

    def __post_init__(self):
        super().__post_init__()
        options.one_of("start", self.start, SELF, TEACHER)
        if self.alpha and not 1.0 < self.alpha <= 2.0:
            raise UserError(f"alpha={self.alpha} must be 0 (squared error) or above 1, up to 2")

    @property
    def needs(self) -> Needs:
        teacher = TEACHER in (self.on_diagonal, self.start)
        return dataclasses.replace(super().needs, teacher=teacher, forward_derivatives=True)

    @property
    def projects(self) -> bool:
        return self.alpha > 0.0

    def student_times(self, path: Path, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if not self.official:
            return super().student_times(path, batch)
        diagonal = self.kinds(batch.global_size).is_diagonal(batch.index_B)
        return jnp.where(diagonal, path.s, path.tau_s), jnp.where(diagonal, path.t, path.tau_t)

    def off_diagonal(self, here: Setting, posterior: Posterior) -> jax.Array:
        target = self.target(here)
        if self.alpha:
            return target.entmax(self.alpha).cross_entropy_to(posterior, here.hint_BL)
        return target.squared_error_to(posterior.probability(), here.hint_BL)

    def target(self, here: Setting) -> Combination:
        """The target of delta_{s,t}(x_s), not projected."""
        path = here.path
        start = self.start_denoiser(here)
        moved = start_derivative(here, start)
        _, add = here.jump(path.s, path.t)
        if self.official:
            factor = (1.0 - path.s) * (path.t - path.s) / (1.0 - path.t + maps.EPS_MAP)
            return start.probability() + moved.tangent(factor)
        return (
            start.probability(1.0 - add) + moved.probability(add) + moved.tangent(path.t - path.s)
        )

    def start_denoiser(self, here: Setting) -> Posterior:
        """D_s(x_s)."""
        path = here.path
        if self.start == TEACHER:
            return self.teacher_at_s(here)
        tau_t = path.tau_t if self.official else path.tau_s
        return here.ask(STUDENT, here.state, path.tau_s, tau_t, here.keys[0], here.told)


def start_derivative(here: Setting, start: Posterior) -> Posterior:
    """delta_{s,t}(x_s) of the student with its total derivative in s along the flow of D_s."""
    net, space, path = here.at.student, here.at.space, here.path
    pull = at_given(1.0 / (1.0 - path.s + maps.EPS_MAP), here.given_BL, 0.0)
    flow = space.advance(here.state, -pull, pull, start.probability())

    def features(state, tau_s):
        found = here.ask(STUDENT, state, tau_s, path.tau_t, here.keys[1], here.told)
        return found.features_BLD

    speed = here.at.clock.dtau_dt(path.s)
    value, tangent = jax.jvp(features, (here.state, path.tau_s), (flow, speed))
    return Posterior(value, net.head, tangent)
