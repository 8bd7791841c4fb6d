"""What the flow-map objectives PSD, LSD and ESD share: times, networks, the loss on the diagonal.

A flow map is a denoiser of two times, delta_{s,t}. On the diagonal (s = t) it is the denoiser
itself and learns from a teacher or from the data; off it, it learns from a target built from
networks at other times, which is what the subclasses differ in. `losses/kinds.py` deals the rows.

Self-conditioning (FMLM*, arXiv 2607.00714). A teacher with it may be asked for the estimate after
several passes, ``teacher_iterations``, which a student without it then learns to give in one. A
student with it sees, on half of the rows of every kind, what it says itself without at the same
times; whatever a target asks at a later state of the path is told the estimate made on the way
there, as the sampler does.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import maps, times
from flm_jax.flow.at import STUDENT, TEACHER, At
from flm_jax.flow.clock import Clock
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space
from flm_jax.flow.times import Path
from flm_jax.losses import given_tokens, options
from flm_jax.losses.base import Batch, Key, Loss, PerToken, dropout_keys, hint, weighted
from flm_jax.losses.given_tokens import at_given
from flm_jax.losses.kinds import DIAGONAL, OFF_DIAGONAL, Kinds, boundary_notices
from flm_jax.losses.self_conditioning import Told

UNIFORM_DIFF, UNIFORM_ST = "uniform_diff", "uniform_st"
DATA = "data"


class Setting(NamedTuple):
    """What a target is made from, for some of the sequences.

    Times are those of the open tokens; given ones (``given_BL``, bool, if there are any) are at
    time 1 and keep their state.
    """

    at: At  # without gradients, and so is the state
    state: jax.Array  # x_s
    path: Path
    keys: Sequence[Key]  # of dropout in the two target networks; a teacher has none
    hint_BL: jax.Array | None = None  # what the losses will be multiplied with, see losses/base.py
    given_BL: jax.Array | None = None
    told: jax.Array | None = None  # what a student with self-conditioning is told at `state`

    def ask(
        self,
        role: str,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: Key = None,
        told: jax.Array | None = None,
    ) -> Posterior:
        """`At.ask` with the given tokens; ``told`` is the estimate, if there is one."""
        return self.at.ask(role, state, tau_s, tau_t, key, self.given_BL, told)

    def moved(
        self, keep: jax.Array, add: jax.Array, posterior: Posterior
    ) -> tuple[jax.Array, jax.Array | None]:
        """The state after keep * x_s + add * p, and what a student is told there."""
        return self.at.moved(self.state, keep, add, posterior, self.given_BL)

    def jump(self, s: jax.Array, t: jax.Array, lift: float = 0.0) -> tuple[jax.Array, jax.Array]:
        """`maps.jump` from s to t, (B, L) where tokens are given."""
        keep, add = maps.jump(s, t, maps.EPS_MAP, lift)
        return at_given(keep, self.given_BL, 1.0), at_given(add, self.given_BL, 0.0)

    def rows(self, which: slice, kind_B: jax.Array) -> "Setting":
        """Some of the sequences, of which only those of a kind count."""
        hint_BL, given_BL = self.hint_BL, self.given_BL
        return self._replace(
            state=self.state[which],
            path=self.path.rows(which),
            hint_BL=None if hint_BL is None else (hint_BL * kind_B[:, None])[which],
            given_BL=None if given_BL is None else given_BL[which],
            told=None if self.told is None else self.told[which],
        )


@dataclasses.dataclass(frozen=True)
class FlowMapLoss(Loss, unfinished=True):
    """Base of the flow-map objectives.

    Attributes:
      on_diagonal: what the diagonal learns from: the "teacher" or the "data" (no teacher).
      diagonal_fraction: share of diagonal samples in the global batch.
      boundary_fraction: share of boundary samples among the others (official: 1/32).
      off_diagonal_times: "uniform_diff" (length, then start) or "uniform_st" (a sorted pair).
      given: tokens given by chance, so that it learns to write any subset of a text: "none"
        (official) or "uniform", a share f ~ U(0, 1) of every sequence (`losses/given_tokens.py`).
      given_none: share of the sequences that have no given token with given="uniform".
      tau_min: the least drawn number.
      tau_max: the greatest.
      stratified: one number per stratum of the global batch (official); else independent.
      target_dropout: dropout stays on in target networks (official); the teacher never has any.
      teacher_iterations: passes of a teacher with self-conditioning, each told the estimate of the
        one before, at every state that it is asked about.
    """

    on_diagonal: str = TEACHER
    diagonal_fraction: float = 0.5
    boundary_fraction: float = 1 / 32
    off_diagonal_times: str = UNIFORM_DIFF
    given: str = given_tokens.NONE
    given_none: float = 0.0
    tau_min: float = 0.0
    tau_max: float = 1.0
    stratified: bool = True
    target_dropout: bool = True
    teacher_iterations: int = 1

    keeps_prompts: ClassVar[bool] = True
    ways_to_draw: ClassVar[tuple[str, ...]] = (UNIFORM_DIFF, UNIFORM_ST)

    def __post_init__(self):
        options.one_of("on_diagonal", self.on_diagonal, TEACHER, DATA)
        options.one_of("off_diagonal_times", self.off_diagonal_times, *self.ways_to_draw)
        options.one_of("given", self.given, given_tokens.NONE, given_tokens.UNIFORM)
        given_tokens.check_none(self.given, self.given_none)
        options.share("diagonal_fraction", self.diagonal_fraction)
        options.share("boundary_fraction", self.boundary_fraction)
        options.tau_range(self.tau_min, self.tau_max)
        options.at_least_one(teacher_iterations=self.teacher_iterations)
        if self.teacher_iterations > 1 and not self.needs.teacher:
            raise UserError(
                f"teacher_iterations={self.teacher_iterations} has no effect without a teacher; "
                "omit it"
            )

    @property
    def needs(self) -> Needs:
        return Needs(
            teacher=self.on_diagonal == TEACHER,
            two_times=True,
            given=self.given != given_tokens.NONE,
            self_conditioning=True,
            teacher_self_conditioning=self.teacher_iterations > 1,
        )

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
        names = self.drawn_names(size)
        for name, n, own in zip(names, names.values(), keys[2:5], strict=False):
            draws[name], draws[f"{name}_permutation"] = times.draw_stratified(own, n)
        draws["between"] = jax.random.uniform(keys[5], (size,), jnp.float32)
        if self.given != given_tokens.NONE:
            draws |= given_tokens.draw(jax.random.fold_in(key, len(keys)), batch)
        return draws

    def drawn_names(self, size: int) -> dict[str, int]:
        """The stratified numbers that times are made of, with how many there are."""
        if self.off_diagonal_times == UNIFORM_ST:
            return {"diagonal": size, "pair": 2 * size}
        return {"diagonal": size, "length": size, "start": size}

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        path, kinds = self.path(draws, at.clock, batch), self.kinds(batch.global_size)
        given_BL = self.given_BL(draws, batch)
        count_BL = given_tokens.open_count(batch, given_BL)
        s = at_given(path.s, given_BL, 1.0)
        state = at.space.corrupt(draws["noise"], batch.tokens_BL, s)
        key, *target_keys = dropout_keys(draws, 3)
        tau_s, tau_t = self.student_times(path, batch)
        told = self.told(kinds).estimate(at, batch, state, tau_s, tau_t, given_BL)
        output = at.output(STUDENT, state, tau_s, tau_t, key, given_BL, told)
        setting = Setting(
            at.stopped(),
            jax.lax.stop_gradient(state),
            path,
            target_keys if self.target_dropout else [None, None],
            jax.lax.stop_gradient(hint(count_BL, output.log_weight)),
            given_BL,
            told,
        )
        group_B, losses = kinds.group_of(batch.index_B), []
        for group, part in enumerate(kinds.parts(len(batch.index_B))):
            own = None
            if part.start < part.stop:
                here = setting.rows(part, group_B == group)
                posterior = output.posterior.rows(part)
                own = self.of_group(group, here, posterior, batch.tokens_BL[part])
            losses.append(own)
        loss_BL = kinds.join(batch.index_B, losses)
        metrics = {  # means over the samples of their kind
            f"loss_{name}": jnp.where((group_B == group)[:, None], loss_BL, 0.0)
            / (max(kinds.groups[group], 1) / batch.global_size)
            for group, name in enumerate(self.metric_names)
        }
        return PerToken(weighted(loss_BL, output.log_weight), count_BL, metrics)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the groups of kinds are called in metrics, those that there may be."""
        return "diagonal", "off_diagonal"

    def given_BL(self, draws: dict[str, jax.Array], batch: Batch) -> jax.Array | None:
        """Which tokens are given, bool (B, L); None: none of any batch."""
        chosen_BL = None
        if self.given != given_tokens.NONE:
            chosen_BL = given_tokens.by_chance(draws, batch, self.stratified, self.given_none)
        return given_tokens.with_prompt(chosen_BL, batch)

    def of_group(
        self, group: int, here: Setting, posterior: Posterior, tokens_BL: jax.Array
    ) -> jax.Array:
        """Loss per token, (B, L), of sequences of one group of kinds."""
        if group == DIAGONAL:
            return self.diagonal(here, posterior, tokens_BL)
        assert group == OFF_DIAGONAL
        return self.off_diagonal(here, posterior)

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
        return self.teacher_at(here, here.state, here.path.tau_s)

    def teacher_at(self, here: Setting, state: jax.Array, tau: jax.Array) -> Posterior:
        """The teacher's posterior, after its iterations."""
        return here.at.iterated(TEACHER, state, tau, self.teacher_iterations, here.given_BL)

    def told(self, kinds: Kinds) -> Told:
        """Half of the rows on the diagonal and half of the others, next to each other.

        Those are not boundary samples as long as these are less than half of the others: one jump
        over the whole way is told nothing.
        """
        half = kinds.diagonal // 2
        return Told(kinds.diagonal - half, kinds.diagonal + kinds.off_diagonal // 2)

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
        every = self.kinds(batch.global_size).times(*self.drawn_times(draws))
        tau_s, tau_t = (x[batch.index_B] for x in every)
        tau_u = self.between(tau_s, tau_t, draws["between"][batch.index_B])
        return Path.through(tau_s, tau_u, tau_t, clock)

    def drawn_times(self, draws: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(tau on the diagonal, tau_s, tau_t) of all samples, whatever their kind, (N,) each."""
        diagonal = self.drawn(draws, "diagonal")
        if self.off_diagonal_times == UNIFORM_ST:
            return diagonal, *times.pairs(self.drawn(draws, "pair"))
        length = self.drawn(draws, "length")
        tau_s = self.drawn(draws, "start") * (1.0 - length)
        return diagonal, tau_s, tau_s + length

    def between(self, tau_s: jax.Array, tau_t: jax.Array, uniform: jax.Array) -> jax.Array:
        """tau_u, the intermediate time: half way."""
        return 0.5 * (tau_s + tau_t)

    def drawn(self, draws: dict[str, jax.Array], name: str) -> jax.Array:
        """The numbers of that name, from tau_min to tau_max."""
        permutation = draws[f"{name}_permutation"] if self.stratified else None
        return times.in_range(self.tau_min, self.tau_max, draws[name], permutation)
