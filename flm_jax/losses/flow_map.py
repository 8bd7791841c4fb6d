"""What all flow-map objectives share: kinds of samples, times, and the loss on the diagonal.

A flow map is a denoiser of two times, delta_{s,t}. On the diagonal (s = t) it is the denoiser
itself and learns from a teacher or from the data; off it, it learns from a target built from
networks at other times, which is what the subclasses differ in. The kinds of a global batch:

    diagonal   tau_s = tau_t
    interior   tau_s < tau_t, by length and start ("uniform_diff") or as a sorted pair
               ("uniform_st")
    boundary   tau_s = 0, tau_t = 1: the whole way in one jump
"""

import abc
import dataclasses
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import times
from flm_jax.flow.at import At
from flm_jax.flow.clock import Clock
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space
from flm_jax.losses.base import Batch, Loss, PerToken, hint, weighted

UNIFORM_DIFF, UNIFORM_ST = "uniform_diff", "uniform_st"
TEACHER, DATA = "teacher", "data"


class Path(NamedTuple):
    """Times of some sequences, (B,) each: of the network (tau) and of the interpolation."""

    tau_s: jax.Array
    tau_u: jax.Array
    tau_t: jax.Array
    s: jax.Array
    u: jax.Array
    t: jax.Array

    def rows(self, which: slice) -> "Path":
        return Path(*(x[which] for x in self))


