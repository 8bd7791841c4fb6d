"""The one sampling loop: grid, scan, last step and decode.

A sampler is a frozen dataclass with one rule,

    propose(nets, space, clock, state, tau_s, tau_t) -> Move(posterior, keep, add, noise)

and the loop applies ``x <- keep * x + add * p + noise * xi``. The last step applies no move: its
posterior *is* the result, and tokens are read from it. Only a move with a ``correction`` is applied
to the end: the result is then the last state, ``keep * x + add * p + correction``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flm_jax.flow import maps
from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Combination, Posterior
from flm_jax.flow.space import OneHot, Projected

Space = OneHot | Projected


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


class Sampler(Protocol):
    """An update rule; a row of `flm_jax.samplers.SAMPLERS`."""

    stochastic: bool  # whether a step draws noise; a class or an instance attribute
    needs_two_times: ClassVar[bool]

    def propose(
        self,
        nets: Mapping[str, Net],
        space: Space,
        clock: Clock,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array,
    ) -> Move: ...


@dataclasses.dataclass(frozen=True)
class Decode:
    """How tokens are read from the last posterior: arg max (temperature 0) or a draw."""

    temperature: float = 0.0
    top_p: float = 1.0

    def __call__(self, posterior: Posterior, keys_B: jax.Array) -> jax.Array:
        if self.temperature == 0.0:
            return posterior.argmax()
        return posterior.sample(keys_B, self.temperature, self.top_p)


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


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of one run: what the network says at step i, where that leads, which tokens it is.

    ``keys_B`` has one key per sequence (`sequence_keys`). ``noise`` is given raw noise of the
    steps, (steps - 1, B, L, space.noise_width), instead of drawn noise.
    """

    sampler: Sampler
    nets: Mapping[str, Net]
    space: Space
    clock: Clock
    keys_B: jax.Array
    steps: int
    length: int
    decode: Decode = Decode()
    noise: jax.Array | None = None
    grid_power: float = 1.0

    @property
    def grid(self) -> jax.Array:
        """tau of every step and of the end, (steps + 1,)."""
        return maps.grid(self.steps, self.grid_power)

    def start(self, raw: jax.Array | None, prior_scale: float) -> jax.Array:
        """The first state, of given raw noise (B, L, space.noise_width) or of drawn noise."""
        if raw is None:
            raw = self.space.noise(self._keys(0), self.length)
        return self.space.scatter(raw, prior_scale)

    def move(self, state: jax.Array, i: jax.Array | int) -> Move:
        """What the rule proposes at step i."""
        batch = self.keys_B.shape[0]
        tau_s, tau_t = (jnp.full((batch,), self.grid[j]) for j in (i, i + 1))
        return self.sampler.propose(self.nets, self.space, self.clock, state, tau_s, tau_t)

    def advance(self, state: jax.Array, i: jax.Array | int, move: Move) -> jax.Array:
        """The state after a step that is not the last one."""
        state = self.space.advance(state, move.keep, 1.0, move.prediction)
        if not self.sampler.stochastic:
            return state
        if self.noise is not None:
            raw = self.noise[i]
        else:
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(self._keys(1), i)
            raw = self.space.noise(keys_B, self.length)
        return self.space.perturb(state, raw, move.noise)

    def read(self, move: Move) -> jax.Array:
        """The tokens, int32 (B, L), if this is the last step."""
        if move.correction is not None:
            return self.likeliest(move)
        return self.decode(move.posterior, self._keys(2))

    def likeliest(self, move: Move) -> jax.Array:
        """The arg max of a step's prediction, int32 (B, L)."""
        if move.correction is not None:  # the state's own share, 1e-5, cannot be seen in it
            return move.prediction.argmax()
        return move.posterior.argmax()

    def _keys(self, purpose: int) -> jax.Array:
        """Keys of the start (0), the steps (1) and the decoding (2)."""
        return jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, purpose)


def sample(
    sampler: Sampler,
    nets: Mapping[str, Net],
    space: Space,
    clock: Clock,
    keys_B: jax.Array,
    *,
    steps: int,
    length: int,
    decode: Decode = Decode(),  # noqa: B008  (frozen)
    prior_scale: float = 1.0,
    grid_power: float = 1.0,
    start: jax.Array | None = None,
    noise: jax.Array | None = None,
    trajectory: bool = False,
) -> tuple[jax.Array, Trajectory | None]:
    """Tokens int32 (B, L) after ``steps`` network evaluations, and the trajectory if asked for.

    Args:
      keys_B: one key per sequence (`sequence_keys`).
      prior_scale: factor on the first noise.
      grid_power: of `flow.maps.grid`; above 1 steps become shorter towards the end.
      start: a given raw noise (B, L, space.noise_width) instead of a drawn one.
      noise: given raw noise of the steps, (steps - 1, B, L, space.noise_width).
    """
    run = Steps(sampler, nets, space, clock, keys_B, steps, length, decode, noise, grid_power)

    def observe(state, move):
        if not trajectory:
            return None
        tokens_BL = run.likeliest(move)
        return state, tokens_BL, jnp.exp(move.posterior.log_prob(tokens_BL))

    def step(state, i):
        move = run.move(state, i)
        return run.advance(state, i, move), observe(state, move)

    state, seen = loop(step, run.start(start, prior_scale), steps - 1)
    last = run.move(state, steps - 1)
    tokens_BL = run.read(last)
    if not trajectory:
        return tokens_BL, None
    states, tokens_SBL, confidence_SBL = jax.tree.map(
        lambda many, one: jnp.concatenate([many, one[None]]), seen, observe(state, last)
    )
    if last.correction is None:
        final = space.advance(state, 0.0, 1.0, last.posterior.probability())
    else:
        final = space.advance(state, last.keep, 1.0, last.prediction)
    states = jnp.concatenate([states, final[None]])
    tau_S = run.grid[:-1]
    return tokens_BL, Trajectory(tau_S, clock.to_t(tau_S), states, tokens_SBL, confidence_SBL)
