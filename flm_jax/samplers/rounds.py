"""Samplers that write a text in rounds: each round commits some tokens, which are given afterwards.

A round starts its open positions from noise, moves them with a rule of its own (``inside``) and
reads the last prediction: the tokens that the sampler commits become given, and the others start
again, from fresh noise or from the noise they had. The last round commits everything. Which tokens
are committed is what a sampler here says (`commit`).

What is committed does not change, unless the sampler has a `doubt`. Then an evaluation between two
rounds looks at what was committed before: half of those tokens, drawn by lot, are opened for it
(what a network says at a given token means nothing), and those that it then finds less probable
than the doubt stay open. It is one of the evaluations.

The network evaluations of all rounds are one scan, with carry (state, first state, given tokens,
estimate). Inside a round, a network with self-conditioning is told its last estimate of the clean
sequence; every round begins without one.
"""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import maps
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.randomness import folded, uniforms
from flm_jax.samplers import guidance, loops
from flm_jax.samplers.base import Given, Move, Request, Sampler, Trajectory, Written
from flm_jax.sampling import Sampling

AUTO, JUMP, EULER, FRESH = "auto", "jump", "euler", "fresh"


class Schedule(NamedTuple):
    """What every evaluation S is for: its round, its step in tau, whether it is its round's last.

    The first rounds take one evaluation more where rounds do not divide the steps. ``look_S`` are
    those between two rounds that look at what is committed, if there are any; they ask at tau 0.
    """

    round_S: jax.Array
    tau_S: jax.Array
    tau_next_S: jax.Array
    last_S: jax.Array
    look_S: jax.Array

    @classmethod
    def of(cls, steps: int, rounds: int, power: float, looks: bool = False) -> "Schedule":
        """``rounds`` <= ``steps`` of them, or with looks between them 2 rounds - 1 <= ``steps``."""
        each, more = divmod(steps - looks * (rounds - 1), rounds)

        def tiled(part):
            look = part(jnp.asarray([0.0, 1.0]))[:looks]
            longer, shorter = part(maps.grid(each + 1, power)), part(maps.grid(each, power))
            longer, shorter = (jnp.concatenate([one, look]) for one in (longer, shorter))
            tiles = [jnp.tile(longer, more), jnp.tile(shorter, rounds - more)]
            return jnp.concatenate(tiles)[:steps]

        counts = jnp.full(rounds, each + looks) + (jnp.arange(rounds) < more)
        round_S = jnp.repeat(jnp.arange(rounds), counts, total_repeat_length=steps)
        left_S = (jnp.cumsum(counts) - 1)[round_S] - jnp.arange(steps)
        starts_S, ends_S = tiled(lambda tau: tau[:-1]), tiled(lambda tau: tau[1:])
        return cls(round_S, starts_S, ends_S, left_S == looks, (left_S == 0) & looks)


class Carry(NamedTuple):
    """Between evaluations: the state, what open positions start from, what is given by now."""

    state: jax.Array
    first: jax.Array
    given: Given
    evaluations_B: jax.Array
    estimate: jax.Array | None  # as in `samplers.base.Carry`


