"""The one sampling loop: grid, scan, last step and decode.

A sampler is a frozen dataclass with one rule,

    propose(at, carry, tau_s, tau_t) -> Move(posterior, keep, add, noise)

and the loop applies ``x <- keep * x + add * p + noise * xi``. The last step applies no move: its
posterior *is* the result, and tokens are read from it. Only a move with a ``correction`` is applied
to the end: the result is then the last state, ``keep * x + add * p + correction``.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.contracts import Contract, Needs
from flm_jax.flow import maps
from flm_jax.flow.at import At
from flm_jax.flow.posterior import Combination, Posterior
from flm_jax.sampling import Sampling, SamplingKnobs


class Move(NamedTuple):
    """One step of a sampler. Coefficients are scalars, (B,) or (B, L)."""

    posterior: Posterior
    keep: jax.Array
    add: jax.Array
    noise: jax.Array | float = 0.0
    correction: Combination | None = None

    @property
    def prediction(self) -> Combination:
        """What is added to the state: add * p, and the correction if there is one."""
        prediction = self.posterior.probability(self.add)
        return prediction if self.correction is None else prediction + self.correction


class Carry(NamedTuple):
    """What a sampler of the common loop carries from step to step.

    ``estimate`` (the last prediction, for self-conditioning) and ``given`` (tokens that are not
    written but given) are None: nothing here makes them yet.
    """

    state: jax.Array
    estimate: jax.Array | None = None
    given: jax.Array | None = None


class Trajectory(NamedTuple):
    """What happened on the way, one entry per network evaluation S.

    ``states`` has S + 1 entries: the start, then the state after every step (the last one is the
    mean of the last prediction). ``tokens_SBL`` is the arg max of every prediction and
    ``confidence_SBL`` its probability.
    """

    tau_S: jax.Array
    t_S: jax.Array
    states: jax.Array
    tokens_SBL: jax.Array
    confidence_SBL: jax.Array


def sequence_keys(key: jax.Array, index_B: jax.Array) -> jax.Array:
    """One key per sequence: sample i is the same whatever batch or machine draws it."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)


def loop(step: Callable, state: Any, steps: int) -> tuple[Any, Any]:
    """``state, seen[i] = step(state, i)`` for every i below ``steps``; seen is stacked."""
    return jax.lax.scan(step, state, jnp.arange(steps))


class Written(NamedTuple):
    """Tokens int32 (B, L), the network evaluations int32 (B,) that each sequence took, the way."""

    tokens_BL: jax.Array
    evaluations_B: jax.Array
    trajectory: Trajectory | None


class Sampler(Contract, unfinished=True):
    """How samples are written: a frozen dataclass, a row of `flm_jax.samplers.SAMPLERS`.

    Attributes:
      uses: the sampling knobs (fields of `SamplingKnobs`) that it looks at. One that is also a
        field of the dataclass is given to its constructor.
    """

    uses: ClassVar[frozenset[str]]

    @property
    @abc.abstractmethod
    def needs(self) -> Needs:
        """The networks and the kind of student it is made for."""

    @property
    def stochastic(self) -> bool:
        """Whether a step draws noise."""
        return False

    @property
    def kind(self) -> str:
        """What sentences call it."""
        return f"the sampler {type(self).__name__}"

    @abc.abstractmethod
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
    ) -> Written:
        """Writes one sequence of ``length`` tokens for every key (`sequence_keys`).

        Args:
          sampling: knobs that `without_effect` has no objection to.
          start: a given raw noise (B, L, space.noise_width) instead of a drawn one.
          noise: given raw noise of the steps, (steps - 1, B, L, space.noise_width).
          trajectory: whether to return what happened on the way.
          bos_id: the tokenizer's begin mark, for samplers that start from it.
        """

    def steps_for(self, length: int) -> int | None:
        """The one number of steps in which it writes ``length`` tokens; None: any number."""
        return None

    def check_vocabulary(self, size: int) -> None:
        """UserError for options that do not fit a vocabulary of ``size`` tokens."""

    def without_effect(self, knobs: SamplingKnobs) -> list[str]:
        """A sentence for every knob that is set and would do nothing here."""
        defaults = dataclasses.asdict(SamplingKnobs())
        return [
            f"{name}={value:g} has no effect on {self.kind}; leave it at {defaults[name]:g}, or "
            f"take a sampler that uses it: {', '.join(_users(name))}"
            for name, value in knobs.changed().items()
            if name not in self.uses
        ]


def _users(knob: str) -> list[str]:
    """The samplers that use a knob, and which of them are for flow maps only."""
    from flm_jax.samplers import SAMPLERS

    users = {name: row for name, row in SAMPLERS.items() if knob in row.uses}
    return [
        f"{name} (for flow maps)" if row().needs.two_times else name for name, row in users.items()
    ]


