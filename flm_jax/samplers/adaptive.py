"""Sampling that stops early: a text whose tokens no longer change is finished.

The grid and the moves are those of `samplers.base.sample`; only the number of network evaluations
is decided on the way, per sequence. Towards the end of a flow most steps change nothing, so that a
fine grid with early stopping costs about what the hard sequences need.
"""

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow.at import At
from flm_jax.samplers.base import LoopSampler, Sampler, Steps, Written
from flm_jax.sampling import Sampling


def sample_until_stable(
    sampler: Sampler,
    at: At,
    keys_B: jax.Array,
    sampling: Sampling,
    length: int,
    *,
    start: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> Written:
    """Tokens int32 (B, L) and the evaluations int32 (B,) that each sequence took; no trajectory.

    A sequence is finished when the arg max of its prediction stayed the same, at every position,
    over ``sampling.patience`` evaluations after the one that set it. Its tokens are read there, and
    what happens to its state later does not matter. The loop ends when all sequences are finished,
    or with the grid; sequences that never finish early get the very tokens of `base.sample`.

    All sequences of a batch are evaluated until the last one is finished: the time saved is that
    of the slowest, ``evaluations.max()``. Other arguments as for `Sampler.run`.

    Raises UserError for a patience below 1, and for samplers that do not predict a whole text in
    every step.
    """
    patience, steps = sampling.patience, sampling.steps
    if patience < 1:
        raise UserError(f"patience={patience} must be at least 1 unchanged evaluation")
    if not isinstance(sampler, LoopSampler):
        raise UserError(
            f"{type(sampler).__name__} cannot stop early, because its steps do not predict whole "
            "texts; use the sampler euler or flow_map, or leave patience away"
        )
    run = Steps(sampler, at, keys_B, sampling, length, noise)
    batch = keys_B.shape[0]

    def unfinished(carry):
        i, _, _, _, unchanged_B, _ = carry
        return (i < steps - 1) & jnp.any(unchanged_B < patience)

    def step(carry):
        i, state, likeliest_BL, tokens_BL, unchanged_B, evaluations_B = carry
        move = run.move(state, i)
        active_B = unchanged_B < patience
        now_BL = run.likeliest(move)
        same_B = (i > 0) & jnp.all(now_BL == likeliest_BL, axis=1)
        unchanged_B = jnp.where(active_B, jnp.where(same_B, unchanged_B + 1, 0), unchanged_B)
        read_BL = now_BL if sampling.temperature == 0.0 else run.read(move)
        tokens_BL = jnp.where(active_B[:, None], read_BL, tokens_BL)
        state = run.advance(state, i, move)
        return i + 1, state, now_BL, tokens_BL, unchanged_B, evaluations_B + active_B

    none_BL, zero_B = jnp.zeros((batch, length), jnp.int32), jnp.zeros((batch,), jnp.int32)
    first = jnp.int32(0), run.start(start), none_BL, none_BL, zero_B, zero_B
    _, state, _, tokens_BL, unchanged_B, evaluations_B = jax.lax.while_loop(unfinished, step, first)
    active_B = unchanged_B < patience

    def finish():
        return jnp.where(active_B[:, None], run.read(run.move(state, steps - 1)), tokens_BL)

    # A loop that ended early has nobody left for the last step.
    tokens_BL = jax.lax.cond(jnp.any(active_B), finish, lambda: tokens_BL)
    return Written(tokens_BL, evaluations_B + active_B, None)