@dataclasses.dataclass(frozen=True)
class RoundSampler(Sampler, unfinished=True):
    """A sampler of vectors in rounds; a subclass says how many there are and what they commit.

    Attributes:
      inside: how open positions move between the evaluations of a round. "jump" follows a flow map
        (a network of two times); "euler" and "fresh" are for denoisers: Euler steps of the
        probability flow, or x_t = t * p + (1 - t) * xi with fresh noise xi in every step. "auto"
        is "jump" for a network of two times, else "fresh". No difference with one evaluation a
        round.
      fresh_noise: whether positions that stay open start the next round from fresh noise, or from
        the noise they had.
    """

    inside: str = AUTO
    fresh_noise: bool = True

    uses: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "top_p", "denoiser_temperature", "prior_scale", "grid_power"}
        | guidance.KNOBS
    )

    def __post_init__(self):
        known = (AUTO, JUMP, EULER, FRESH)
        if self.inside not in known:
            raise UserError(
                f"sampler option inside={self.inside!r} is unknown; choose {' or '.join(known)}"
            )

    @property
    def needs(self) -> Needs:
        return Needs(two_times=self.inside == JUMP, given=True, self_conditioning=True)

    @property
    def stochastic(self) -> bool:
        return True

    def suited(self, two_times: bool) -> Sampler:
        if self.inside != AUTO:
            return self
        return dataclasses.replace(self, inside=JUMP if two_times else FRESH)

    @property
    def doubt(self) -> float:
        """What was committed and is less probable than this is opened again; 0: never."""
        return 0.0

    @abc.abstractmethod
    def rounds_for(self, steps: int, length: int) -> int:
        """Into how many rounds, at most ``steps``, so many evaluations are divided."""

    @abc.abstractmethod
    def commit(
        self, which: jax.Array, rounds: int, open_BL: jax.Array, p_BL: jax.Array, keys_B: jax.Array
    ) -> jax.Array:
        """The open tokens that a round commits, bool (B, L); the last round commits all of them.

        Args:
          which: the number of the round, 0 to ``rounds`` - 1.
          open_BL: where tokens are open.
          p_BL: the largest probability of the last prediction, float32.
          keys_B: of this round, for what is drawn.
        """

    def works(self, which: jax.Array, open_BL: jax.Array) -> jax.Array:
        """Whether the round has anything to do, (B,); it is skipped if it has not for any row."""
        return jnp.any(open_BL, axis=1)

    def write(self, asked: Request) -> Written:
        """See `samplers.base.Request`; the steps are the evaluations of all rounds together.

        Rounds in which nothing is open are not evaluated, and not counted, except for a trajectory.
        Given noise is that of the beginnings of the rounds after the first one,
        (rounds - 1, B, L, space.noise_width).
        """
        at, keys_B, sampling, length, start, noise, trajectory, _, given = asked
        if given is None:
            shape = keys_B.shape[0], length
            given = Given(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))
        steps = sampling.steps
        count = self.rounds_for(steps, length)
        schedule = Schedule.of(steps, count, sampling.grid_power, self.doubt > 0.0)
        rounds = Rounds(self, at, keys_B, sampling, length, noise, count, schedule, given.mask_BL)
        begin = rounds.start(start, given)
        if not trajectory:
            carry, _ = loops.loop(rounds.step, begin, steps)
            return Written(carry.given.tokens_BL, carry.evaluations_B, None)
        carry, (states, *seen) = loops.loop(rounds.seen_step, begin, steps)
        states, t_S = jnp.concatenate([states, carry.state[None]]), at.clock.to_t(schedule.tau_S)
        path = Trajectory(schedule.tau_S, t_S, states, *seen)
        return Written.in_all_steps(carry.given.tokens_BL, sampling.evaluations, path)

    def propose(
        self, at: At, carry: Carry | loops.Carry, tau_s: jax.Array, tau_t: jax.Array
    ) -> Move:
        """The step inside a round from tau_s to tau_t, (B,) each."""
        t, t_next = at.clock.to_t(tau_s), at.clock.to_t(tau_t)
        if self.inside == JUMP:
            posterior = at.ask(STUDENT, carry.state, tau_s, tau_t, estimate=carry.estimate)
            return Move(posterior, *maps.jump(t, t_next, maps.EPS_MAP))
        posterior = at.ask(STUDENT, carry.state, tau_s, estimate=carry.estimate)
        if self.inside == EULER:
            return Move(posterior, *maps.euler(t, t_next))
        return Move(posterior, jnp.zeros_like(t), t_next, 1.0 - t_next)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The evaluations of one run in ``count`` rounds; ``noise`` as in `RoundSampler.write`.

    ``fixed_BL``, bool, is what was given from the beginning.
    """

    sampler: RoundSampler
    at: At
    keys_B: jax.Array
    sampling: Sampling
    length: int
    noise: jax.Array | None
    count: int
    schedule: Schedule
    fixed_BL: jax.Array

    def start(self, raw: jax.Array | None, given: Given) -> Carry:
        """Before the first round, from given raw noise or from that of all other samplers."""
        first = self._noise(raw, self._keys(0))
        tokens_BL = given.tokens_BL.astype(jnp.int32)
        none_B = jnp.zeros(self.keys_B.shape, jnp.int32)
        state = given.clean(self.at.space, first)
        told = jnp.zeros_like(state) if self.at.student.self_conditioning else None
        return Carry(state, first, Given(tokens_BL, given.mask_BL), none_B, told)

    def step(self, carry: Carry, i: jax.Array) -> tuple[Carry, tuple]:
        """Evaluation i, unless its round has nothing to do."""
        works_B = self.sampler.works(self.schedule.round_S[i], ~carry.given.mask_BL)
        if self.sampler.doubt:
            committed_B = jnp.any(self.committed(carry), axis=1)
            works_B = jnp.where(self.schedule.look_S[i], committed_B, works_B)
        after = loops.either(
            jnp.any(works_B),
            lambda carry: self.advance(carry, i, self.move(carry, i)),
            lambda carry: carry,
            carry,
        )
        spent_B = works_B * self.sampling.evaluations_per_step
        return after._replace(evaluations_B=carry.evaluations_B + spent_B), ()

    def seen_step(self, carry: Carry, i: jax.Array) -> tuple[Carry, tuple]:
        """Evaluation i, with what a trajectory shows of it."""
        move, given = self.move(carry, i), self.seen(carry, i)
        tokens_BL, p_BL = move.most_likely()
        p_BL = jnp.where(given.mask_BL, 1.0, p_BL)
        return self.advance(carry, i, move), (carry.state, given.read(tokens_BL), p_BL)

    def move(self, carry: Carry, i: jax.Array) -> Move:
        """What the rule inside a round proposes."""
        given, schedule, shape = self.seen(carry, i), self.schedule, self.keys_B.shape
        tau_s, tau_t = (jnp.full(shape, tau[i]) for tau in (schedule.tau_S, schedule.tau_next_S))
        if self.sampler.doubt:
            looking = given.clean(self.at.space, carry.first)
            carry = carry._replace(state=jnp.where(schedule.look_S[i], looking, carry.state))
        at = self.at.given(given.mask_BL)
        move = self.sampler.propose(at, carry, tau_s, tau_t)
        if not self.sampling.guided:
            return move
        keys_B = folded(self._keys(guidance.PURPOSE), i)
        ask = guidance.Ask(self.sampler.propose, at, tau_s, tau_t, keys_B)
        own = loops.Carry(carry.state, carry.estimate, given, carry.first)
        return ask.guided(move, own, self.sampling)

    def committed(self, carry: Carry) -> jax.Array:
        """Where tokens are given that were not from the beginning, bool (B, L)."""
        return carry.given.mask_BL & ~self.fixed_BL

    def seen(self, carry: Carry, i: jax.Array) -> Given:
        """What is given to evaluation i: less than there is, where it looks at some of that."""
        if not self.sampler.doubt:
            return carry.given
        coin_BL = uniforms(folded(self._keys(5), i), self.length) < 0.5
        looked_BL = self.committed(carry) & coin_BL & self.schedule.look_S[i]
        return carry.given._replace(mask_BL=carry.given.mask_BL & ~looked_BL)

    def advance(self, carry: Carry, i: jax.Array, move: Move) -> Carry:
        """After evaluation i: further inside its round, or at the beginning of the next one."""
        if not self.sampler.doubt:
            return self.onwards(carry, i, move)
        look = self.schedule.look_S[i]
        return loops.either(look, self.reopen, self.onwards, carry, i, move)

    def reopen(self, carry: Carry, i: jax.Array, move: Move) -> Carry:
        """After a look at committed tokens: those that are too improbable are open again."""
        tokens_BL, mask_BL = carry.given
        doubted_BL = jnp.exp(move.posterior.log_prob(tokens_BL)) < self.sampler.doubt
        looked_BL = mask_BL & ~self.seen(carry, i).mask_BL
        given = Given(tokens_BL, mask_BL & ~(looked_BL & doubted_BL))
        return carry._replace(given=given, state=given.clean(self.at.space, carry.first))

    def onwards(self, carry: Carry, i: jax.Array, move: Move) -> Carry:
        """After an evaluation of a round."""
        if self.count == self.sampling.steps:
            return self.end(carry, i, move)
        return loops.either(self.schedule.last_S[i], self.end, self.inside, carry, i, move)

    def inside(self, carry: Carry, i: jax.Array, move: Move) -> Carry:
        space, given_BL = self.at.space, carry.given.mask_BL
        state, estimate = move.moved(self.at, carry.state, given_BL)
        if self.sampler.inside in (AUTO, FRESH):
            raw = space.noise(folded(self._keys(1), i), self.length)
            state = space.perturb(state, raw, move.noise)
        return carry._replace(state=carry.given.keep(carry.state, state), estimate=estimate)

    def end(self, carry: Carry, i: jax.Array, move: Move) -> Carry:
        sampler, sampling, given = self.sampler, self.sampling, carry.given
        which, open_BL = self.schedule.round_S[i], ~given.mask_BL
        tokens_BL, p_BL = move.most_likely()
        if sampling.temperature > 0.0:
            keys_B = folded(self._keys(2), which)
            tokens_BL = move.posterior.sample(keys_B, sampling.temperature, sampling.top_p)
        keys_B = folded(self._keys(3), which)
        chosen_BL = sampler.commit(which, self.count, open_BL, p_BL, keys_B)
        new_BL = open_BL & (chosen_BL | (which == self.count - 1))
        tokens_BL = jnp.where(new_BL, tokens_BL, given.tokens_BL)
        given, first = Given(tokens_BL, given.mask_BL | new_BL), carry.first
        if sampler.fresh_noise and self.count > 1:
            raw = None if self.noise is None else self.noise[jnp.minimum(which, self.count - 2)]
            first = self._noise(raw, folded(self._keys(4), which))
        state = given.clean(self.at.space, first)
        told = None if carry.estimate is None else jnp.zeros_like(state)
        return carry._replace(state=state, first=first, given=given, estimate=told)

    def _noise(self, raw: jax.Array | None, keys_B: jax.Array) -> jax.Array:
        """The state of given raw noise, or of drawn noise."""
        raw = self.at.space.noise(keys_B, self.length) if raw is None else raw
        return self.at.space.scatter(raw, self.sampling.prior_scale)

    def _keys(self, purpose: int) -> jax.Array:
        """Of the start (0), steps (1), tokens (2), commits (3), other rounds (4), looks (5)."""
        return folded(self.keys_B, purpose)
