"""Samplers of vectors: one rule, and the two loops around it, over the whole grid or until stable.

A rule is a frozen dataclass with

    propose(at, carry, tau_s, tau_t) -> Move(posterior, keep, add, noise)

and a loop applies ``x <- keep * x + add * p + noise * xi``. The last step applies no move: its
posterior *is* the result, and tokens are read from it. Only a move with a ``correction`` is applied
to the end: the result is then the last state, ``keep * x + add * p + correction``.

A network with self-conditioning is told its last estimate of the clean sequence, which is carried
from step to step; the first one is zero. With ``fixed_point_iterations`` a step asks so many times
at the same state, each time with the estimate of the time before. (FMLM*, arXiv 2607.00714.)

With a patience a sequence whose tokens no longer change is finished. Towards the end of a flow most
steps change nothing, so that a fine grid costs about what the hard sequences need.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from flm_jax.flow import maps
from flm_jax.flow.at import At
from flm_jax.flow.randomness import folded
from flm_jax.samplers import guidance
from flm_jax.samplers.base import Carry, Given, Move, Request, Sampler, Trajectory, Written
from flm_jax.samplers.reward import shift
from flm_jax.sampling import NOTHING_GIVEN, Sampling


class LoopSampler(Sampler, unfinished=True):
    """A sampler of vectors: one rule, `propose`; the loops around it are common."""

    uses: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "top_p", "denoiser_temperature", "prior_scale", "grid_power", "patience"}
    )
    steered: ClassVar[frozenset[str]] = (
        uses | guidance.KNOBS | {"fixed_point_iterations", "reward_scale", "reward_length"}
    )

    @abc.abstractmethod
    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        """The step from tau_s to tau_t, (B,) each."""

    @property
    def fresh(self) -> float:
        """The share of the noise's variance that a step draws anew."""
        return 0.0

    def write(self, asked: Request) -> Written:
        at, keys_B, sampling, length = asked[:4]
        steps = Steps(self, at, keys_B, sampling, length, asked.noise, asked.given)
        if sampling.patience > 0 and not asked.trajectory:
            return until_stable(steps, asked.start)
        return whole_grid(steps, asked.start, asked.trajectory)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of one run: what the network says at step i, where that leads, which tokens it is.

    ``keys_B`` has one key per sequence. ``noise`` is given raw noise of the
    steps, (steps - 1, B, L, space.noise_width), instead of drawn noise. ``given`` tokens are not
    written: the network is told that they are at time 1, and no move changes their state.
    """

    sampler: LoopSampler
    at: At
    keys_B: jax.Array
    sampling: Sampling
    length: int
    noise: jax.Array | None = None
    given: Given | None = None

    @property
    def grid(self) -> jax.Array:
        """tau of every step and of the end, (steps + 1,)."""
        return maps.grid(self.sampling.steps, self.sampling.grid_power)

    def start(self, raw: jax.Array | None) -> Carry:
        """The first state, of given raw noise (B, L, space.noise_width) or of drawn noise."""
        if raw is None:
            raw = self.at.space.noise(self._keys(0), self.length)
        first = state = self.at.space.scatter(raw, self.sampling.prior_scale)
        if self.given is not None:
            state = self.given.clean(self.at.space, state)
        told = self.at.student.self_conditioning
        carry = Carry(state, jnp.zeros_like(state) if told else None, self.given)
        if self.sampling.guided and self.sampling.guide == NOTHING_GIVEN:
            carry = carry._replace(first=first)
        return self.rewarded(carry, 0) if self.sampling.rewarded else carry

    def rewarded(self, carry: Carry, i: jax.Array | int) -> Carry:
        """The state that step i begins with, moved towards more reward."""
        fresh = self.sampler.fresh
        weight = fresh + (1.0 - fresh) / self.sampling.steps
        tau_B = jnp.full(self.keys_B.shape, self.grid[i])
        return shift(self.sampler.propose, self._at(carry), carry, tau_B, self.sampling, weight)

    def move(self, carry: Carry, i: jax.Array | int) -> Move:
        """What the rule proposes at step i."""
        batch = self.keys_B.shape[0]
        tau_s, tau_t = (jnp.full((batch,), self.grid[j]) for j in (i, i + 1))
        at = self._at(carry)

        def again(_, carry):
            return carry._replace(estimate=self.estimate(carry, propose(carry)))

        def propose(carry):
            return self.sampler.propose(at, carry, tau_s, tau_t)

        more = self.sampling.fixed_point_iterations - 1
        carry = jax.lax.fori_loop(0, more, again, carry) if more else carry
        move = propose(carry)
        if not self.sampling.guided:
            return move
        keys_B = folded(self._keys(guidance.PURPOSE), i)
        ask = guidance.Ask(self.sampler.propose, at, tau_s, tau_t, keys_B)
        return ask.guided(move, carry, self.sampling)

    def _at(self, carry: Carry) -> At:
        return self.at if carry.given is None else self.at.given(carry.given.mask_BL)

    def estimate(self, carry: Carry, move: Move) -> jax.Array:
        """`At.estimate` of a step's prediction."""
        given_BL = None if carry.given is None else carry.given.mask_BL
        return self.at.estimate(move.posterior, carry.state, given_BL)

    def advance(self, carry: Carry, i: jax.Array | int, move: Move) -> Carry:
        """What is carried on after a step that is not the last one."""
        space, estimate = self.at.space, None
        if carry.estimate is None:
            state = space.advance(carry.state, move.keep, 1.0, move.prediction)
        else:  # one pass over the vocabulary for both
            given_BL = None if carry.given is None else carry.given.mask_BL
            state, estimate = move.moved(self.at, carry.state, given_BL)
        if self.sampler.stochastic:
            if self.noise is not None:
                raw = self.noise[i]
            else:
                raw = space.noise(folded(self._keys(1), i), self.length)
            state = space.perturb(state, raw, move.noise)
        after = carry._replace(state=self.kept(carry, state), estimate=estimate)
        return self.rewarded(after, i + 1) if self.sampling.rewarded else after

    def kept(self, carry: Carry, state: jax.Array) -> jax.Array:
        """The state after a move: given tokens stay what they are."""
        return state if carry.given is None else carry.given.keep(carry.state, state)

    def read(self, move: Move) -> jax.Array:
        """The tokens, int32 (B, L), if this is the last step."""
        sampling = self.sampling
        if move.correction is not None or sampling.temperature == 0.0:
            return self.likeliest(move)
        drawn_BL = move.posterior.sample(self._keys(2), sampling.temperature, sampling.top_p)
        return drawn_BL if self.given is None else self.given.read(drawn_BL)

    def likeliest(self, move: Move) -> jax.Array:
        """The arg max of a step's prediction, int32 (B, L)."""
        if move.correction is not None:  # the state's own share, 1e-5, cannot be seen in it
            found_BL = move.prediction.argmax()
        elif move.guide is not None:
            found_BL = move.predicted().argmax()
        else:
            found_BL = move.posterior.argmax()
        return found_BL if self.given is None else self.given.read(found_BL)

    def confidence(self, move: Move, tokens_BL: jax.Array) -> jax.Array:
        """The probability of tokens in a step's prediction, (B, L); 1 where they are given."""
        p_BL = jnp.exp(move.posterior.log_prob(tokens_BL))
        return p_BL if self.given is None else jnp.where(self.given.mask_BL, 1.0, p_BL)

    def _keys(self, purpose: int) -> jax.Array:
        """Keys of the start (0), the steps (1) and the decoding (2)."""
        return folded(self.keys_B, purpose)


