"""AdamW or Muon with warm-up and gradient clipping, and the EMA of the parameters.

**In place.** A donated state is updated without a copy only if nothing reads an old array after its
new one is written. So every array is first chosen, new or old, and whatever needs the new ones
(the update needs the moments, the EMA needs the parameters) reads the chosen ones, behind a
barrier: without it the compiler computes them again inside the reader, from the old arrays, which
then have to be kept beside the new ones.
"""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from flm_jax.config import OptimConfig
from flm_jax.training import muon
from flm_jax.training.selective import Selective, choose

# Schedules of runs that may get another last step; one that decayed rises to its peak again.
CAN_GO_ON = ("constant", "stable")
NO_END = 2**31 - 1  # the horizon of a run without an end
CLIP_EPS = 1e-6  # the official code divides by norm + 1e-6


class Schedule(Protocol):
    """Learning rate of update number ``count``, 0, 1, ..., of a run of ``horizon`` updates."""

    def __call__(self, count: jax.Array, horizon: jax.Array) -> jax.Array: ...


def schedule(settings: OptimConfig) -> Schedule:
    """Linear from 0 over the warm-up, then the chosen course.

    The first update has learning rate 0 if there is a warm-up, as in the official code. A course
    that decays reaches ``final_scale`` times the peak at the horizon: a cosine or linear one from
    the end of the warm-up on, "stable" only over the last ``decay_fraction`` of all updates. The
    horizon is an array, because a time limit may set it while the run goes on.
    """
    warmup = settings.warmup_steps

    def rate(count: jax.Array, horizon: jax.Array) -> jax.Array:
        decay = jnp.maximum(1, horizon - warmup)
        start = warmup
        if settings.schedule == "stable":
            decay = jnp.maximum(1, jnp.round(settings.decay_fraction * horizon))
            start = jnp.maximum(warmup, horizon - decay)
        part = jnp.clip((count - start) / decay, 0.0, 1.0)
        if settings.schedule == "constant":
            part = jnp.zeros_like(part)
        if settings.schedule == "cosine":
            part = 0.5 * (1.0 - jnp.cos(jnp.pi * part))
        after = 1.0 - (1.0 - settings.final_scale) * part
        if warmup:
            after = jnp.where(count < warmup, count / warmup, after)
        return settings.learning_rate * after

    return rate


def scale_by_rate(rate: Schedule) -> Selective:
    """Minus the learning rate times the update; ``update`` may be told the run's ``horizon``."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, horizon=NO_END, accept=True, **extra):
        del params, extra
        scale = -rate(state.count, jnp.asarray(horizon))
        new = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree.map(lambda u: scale * u, updates), choose(accept, new, state)

    return Selective(init, update)


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


def optimizer(settings: OptimConfig) -> Selective:
    """The transformation of a config section; its ``update`` may be told the ``horizon``.

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
            scale_by_rate(schedule(settings)),
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
