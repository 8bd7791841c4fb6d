"""Progressive self-distillation (PSD) by the semigroup law (paper, section 4; the released FMLM).

    delta_{s,t}(x) = lambda * delta_{s,u}(x) + (1 - lambda) * delta_{u,t}(X_{s,u}(x))

The right side, two short jumps of the running student or its EMA without gradient, is the
target of the long jump on the left. At t = 1 lambda is 0: the target is the second jump alone.
"""

import dataclasses

import jax

from flm_jax.contracts import Needs
from flm_jax.flow import maps
from flm_jax.flow.at import EMA, STUDENT, At
from flm_jax.flow.combination import Combination, one_hot
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import per_token
from flm_jax.flow.times import Path
from flm_jax.losses import options
from flm_jax.losses.flow_map import DATA, FlowMapLoss, Setting
from flm_jax.losses.given_tokens import at_given

MIDPOINT, RANDOM = "midpoint", "random"
CROSS_ENTROPY, SQUARED = "cross_entropy", "squared"


@dataclasses.dataclass(frozen=True)
class PSD(FlowMapLoss):
    """The semigroup objective.

    The attributes of `FlowMapLoss`, and these.

    Attributes:
      intermediate: tau_u is the "midpoint" of tau_s and tau_t, or "random" between them.
      distance: "cross_entropy" or "squared" error over the vocabulary.
      rescale: multiply the off-diagonal loss by ((t - s) / (1 - s))^2.
      target: networks of the target: the running "student" (official) or its EMA, "ema".
    """

    intermediate: str = MIDPOINT
    distance: str = CROSS_ENTROPY
    rescale: bool = False
    target: str = STUDENT

    def __post_init__(self):
        super().__post_init__()
        options.one_of("intermediate", self.intermediate, MIDPOINT, RANDOM)
        options.one_of("distance", self.distance, CROSS_ENTROPY, SQUARED)
        options.one_of("target", self.target, STUDENT, EMA)

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, ema=self.target == EMA)

    @property
    def lift(self) -> float:
        """See `maps.jump`."""
        return 0.0

    def between(self, tau_s: jax.Array, tau_t: jax.Array, uniform: jax.Array) -> jax.Array:
        if self.intermediate == MIDPOINT:
            return super().between(tau_s, tau_t, uniform)
        return tau_s + uniform * (tau_t - tau_s)

    def diagonal(self, here: Setting, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        if self.distance == CROSS_ENTROPY:
            return super().diagonal(here, posterior, tokens_BL)
        if self.on_diagonal == DATA:
            target = one_hot(tokens_BL, posterior.head)
        else:
            target = self.teacher_at_s(here).probability()
        return target.squared_error_to(posterior.probability(), here.hint_BL)

    def off_diagonal(self, here: Setting, posterior: Posterior) -> jax.Array:
        target, scale = semigroup(here, self.target, self.lift), 1.0
        if self.rescale:
            _, add = here.jump(here.path.s, here.path.t)
            scale = per_token(add * add)[..., 0]
        hint_BL = None if here.hint_BL is None else here.hint_BL * scale
        if self.distance == CROSS_ENTROPY:
            return scale * target.cross_entropy_to(posterior, hint_BL)
        return scale * target.squared_error_to(posterior.probability(), hint_BL)


def semigroup_defect(
    at: At,
    state: jax.Array,
    tau_s: jax.Array,
    tau_u: jax.Array,
    tau_t: jax.Array,
) -> jax.Array:
    """How far two jumps s -> u -> t end from the one jump s -> t, per token (B, L).

    The squared distance, over the vocabulary, of delta_{s,t}(x) from what the semigroup law makes
    of delta_{s,u} and delta_{u,t}: 0 for an exact flow map, at most 2. ``state`` is x_s; times are
    those of the network "student", (B,).
    """
    here = Setting(at, state, Path.through(tau_s, tau_u, tau_t, at.clock), (None, None))
    long_jump = at.ask(STUDENT, state, tau_s, tau_t).probability()
    return semigroup(here, STUDENT).squared_error_to(long_jump)


def semigroup(here: Setting, role: str, lift: float = 0.0) -> Combination:
    """lambda * delta_{s,u}(x) + (1 - lambda) * delta_{u,t}(X_{s,u}(x)), without gradient."""
    path = here.path
    first = here.ask(role, here.state, path.tau_s, path.tau_u, here.keys[0], here.told)
    state_u, told_u = here.moved(*here.jump(path.s, path.u, lift), first)
    second = here.ask(role, state_u, path.tau_u, path.tau_t, here.keys[1], told_u)
    weight = at_given(maps.semigroup_weight(path.s, path.u, path.t), here.given_BL, 0.0)
    return first.probability(weight) + second.probability(1.0 - weight)