def loop(step: Callable, state: Any, steps: int) -> tuple[Any, Any]:
    """``state, seen[i] = step(state, i)`` for every i below ``steps``; seen is stacked."""
    return jax.lax.scan(step, state, jnp.arange(steps))


def either(which: jax.Array, yes: Callable, no: Callable, *given: Any) -> Any:
    """``yes(*given)`` or ``no(*given)``; only that one is computed."""
    return jax.lax.cond(which, yes, no, *given)


def whole_grid(run: Steps, start: jax.Array | None, trajectory: bool) -> Written:
    """All steps of every sequence, and what happened on the way if asked for.

    ``start`` is a given raw noise (B, L, space.noise_width), or None.
    """
    space, last_step = run.at.space, run.sampling.steps - 1

    def observe(carry, move):
        if not trajectory:
            return None
        tokens_BL = run.likeliest(move)
        return carry.state, tokens_BL, run.confidence(move, tokens_BL)

    def step(carry, i):
        move = run.move(carry, i)
        return run.advance(carry, i, move), observe(carry, move)

    if last_step == 0 and not trajectory:  # nothing to trace and compile a loop for
        carry, seen = run.start(start), None
    else:
        carry, seen = loop(step, run.start(start), last_step)
    last = run.move(carry, last_step)
    tokens_BL = run.read(last)
    if not trajectory:
        return Written.in_all_steps(tokens_BL, run.sampling.evaluations)
    states, tokens_SBL, confidence_SBL = jax.tree.map(
        lambda many, one: jnp.concatenate([many, one[None]]), seen, observe(carry, last)
    )
    if last.correction is None:
        final = space.advance(carry.state, 0.0, 1.0, last.predicted())
    else:
        final = space.advance(carry.state, last.keep, 1.0, last.prediction)
    states = jnp.concatenate([states, run.kept(carry, final)[None]])
    tau_S = run.grid[:-1]
    path = Trajectory(tau_S, run.at.clock.to_t(tau_S), states, tokens_SBL, confidence_SBL)
    return Written.in_all_steps(tokens_BL, run.sampling.evaluations, path)


