"""The first version of the method: a correction g beside a frozen denoiser f, then one network.

Stage 1, `Residual`, learns g (raw logits of a two-time network) such that

    X_{s,t}(x) = x + (t - s) v_s(x) + (t - s)^2 / 2 * g_{s,t}(x),   v_s = (f_s(x) - x)/(1 - s)

is a flow map: two half jumps, without gradient, are the target of the whole one. Stage 2,
`SecondStage`, trains one two-time denoiser delta whose jump equals that of f and g together.

Distances are between predictions of the clean text, where the state itself cancels: no objective
needs the state over the vocabulary. (The official code has 1e-5 in its denominators, so that a
share of about 1e-5 of the state is left over in stage 1; ``official_residue`` keeps it, in the
one-hot space, for parity.)
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import maps, times
from flm_jax.flow.at import RESIDUAL, STUDENT, TEACHER, At
from flm_jax.flow.clock import Clock
from flm_jax.flow.combination import Combination, array
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot, Space
from flm_jax.flow.times import Path
from flm_jax.losses import options
from flm_jax.losses.base import Batch, Key, Loss, PerToken, dropout_keys, hint, weighted


@dataclasses.dataclass(frozen=True)
class TwoModelLoss(Loss, unfinished=True):
    """Base of the two stages: lengths and starts of the jumps.

    Attributes:
      boundary_fraction: probability that a sample is the whole way, tau_s = 0 and length 1.
      min_length: least length of a jump in tau.
      eps: in the denominators of velocities (official: 1e-5).
    """

    boundary_fraction: float = 1 / 64
    min_length: float = 1e-6
    eps: float = maps.EPS

    def __post_init__(self):
        options.share("boundary_fraction", self.boundary_fraction)
        if not 0.0 < self.min_length < 1.0:
            raise UserError(f"min_length={self.min_length} must be above 0, below 1")
        if self.eps <= 0.0:
            raise UserError(f"loss option eps={self.eps} must be above 0; official: 1e-5")

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, two_times=True)

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 5)
        length, permutation = times.draw_stratified(keys[0], batch.global_size)
        return {
            "length": length,
            "length_permutation": permutation,
            "start": jax.random.uniform(keys[1], (batch.global_size,), jnp.float32),
            "boundary": jax.random.uniform(keys[2], (batch.global_size,), jnp.float32),
            "noise": space.noise(batch.keys(keys[3]), batch.length),
            "dropout": jax.random.fold_in(keys[4], batch.index_B[0]),
        }

    def path(self, draws: dict[str, jax.Array], clock: Clock, batch: Batch) -> Path:
        """tau_s, the middle and the end of every jump, and their t."""
        length = times.stratified(draws["length"], draws["length_permutation"])
        length = jnp.maximum(length, self.min_length)
        start = draws["start"] * (1.0 - length)
        boundary = draws["boundary"] < self.boundary_fraction
        length, start = jnp.where(boundary, 1.0, length), jnp.where(boundary, 0.0, start)
        length, start = length[batch.index_B], start[batch.index_B]
        return Path.through(start, start + 0.5 * length, start + length, clock)


class HalfJumps(NamedTuple):
    """What two half jumps of f and g say, without gradient."""

    f_s: Posterior
    g_su: Posterior
    state_u: jax.Array
    f_u: Posterior
    g_ut: Posterior


@dataclasses.dataclass(frozen=True)
class Residual(TwoModelLoss):
    """Stage 1: the correction g of a frozen denoiser ("teacher").

    The attributes of `TwoModelLoss`, and these.

    Attributes:
      official_residue: keep the share of the state that the official eps leaves in the target; it
        exists in the one-hot space only.
    """

    official_residue: bool = False

    is_correction: ClassVar[bool] = True
    denoises: ClassVar[bool] = False

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        path = self.path(draws, at.clock, batch)
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, path.s)
        keys = dropout_keys(draws, 3)
        output = at.student(at.space.view(state, STUDENT), path.tau_s, path.tau_t, keys[0])
        halves = self.halves(at.stopped(), jax.lax.stop_gradient(state), path, keys[1:])
        target = self.target(halves, path, at.space, jax.lax.stop_gradient(state))
        # The prediction is f_s + step * g; f_s, which has no gradient, is taken to the other side.
        target = target + halves.f_s.probability(-1.0)
        step = 0.5 * (path.t - path.s) * (1.0 - path.s)
        loss_BL = target.squared_error_to(
            output.posterior.logits(step), hint(batch.mask_BL, output.log_weight)
        )
        metrics = {"squared_error": loss_BL}
        return PerToken(weighted(loss_BL, output.log_weight), batch.mask_BL, metrics)

    def halves(self, at: At, state: jax.Array, path: Path, keys: Sequence[Key]) -> HalfJumps:
        """f and g at the start and, after the first half jump, in the middle."""
        f_s = at.ask(TEACHER, state, path.tau_s)
        g_su = at.ask(STUDENT, state, path.tau_s, path.tau_u, keys[0])
        keep, add = maps.euler(path.s, path.u, self.eps)
        length = path.u - path.s
        move = f_s.probability(add) + g_su.logits(0.5 * length * length)
        state_u = at.space.advance(state, keep, 1.0, move)
        f_u = at.ask(TEACHER, state_u, path.tau_u)
        g_ut = at.ask(STUDENT, state_u, path.tau_u, path.tau_t, keys[1])
        return HalfJumps(f_s, g_su, state_u, f_u, g_ut)

    def target(self, halves: HalfJumps, path: Path, space: Space, state: jax.Array) -> Combination:
        """x + (1 - s) * (mean velocity of the two half jumps): where they say the text is."""
        a, b, whole = path.u - path.s, path.t - path.u, path.t - path.s
        left = 1.0 - path.s
        of_s, of_u = left * a / whole, left * b / whole  # shares of the two velocities
        rate_s, rate_u = 1.0 / (left + self.eps), 1.0 / (1.0 - path.u + self.eps)
        target = (
            halves.f_s.probability(of_s * rate_s - of_u * rate_u * a * rate_s)
            + halves.g_su.logits(0.5 * a * (of_s - of_u * rate_u * a))
            + halves.f_u.probability(of_u * rate_u)
            + halves.g_ut.logits(0.5 * of_u * b)
        )
        if self.official_residue:
            if not isinstance(space, OneHot):
                raise UserError("official_residue=True needs the one-hot space; set space=onehot")
            residue = 1.0 - of_s * rate_s - of_u * rate_u * (1.0 - a * rate_s)
            target = target + array(state, halves.f_s.head, residue)
        return target


@dataclasses.dataclass(frozen=True)
class SecondStage(TwoModelLoss):
    """Stage 2: one two-time denoiser that jumps as f ("teacher") and g ("residual") do together.

    No learned weighting, like the official code.
    """

    boundary_fraction: float = 1 / 128
    min_length: float = 1e-5

    @property
    def needs(self) -> Needs:
        return dataclasses.replace(super().needs, residual=True)

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        path = self.path(draws, at.clock, batch)
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, path.s)
        output = at.student(
            at.space.view(state, STUDENT), path.tau_s, path.tau_t, draws.get("dropout")
        )
        fixed, still = jax.lax.stop_gradient(state), at.stopped()
        f_s = still.ask(TEACHER, fixed, path.tau_s)
        g_st = still.ask(RESIDUAL, fixed, path.tau_s, path.tau_t)
        step = path.t - path.s
        _, add = maps.euler(path.s, path.t, self.eps)  # the state's own share is the same in both
        target = f_s.probability(add) + g_st.logits(0.5 * step * step)
        loss_BL = target.squared_error_to(output.posterior.probability(add), hint(batch.mask_BL))
        return PerToken(loss_BL, batch.mask_BL, {"squared_error": loss_BL})
