"""AdamW with warm-up and gradient clipping, and the moving average of the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

CLIP_EPS = 1e-6  # the official code divides by norm + 1e-6


def schedule(settings: Any, steps: int) -> optax.Schedule:
    """Learning rate of update 0, 1, ...: linear from 0 over the warm-up, then the chosen course.

    The first update has learning rate 0 if there is a warm-up, as in the official code. ``steps``
    is where a cosine or linear course reaches ``final_scale`` times the peak.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    rest = max(1, steps - warmup)
    if settings.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=settings.final_scale)
    elif settings.schedule == "linear":
        after = optax.linear_schedule(peak, peak * settings.final_scale, rest)
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


def optimizer(settings: Any, steps: int) -> optax.GradientTransformation:
    """The transformation of a `config.Optim` section for a run of ``steps`` updates."""
    return optax.chain(
        clip_by_norm(settings.clip_norm),
        optax.adamw(
            schedule(settings, steps),
            b1=settings.beta1,
            b2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        ),
    )


def ema_update(ema: Any, params: Any, updates: jax.Array, decay: float) -> Any:
    """The average after update number ``updates`` (1, 2, ...), with the official warm-up.

    d_n = min(decay, (1 + n) / (10 + n)); ema <- ema - (1 - d_n) * (ema - params), float32.
    Without decay the average is the parameters, exactly.
    """
    if decay == 0.0:
        return params
    n = updates.astype(float)
    rate = jnp.maximum(1.0 - decay, 9.0 / (10.0 + n))  # 1 - d_n without float32 cancellation
    return jax.tree.map(lambda average, new: average - rate * (average - new), ema, params)