def until_stable(run: Steps, start: jax.Array | None) -> Written:
    """The steps that each sequence takes until its tokens stay the same; no trajectory.

    A sequence is finished when the arg max of its prediction stayed the same, at every position,
    over ``patience`` steps after the one that set it. Its tokens are read there, and what
    happens to its state later does not matter. The loop ends when all sequences are finished, or
    with the grid; sequences that never finish early get the very tokens of `whole_grid`.

    All sequences of a batch are evaluated until the last one is finished: the time saved is that
    of the slowest, ``evaluations.max()``.
    """
    patience, steps = run.sampling.patience, run.sampling.steps
    batch, length = run.keys_B.shape[0], run.length

    def unfinished(carry):
        i, _, _, _, unchanged_B, _ = carry
        return (i < steps - 1) & jnp.any(unchanged_B < patience)

    def step(carry):
        i, state, likeliest_BL, tokens_BL, unchanged_B, steps_B = carry
        move = run.move(state, i)
        active_B = unchanged_B < patience
        now_BL = run.likeliest(move)
        same_B = (i > 0) & jnp.all(now_BL == likeliest_BL, axis=1)
        unchanged_B = jnp.where(active_B, jnp.where(same_B, unchanged_B + 1, 0), unchanged_B)
        read_BL = now_BL if run.sampling.temperature == 0.0 else run.read(move)
        tokens_BL = jnp.where(active_B[:, None], read_BL, tokens_BL)
        state = run.advance(state, i, move)
        return i + 1, state, now_BL, tokens_BL, unchanged_B, steps_B + active_B

    none_BL, zero_B = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch,), jnp.int32)
    first = jnp.int32(0), run.start(start), none_BL, none_BL, zero_B, zero_B
    _, state, _, tokens_BL, unchanged_B, steps_B = jax.lax.while_loop(unfinished, step, first)
    active_B = unchanged_B < patience

    def finish():
        return jnp.where(active_B[:, None], run.read(run.move(state, steps - 1)), tokens_BL)

    # A loop that ended early has nobody left for the last step.
    tokens_BL = jax.lax.cond(jnp.any(active_B), finish, lambda: tokens_BL)
    evaluations_B = (steps_B + active_B) * run.sampling.evaluations_per_step
    return Written(tokens_BL, evaluations_B, None)