class Setting(NamedTuple):
    """What an off-diagonal target is made from, for the sequences off the diagonal."""

    at: At  # without gradients, and so is the state
    state: jax.Array  # x_s
    path: Path
    keys: tuple  # dropout keys of the target networks, or (None, None)
    hint_BL: jax.Array | None = None  # what the losses will be multiplied with, see losses/base.py

    @property
    def space(self) -> Space:
        return self.at.space

    def ask(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Posterior:
        """The posterior of the network in that role; a teacher has one time and no dropout."""
        if role == TEACHER:
            tau_t = key = None
        return self.at.ask(role, state, tau_s, tau_t, key)


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
        one_of("on_diagonal", self.on_diagonal, TEACHER, DATA)
        one_of("off_diagonal_times", self.off_diagonal_times, UNIFORM_DIFF, UNIFORM_ST)
        for name, value in (
            ("diagonal_fraction", self.diagonal_fraction),
            ("boundary_fraction", self.boundary_fraction),
        ):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name}={value} must be in [0, 1]")
        if not 0.0 <= self.tau_min < self.tau_max <= 1.0:
            raise UserError(
                f"tau_min={self.tau_min}, tau_max={self.tau_max}: need 0 <= tau_min < tau_max <= 1"
            )

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
        path = self.path(draws, at.clock, batch)
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, path.s)
        key, *target_keys = _keys(draws.get("dropout"), 3)
        if not self.target_dropout:
            target_keys = [None] * len(target_keys)
        output = at.student(
            at.space.view(state, "student"), *self.student_times(path, batch), key=key
        )
        setting = Setting(
            at.stopped(),
            jax.lax.stop_gradient(state),
            path,
            tuple(target_keys),
            jax.lax.stop_gradient(hint(batch.mask_BL, output.log_weight)),
        )
        on, off = self.parts(batch)
        loss_on = loss_off = None
        if on.stop:
            here = _rows(setting, on, self.is_diagonal(batch))
            loss_on = self.diagonal(here, output.posterior.rows(on), batch.tokens_BL[on])
        if off.start < len(batch.tokens_BL):
            here = _rows(setting, off, ~self.is_diagonal(batch))
            loss_off = self.off_diagonal(here, output.posterior.rows(off))
        loss_BL, diagonal_B = self.join(batch, loss_on, loss_off)
        count = self.counts(batch.global_size)
        share_on, share_off = (max(n, 1) / batch.global_size for n in (count[0], sum(count[1:])))
        metrics = {  # means over the samples of their kind
            "loss_diagonal": jnp.where(diagonal_B, loss_BL, 0.0) / share_on,
            "loss_off_diagonal": jnp.where(diagonal_B, 0.0, loss_BL) / share_off,
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
        return here.ask("teacher", here.state, here.path.tau_s)

    def student_times(self, path: Path, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The two times that the student is asked at."""
        return path.tau_s, path.tau_t

    def counts(self, global_size: int) -> tuple[int, int, int]:
        """Numbers of diagonal, interior and boundary samples."""
        return times.split_counts(global_size, self.diagonal_fraction, self.boundary_fraction)

    def notices(self, batch_size: int) -> list[str]:
        """Says so if the numbers of rows of each kind, rounded down, leave no boundary sample."""
        diagonal, interior, boundary = self.counts(batch_size)
        if boundary or not interior or not self.boundary_fraction:
            return []

        def gives_one(fraction: float, batch: int) -> bool:
            return dataclasses.replace(self, boundary_fraction=fraction).counts(batch)[2] > 0

        off_diagonal = 1.0 - self.diagonal_fraction
        least = ((diagonal + 1) / batch_size - self.diagonal_fraction) / off_diagonal
        unit = 10.0 ** (math.floor(math.log10(least)) - 2)  # three digits of it, rounded up
        digits = itertools.count(math.ceil(round(least / unit, 6)))
        fraction = next(unit * n for n in digits if gives_one(unit * n, batch_size))
        size = math.ceil(1.0 / (off_diagonal * self.boundary_fraction))
        size += not gives_one(self.boundary_fraction, size)  # rounding may take a whole one away
        return [
            f"loss.options.boundary_fraction={self.boundary_fraction:g} of the {interior} rows off "
            f"the diagonal of train.batch_size={batch_size} gives no boundary sample (the whole "
            f"way in one jump); for one, set loss.options.boundary_fraction={fraction:.3g} or "
            f"train.batch_size={size}, or the fraction to 0 if none is wanted"
        ]

    def parts(self, batch: Batch) -> tuple[slice, slice]:
        """Rows that may lie on the diagonal, and rows that may lie off it.

        A micro-batch takes every n-th row of the global batch, so its diagonal rows come first;
        where the number does not divide evenly, one row is in both parts and `join` picks.
        """
        size = len(batch.tokens_BL)
        micro_batches = batch.global_size // size
        diagonal = self.counts(batch.global_size)[0]
        return slice(0, -(-diagonal // micro_batches)), slice(diagonal // micro_batches, size)

    def is_diagonal(self, batch: Batch) -> jax.Array:
        return batch.index_B < self.counts(batch.global_size)[0]

    def join(self, batch: Batch, on: jax.Array | None, off: jax.Array | None) -> tuple:
        """The loss of all rows (B, L) from its two parts, and which rows are diagonal (B, 1)."""
        size = len(batch.tokens_BL)
        diagonal = self.is_diagonal(batch)[:, None]
        if on is None:
            return off, diagonal
        if off is None:
            return on, diagonal
        on = jnp.pad(on, ((0, size - len(on)), (0, 0)))
        off = jnp.pad(off, ((size - len(off), 0), (0, 0)))
        return jnp.where(diagonal, on, off), diagonal

    def path(self, draws: dict[str, jax.Array], clock: Clock, batch: Batch) -> Path:
        """The times of the sequences of a batch."""
        size, index_B = batch.global_size, batch.index_B
        diagonal, interior, _ = self.counts(size)

        tau = self._unit(draws, "diagonal")
        if self.off_diagonal_times == UNIFORM_ST:
            tau_s, tau_t = times.pairs(self._unit(draws, "pair"))
        else:
            length = self._unit(draws, "length")
            tau_s = self._unit(draws, "start") * (1.0 - length)
            tau_t = tau_s + length
        row = jnp.arange(size)
        boundary = row >= diagonal + interior
        tau_s = jnp.where(row < diagonal, tau, jnp.where(boundary, 0.0, tau_s))
        tau_t = jnp.where(row < diagonal, tau, jnp.where(boundary, 1.0, tau_t))
        tau_s, tau_t = (jnp.clip(x, 0.0, 1.0)[index_B] for x in (tau_s, tau_t))
        tau_u = self.between(tau_s, tau_t, draws["between"][index_B])
        return Path(tau_s, tau_u, tau_t, *(clock.to_t(x) for x in (tau_s, tau_u, tau_t)))

    def between(self, tau_s: jax.Array, tau_t: jax.Array, uniform: jax.Array) -> jax.Array:
        """tau_u, the intermediate time: half way."""
        return 0.5 * (tau_s + tau_t)

    def _unit(self, draws: dict[str, jax.Array], name: str) -> jax.Array:
        unit = draws[name]
        if self.stratified:
            unit = times.stratified(unit, draws[f"{name}_permutation"])
        return unit * (self.tau_max - self.tau_min) + self.tau_min


def one_of(name: str, value: str, *choices: str) -> None:
    """UserError unless the option has one of these values."""
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; choose {' or '.join(map(repr, choices))}")


def _rows(setting: Setting, which: slice, kind_B: jax.Array) -> Setting:
    """Some rows, of which only those of their kind count."""
    hint_BL = setting.hint_BL
    return setting._replace(
        state=setting.state[which],
        path=setting.path.rows(which),
        hint_BL=None if hint_BL is None else (hint_BL * kind_B[:, None])[which],
    )


def _keys(key: jax.Array | None, n: int) -> list:
    return [None] * n if key is None else list(jax.random.split(key, n))
