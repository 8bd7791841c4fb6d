"""AdamW or Muon with warm-up and gradient clipping, and the EMA of the parameters.

**In place.** A donated state is updated without a copy only if nothing reads an old array after its
new one is written. So every array is first chosen, new or old, and whatever needs the new ones
(the update needs the moments, the EMA needs the parameters) reads the chosen ones, behind a
barrier: without it the compiler computes them again inside the reader, from the old arrays, which
then have to be kept beside the new ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flm_jax.training import muon
from flm_jax.training.selective import Selective, choose, selective

CLIP_EPS = 1e-6  # the official code divides by norm + 1e-6


def schedule(settings: Any, steps: int) -> optax.Schedule:
    """Learning rate of update 0, 1, ...: linear from 0 over the warm-up, then the chosen course.

    The first update has learning rate 0 if there is a warm-up, as in the official code. ``steps``
    is where a course that decays reaches ``final_scale`` times the peak: a cosine or linear one
    from the end of the warm-up on, "stable" only over the last ``decay_fraction`` of all steps.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    rest = max(1, steps - warmup)
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=settings.final_scale)
    elif settings.schedule == "linear":
        after = optax.linear_schedule(peak, peak * settings.final_scale, rest)
    elif settings.schedule == "stable":
        decay = max(1, round(settings.decay_fraction * steps))
        falling = optax.linear_schedule(peak, peak * settings.final_scale, decay)
        level = max(0, rest - decay)
        after = optax.join_schedules([optax.constant_schedule(peak), falling], [level])
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients to a global norm of at most ``max_norm`` (0 = leave them)."""

    def update(updates, state, params=None):
        del params
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + CLIP_EPS))
        return jax.tree.map(lambda g: g * scale, updates), state

    if max_norm == 0.0:
        return optax.identity()
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adam(beta1: float, beta2: float, eps: float) -> Selective:
    """Adam's direction; numbers and state are those of `optax.scale_by_adam`, in place."""

    def update(updates, state, params=None, *, accept=True, **extra):
        del params, extra
        new = optax.ScaleByAdamState(
            optax.safe_increment(state.count),
            optax.tree.update_moment(updates, state.mu, beta1, 1),
            optax.tree.update_moment_per_elem_norm(updates, state.nu, beta2, 2),
        )
        state = choose(accept, new, state)
        mu, nu = jax.lax.optimization_barrier((state.mu, state.nu))
        mu = optax.tree.bias_correction(mu, beta1, new.count)
        nu = optax.tree.bias_correction(nu, beta2, new.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), state

    return Selective(optax.scale_by_adam().init, update)


def optimizer(settings: Any, steps: int) -> Selective:
    """The transformation of a `config.OptimConfig` section for a run of ``steps`` updates.

    The state is that of `optax.adamw` after a clipping; with ``name`` "muon" Adam's part of it is
    that of `muon.partitioned`.
    """
    direction = adam(settings.beta1, settings.beta2, settings.eps)
    if settings.name == "muon":
        direction = muon.partitioned(direction)
    chain = optax.chain(
        clip_by_norm(settings.clip_norm),
        optax.chain(
            direction,
            optax.add_decayed_weights(settings.weight_decay),
            selective(optax.scale_by_learning_rate(schedule(settings, steps))),
        ),
    )
    return Selective(chain.init, chain.update)  # all that has a state in it is selective


def ema_update(ema: Any, params: Any, updates: jax.Array, decay: float) -> Any:
    """The EMA after update number ``updates`` (1, 2, ...), with the official warm-up.

    d_n = min(decay, (1 + n) / (10 + n)); ema <- ema - (1 - d_n) * (ema - params), float32.
    Without decay the EMA is the parameters, exactly.
    """
    if decay == 0.0:
        return params
    n = updates.astype(float)
    rate = jnp.maximum(1.0 - decay, 9.0 / (10.0 + n))  # 1 - d_n without float32 cancellation
    return jax.tree.map(lambda old, new: old - rate * (old - new), ema, params)
