"""The one sampling loop: grid, scan, last step and decode.

A sampler is a frozen dataclass with one rule,

    propose(nets, space, clock, state, tau_s, tau_t) -> Move(posterior, keep, add, noise)

and the loop applies ``x <- keep * x + add * p + noise * xi``. The last step applies no move: its
posterior *is* the result, and tokens are read from it. Only a move with a ``correction`` is applied
to the end: the result is then the last state, ``keep * x + add * p + correction``.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flm_jax.flow.clock import Clock
from flm_jax.flow.maps import linear_grid
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
    start: jax.Array | None = None,
    noise: jax.Array | None = None,
    trajectory: bool = False,
) -> tuple[jax.Array, Trajectory | None]:
    """Tokens int32 (B, L) after ``steps`` network evaluations, and the trajectory if asked for.

    Args:
      keys_B: one key per sequence (`sequence_keys`).
      prior_scale: factor on the first noise.
      start: a given raw noise (B, L, space.noise_width) instead of a drawn one.
      noise: given raw noise of the steps, (steps - 1, B, L, space.noise_width).
    """
    keys_start, keys_steps, keys_decode = (
        jax.vmap(jax.random.fold_in, (0, None))(keys_B, i) for i in range(3)
    )
    if start is None:
        start = space.noise(keys_start, length)
    state = space.scatter(start, prior_scale)
    grid = linear_grid(steps)
    batch = keys_B.shape[0]

    def read(move, keys):
        if move.correction is not None:  # the state's own share, 1e-5, cannot be seen in it
            return move.prediction.argmax()
        return move.posterior.argmax() if keys is None else decode(move.posterior, keys)

    def move(state, i):
        tau_s, tau_t = (jnp.full((batch,), grid[j]) for j in (i, i + 1))
        return sampler.propose(nets, space, clock, state, tau_s, tau_t)

    def observe(state, move):
        if not trajectory:
            return None
        tokens_BL = read(move, None)
        return state, tokens_BL, jnp.exp(move.posterior.log_prob(tokens_BL))

    def step(state, i):
        step_move = move(state, i)
        seen = observe(state, step_move)
        state = space.advance(state, step_move.keep, 1.0, step_move.prediction)
        if sampler.stochastic:
            if noise is not None:
                raw = noise[i]
            else:
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys_steps, i)
                raw = space.noise(keys, length)
            state = space.perturb(state, raw, step_move.noise)
        return state, seen

    state, seen = jax.lax.scan(step, state, jnp.arange(steps - 1))
    last = move(state, steps - 1)
    tokens_BL = read(last, keys_decode)
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
    tau_S = grid[:-1]
    return tokens_BL, Trajectory(tau_S, clock.to_t(tau_S), states, tokens_SBL, confidence_SBL)
