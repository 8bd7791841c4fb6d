"""What the flow-map objectives PSD, LSD and ESD share: times, networks, the loss on the diagonal.

A flow map is a denoiser of two times, delta_{s,t}. On the diagonal (s = t) it is the denoiser
itself and learns from a teacher or from the data; off it, it learns from a target built from
networks at other times, which is what the subclasses differ in. `losses/kinds.py` deals the rows.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.flow import times
from flm_jax.flow.at import STUDENT, TEACHER, At
from flm_jax.flow.clock import Clock
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space
from flm_jax.flow.times import Path
from flm_jax.losses import options
from flm_jax.losses.base import Batch, Key, Loss, PerToken, dropout_keys, hint, weighted
from flm_jax.losses.kinds import Kinds, boundary_notices

UNIFORM_DIFF, UNIFORM_ST = "uniform_diff", "uniform_st"
DATA = "data"


class Setting(NamedTuple):
    """What an off-diagonal target is made from, for the sequences off the diagonal."""

    at: At  # without gradients, and so is the state
    state: jax.Array  # x_s
    path: Path
    keys: Sequence[Key]  # of dropout in the two target networks; a teacher has none
    hint_BL: jax.Array | None = None  # what the losses will be multiplied with, see losses/base.py

    def rows(self, which: slice, kind_B: jax.Array) -> "Setting":
        """Some of the sequences, of which only those of a kind count."""
        hint_BL = self.hint_BL
        return self._replace(
            state=self.state[which],
            path=self.path.rows(which),
            hint_BL=None if hint_BL is None else (hint_BL * kind_B[:, None])[which],
        )


@dataclasses.dataclass(frozen=True)
class FlowMapLoss(Loss, unfinished=True):
    """Base of the flow-map objectives.

    Attributes:
      on_diagonal: what the diagonal learns from: the "teacher" or the "data" (no teacher).
      diagonal_fraction: share of diagonal samples in the global batch.
      boundary_fraction: share of boundary samples among the others (official: 1/32).
      off_diagonal_times: "uniform_diff" (length, then start) or "uniform_st" (a sorted pair).
      tau_min, tau_max: range of the drawn numbers.
      stratified: one number per stratum of the global batch (official); else independent.
      target_dropout: dropout stays on in target networks (official); the teacher never has any.
    """

    on_diagonal: str = TEACHER
    diagonal_fraction: float = 0.5
    boundary_fraction: float = 1 / 32
    off_diagonal_times: str = UNIFORM_DIFF
    tau_min: float = 0.0
    tau_max: float = 1.0
    stratified: bool = True
    target_dropout: bool = True

    def __post_init__(self):
        options.one_of("on_diagonal", self.on_diagonal, TEACHER, DATA)
        options.one_of("off_diagonal_times", self.off_diagonal_times, UNIFORM_DIFF, UNIFORM_ST)
        options.share("diagonal_fraction", self.diagonal_fraction)
        options.share("boundary_fraction", self.boundary_fraction)
        options.tau_range(self.tau_min, self.tau_max)

    @property
    def needs(self) -> Needs:
        return Needs(teacher=self.on_diagonal == TEACHER, two_times=True)

    @property
    def off_diagonal_share(self) -> float:
        return 1.0 - self.diagonal_fraction

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        keys = jax.random.split(key, 6)
        size = batch.global_size
        draws = {
            "noise": space.noise(batch.keys(keys[0]), batch.length),
            "dropout": jax.random.fold_in(keys[1], batch.index_B[0]),
        }
        names = {"diagonal": size, "length": size, "start": size}
        if self.off_diagonal_times == UNIFORM_ST:
            names = {"diagonal": size, "pair": 2 * size}
        for name, n, own in zip(names, names.values(), keys[2:5], strict=False):
            draws[name], draws[f"{name}_permutation"] = times.draw_stratified(own, n)
        draws["between"] = jax.random.uniform(keys[5], (size,), jnp.float32)
        return draws

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        path, kinds = self.path(draws, at.clock, batch), self.kinds(batch.global_size)
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, path.s)
        key, *target_keys = dropout_keys(draws, 3)
        output = at.student(
            at.space.view(state, STUDENT), *self.student_times(path, batch), key=key
        )
        setting = Setting(
            at.stopped(),
            jax.lax.stop_gradient(state),
            path,
            target_keys if self.target_dropout else [None, None],
            jax.lax.stop_gradient(hint(batch.mask_BL, output.log_weight)),
        )
        diagonal_B = kinds.is_diagonal(batch.index_B)
        on, off = kinds.parts(len(batch.index_B))
        loss_on = loss_off = None
        if on.stop:
            here = setting.rows(on, diagonal_B)
            loss_on = self.diagonal(here, output.posterior.rows(on), batch.tokens_BL[on])
        if off.start < off.stop:
            here = setting.rows(off, ~diagonal_B)
            loss_off = self.off_diagonal(here, output.posterior.rows(off))
        loss_BL = kinds.join(batch.index_B, loss_on, loss_off)
        share_on, share_off = (
            max(n, 1) / batch.global_size for n in (kinds.diagonal, kinds.off_diagonal)
        )
        metrics = {  # means over the samples of their kind
            "loss_diagonal": jnp.where(diagonal_B[:, None], loss_BL, 0.0) / share_on,
            "loss_off_diagonal": jnp.where(diagonal_B[:, None], 0.0, loss_BL) / share_off,
        }
        return PerToken(weighted(loss_BL, output.log_weight), batch.mask_BL, metrics)

    @abc.abstractmethod
    def off_diagonal(self, here: Setting, posterior: Posterior) -> jax.Array:
        """Loss per token, (B, L), of the student's posterior delta_{s,t}(x_s)."""

    def diagonal(self, here: Setting, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """Cross-entropy per token against the teacher's posterior or the data."""
        if self.on_diagonal == DATA:
            return -posterior.log_prob(tokens_BL, here.hint_BL)
        return self.teacher_at_s(here).probability().cross_entropy_to(posterior, here.hint_BL)

    def teacher_at_s(self, here: Setting) -> Posterior:
        """D_s: the teacher's posterior at (x_s, tau_s)."""
        return here.at.ask(TEACHER, here.state, here.path.tau_s)

    def student_times(self, path: Path, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The two times that the student is asked at."""
        return path.tau_s, path.tau_t

    def kinds(self, global_size: int) -> Kinds:
        """How many samples of a global batch are of each kind."""
        return Kinds.of(global_size, self.diagonal_fraction, self.boundary_fraction)

    def notices(self, batch_size: int) -> list[str]:
        return boundary_notices(batch_size, self.diagonal_fraction, self.boundary_fraction)

    def path(self, draws: dict[str, jax.Array], clock: Clock, batch: Batch) -> Path:
        """The times of the sequences of a batch."""
        if self.off_diagonal_times == UNIFORM_ST:
            tau_s, tau_t = times.pairs(self._drawn(draws, "pair"))
        else:
            length = self._drawn(draws, "length")
            tau_s = self._drawn(draws, "start") * (1.0 - length)
            tau_t = tau_s + length
        every = self.kinds(batch.global_size).times(self._drawn(draws, "diagonal"), tau_s, tau_t)
        tau_s, tau_t = (x[batch.index_B] for x in every)
        tau_u = self.between(tau_s, tau_t, draws["between"][batch.index_B])
        return Path.through(tau_s, tau_u, tau_t, clock)

    def between(self, tau_s: jax.Array, tau_t: jax.Array, uniform: jax.Array) -> jax.Array:
        """tau_u, the intermediate time: half way."""
        return 0.5 * (tau_s + tau_t)

    def _drawn(self, draws: dict[str, jax.Array], name: str) -> jax.Array:
        permutation = draws[f"{name}_permutation"] if self.stratified else None
        return times.in_range(self.tau_min, self.tau_max, draws[name], permutation)