class LoopSampler(Sampler, unfinished=True):
    """A sampler of vectors: one rule, `propose`; the loop around it is common."""

    uses: ClassVar[frozenset[str]] = frozenset(
        {"temperature", "top_p", "denoiser_temperature", "prior_scale", "grid_power", "patience"}
    )

    @abc.abstractmethod
    def propose(self, at: At, carry: Carry, tau_s: jax.Array, tau_t: jax.Array) -> Move:
        """The step from tau_s to tau_t, (B,) each."""

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
    ) -> Written:
        return sample(Steps(self, at, keys_B, sampling, length, noise), start, trajectory)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of one run: what the network says at step i, where that leads, which tokens it is.

    ``keys_B`` has one key per sequence (`sequence_keys`). ``noise`` is given raw noise of the
    steps, (steps - 1, B, L, space.noise_width), instead of drawn noise.
    """

    sampler: LoopSampler
    at: At
    keys_B: jax.Array
    sampling: Sampling
    length: int
    noise: jax.Array | None = None

    @property
    def grid(self) -> jax.Array:
        """tau of every step and of the end, (steps + 1,)."""
        return maps.grid(self.sampling.steps, self.sampling.grid_power)

    def start(self, raw: jax.Array | None) -> Carry:
        """The first state, of given raw noise (B, L, space.noise_width) or of drawn noise."""
        if raw is None:
            raw = self.at.space.noise(self._keys(0), self.length)
        return Carry(self.at.space.scatter(raw, self.sampling.prior_scale))

    def move(self, carry: Carry, i: jax.Array | int) -> Move:
        """What the rule proposes at step i."""
        batch = self.keys_B.shape[0]
        tau_s, tau_t = (jnp.full((batch,), self.grid[j]) for j in (i, i + 1))
        return self.sampler.propose(self.at, carry, tau_s, tau_t)

    def advance(self, carry: Carry, i: jax.Array | int, move: Move) -> Carry:
        """What is carried on after a step that is not the last one."""
        space = self.at.space
        state = space.advance(carry.state, move.keep, 1.0, move.prediction)
        if self.sampler.stochastic:
            if self.noise is not None:
                raw = self.noise[i]
            else:
                keys_B = jax.vmap(jax.random.fold_in, (0, None))(self._keys(1), i)
                raw = space.noise(keys_B, self.length)
            state = space.perturb(state, raw, move.noise)
        return carry._replace(state=state)

    def read(self, move: Move) -> jax.Array:
        """The tokens, int32 (B, L), if this is the last step."""
        if move.correction is not None or self.sampling.temperature == 0.0:
            return self.likeliest(move)
        return move.posterior.sample(self._keys(2), self.sampling.temperature, self.sampling.top_p)

    def likeliest(self, move: Move) -> jax.Array:
        """The arg max of a step's prediction, int32 (B, L)."""
        if move.correction is not None:  # the state's own share, 1e-5, cannot be seen in it
            return move.prediction.argmax()
        return move.posterior.argmax()

    def evaluated(self) -> jax.Array:
        """Evaluations of every sequence after all steps, int32 (B,)."""
        return jnp.full(self.keys_B.shape, self.sampling.steps)

    def _keys(self, purpose: int) -> jax.Array:
        """Keys of the start (0), the steps (1) and the decoding (2)."""
        return jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, purpose)


def sample(run: Steps, start: jax.Array | None = None, trajectory: bool = False) -> Written:
    """The common loop: all steps, and what happened on the way if asked for.

    ``start`` is a given raw noise (B, L, space.noise_width) instead of a drawn one.
    """
    space, last_step = run.at.space, run.sampling.steps - 1

    def observe(carry, move):
        if not trajectory:
            return None
        tokens_BL = run.likeliest(move)
        return carry.state, tokens_BL, jnp.exp(move.posterior.log_prob(tokens_BL))

    def step(carry, i):
        move = run.move(carry, i)
        return run.advance(carry, i, move), observe(carry, move)

    carry, seen = loop(step, run.start(start), last_step)
    last = run.move(carry, last_step)
    tokens_BL = run.read(last)
    if not trajectory:
        return Written(tokens_BL, run.evaluated(), None)
    states, tokens_SBL, confidence_SBL = jax.tree.map(
        lambda many, one: jnp.concatenate([many, one[None]]), seen, observe(carry, last)
    )
    if last.correction is None:
        final = space.advance(carry.state, 0.0, 1.0, last.posterior.probability())
    else:
        final = space.advance(carry.state, last.keep, 1.0, last.prediction)
    states = jnp.concatenate([states, final[None]])
    tau_S = run.grid[:-1]
    path = Trajectory(tau_S, run.at.clock.to_t(tau_S), states, tokens_SBL, confidence_SBL)
    return Written(tokens_BL, run.evaluated(), path)
