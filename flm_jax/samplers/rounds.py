"""Samplers that write a text in rounds: each round commits some tokens, which are given afterwards.

A round starts its open positions from noise, moves them with a rule of its own (``inside``) and
reads the last prediction: the tokens that the sampler commits become given, and the others start
again, from fresh noise or from the noise they had. What is committed never changes. The last round
commits everything. Which tokens are committed is all that a sampler here says (`commit`).

The network evaluations of all rounds are one scan, with carry (state, first state, given tokens).
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
from flm_jax.flow.randomness import folded
from flm_jax.samplers import loops
from flm_jax.samplers.base import Given, Move, Sampler, Trajectory, Written
from flm_jax.sampling import Sampling

AUTO, JUMP, EULER, FRESH = "auto", "jump", "euler", "fresh"


class Schedule(NamedTuple):
    """What every evaluation S is for: its round, its step in tau, whether it is its round's last.

    The first rounds take one evaluation more where rounds do not divide the steps.
    """

    round_S: jax.Array
    tau_S: jax.Array
    tau_next_S: jax.Array
    last_S: jax.Array

    @classmethod
    def of(cls, steps: int, rounds: int, power: float) -> "Schedule":
        """``rounds`` <= ``steps`` of them."""
        each, more = divmod(steps, rounds)

        def tiled(part):
            longer, shorter = part(maps.grid(each + 1, power)), part(maps.grid(each, power))
            return jnp.concatenate([jnp.tile(longer, more), jnp.tile(shorter, rounds - more)])

        counts = jnp.full(rounds, each) + (jnp.arange(rounds) < more)
        round_S = jnp.repeat(jnp.arange(rounds), counts, total_repeat_length=steps)
        last_S = jnp.arange(steps) == (jnp.cumsum(counts) - 1)[round_S]
        return cls(round_S, tiled(lambda tau: tau[:-1]), tiled(lambda tau: tau[1:]), last_S)


class Carry(NamedTuple):
    """Between evaluations: the state, what open positions start from, what is given by now."""

    state: jax.Array
    first: jax.Array
    given: Given
    evaluations_B: jax.Array


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
    )

    def __post_init__(self):
        known = (AUTO, JUMP, EULER, FRESH)
        if self.inside not in known:
            raise UserError(
                f"sampler option inside={self.inside!r} is unknown; choose {' or '.join(known)}"
            )

    @property
    def needs(self) -> Needs:
        return Needs(two_times=self.inside == JUMP, given=True)

    @property
    def stochastic(self) -> bool:
        return True

    def suited(self, two_times: bool) -> Sampler:
        if self.inside != AUTO:
            return self
        return dataclasses.replace(self, inside=JUMP if two_times else FRESH)

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

    def run(
        self,
        at: At,
        keys_B: jax.Array,
        sampling: Sampling,
        length: int,
        *,
        start: jax.Array | None = None,
        noise: jax.Array | None = None,
        trajectory: bool = False,
        bos_id: int | None = None,
        given: Given | None = None,
    ) -> Written:
        """See `samplers.base.Sampler.run`; the steps are the evaluations of all rounds together.

        Rounds in which nothing is open are not evaluated, and not counted, except for a trajectory.

        Args:
          noise: given raw noise for the beginnings of the rounds after the first one,
            (rounds - 1, B, L, space.noise_width).
        """
        space, steps, batch = at.space, sampling.steps, keys_B.shape[0]
        rounds = self.rounds_for(steps, length)
        schedule = Schedule.of(steps, rounds, sampling.grid_power)

        def noised(raw, keys_B):
            raw = space.noise(keys_B, length) if raw is None else raw
            return space.scatter(raw, sampling.prior_scale)

        def inside(carry, i, move):
            state = space.advance(carry.state, move.keep, move.add, move.posterior.probability())
            if self.inside in (AUTO, FRESH):
                raw = space.noise(folded(folded(keys_B, 1), i), length)
                state = space.perturb(state, raw, move.noise)
            return carry._replace(state=carry.given.keep(carry.state, state))

        def end(carry, i, move):
            which, given = schedule.round_S[i], carry.given
            keys_draw, keys_commit = (folded(folded(keys_B, j), which) for j in (2, 3))
            tokens_BL, p_BL = move.posterior.most_likely()
            if sampling.temperature > 0.0:
                tokens_BL = move.posterior.sample(keys_draw, sampling.temperature, sampling.top_p)
            open_BL = ~given.mask_BL
            chosen_BL = self.commit(which, rounds, open_BL, p_BL, keys_commit)
            new_BL = open_BL & (chosen_BL | (which == rounds - 1))
            tokens_BL = jnp.where(new_BL, tokens_BL, given.tokens_BL)
            given = Given(tokens_BL, given.mask_BL | new_BL)
            first = carry.first
            if self.fresh_noise and rounds > 1:
                raw = None if noise is None else noise[jnp.minimum(which, rounds - 2)]
                first = noised(raw, folded(folded(keys_B, 4), which))
            return carry._replace(state=given.clean(space, first), first=first, given=given)

        def move_on(carry, i, move):
            if steps == rounds:
                return end(carry, i, move)
            return loops.either(schedule.last_S[i], end, inside, carry, i, move)

        def step(carry, i):
            times = (schedule.tau_S[i], schedule.tau_next_S[i])
            times_B = [jnp.full((batch,), tau) for tau in times]
            works_B = self.works(schedule.round_S[i], ~carry.given.mask_BL)

            def evaluate(carry):
                here = at.given(carry.given.mask_BL)
                return self.propose(here, carry.state, *times_B)

            if trajectory:
                move = evaluate(carry)
                tokens_BL, p_BL = move.posterior.most_likely()
                p_BL = jnp.where(carry.given.mask_BL, 1.0, p_BL)
                seen = carry.state, carry.given.read(tokens_BL), p_BL
                return move_on(carry, i, move), seen
            after = loops.either(
                jnp.any(works_B), lambda c: move_on(c, i, evaluate(c)), lambda c: c, carry
            )
            return after._replace(evaluations_B=carry.evaluations_B + works_B), ()

        nothing = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch, length), bool)
        given = Given(*nothing) if given is None else given
        given = Given(given.tokens_BL.astype(jnp.int32), given.mask_BL)
        first = noised(start, folded(keys_B, 0))  # that of the other samplers
        start_with = Carry(given.clean(space, first), first, given, jnp.zeros((batch,), jnp.int32))
        carry, seen = loops.loop(step, start_with, steps)
        if not trajectory:
            return Written(carry.given.tokens_BL, carry.evaluations_B, None)
        states = jnp.concatenate([seen[0], carry.state[None]])
        path = Trajectory(schedule.tau_S, at.clock.to_t(schedule.tau_S), states, *seen[1:])
        return Written.in_all_steps(carry.given.tokens_BL, steps, path)

    def propose(self, at: At, state: jax.Array, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        """The step inside a round from tau_s to tau_t, (B,) each."""
        t, t_next = at.clock.to_t(tau_s), at.clock.to_t(tau_t)
        if self.inside == JUMP:
            posterior = at.ask(STUDENT, state, tau_s, tau_t)
            return Move(posterior, *maps.jump(t, t_next, maps.EPS_MAP))
        posterior = at.ask(STUDENT, state, tau_s)
        if self.inside == EULER:
            return Move(posterior, *maps.euler(t, t_next))
        return Move(posterior, jnp.zeros_like(t), t_next, 1.0 - t_next)
