"""Learning rates, clipping, AdamW and the EMA against literal numbers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.config import OptimConfig
from flm_jax.training import optim


def rates(steps: int, upto: int, **settings) -> list[float]:
    schedule = optim.schedule(OptimConfig(**settings))
    return [float(schedule(jnp.asarray(i), jnp.asarray(steps))) for i in range(upto)]


def test_official_schedule_starts_at_zero_and_stays_at_the_peak():
    schedule, steps = optim.schedule(OptimConfig()), jnp.asarray(1_000_000)
    values = [float(schedule(jnp.asarray(i), steps)) for i in (0, 1, 1250, 2499, 2500, 999_999)]
    np.testing.assert_allclose(
        values, [0, 3e-4 / 2500, 1.5e-4, 3e-4 * 2499 / 2500, 3e-4, 3e-4], rtol=1e-4
    )


@pytest.mark.parametrize(
    "settings, expected",
    [
        (dict(warmup_steps=0, schedule="constant"), [1, 1, 1, 1, 1, 1]),
        (dict(warmup_steps=2, schedule="constant"), [0, 0.5, 1, 1, 1, 1]),
        (dict(warmup_steps=2, schedule="linear"), [0, 0.5, 1, 0.75, 0.5, 0.25, 0, 0]),
        (
            dict(warmup_steps=2, schedule="linear", final_scale=0.2),
            [0, 0.5, 1, 0.8, 0.6, 0.4, 0.2, 0.2],
        ),
        (
            dict(warmup_steps=2, schedule="stable", decay_fraction=0.5),
            [0, 0.5, 1, 1, 2 / 3, 1 / 3, 0, 0],
        ),
        (
            dict(warmup_steps=1, schedule="stable", decay_fraction=1 / 3, final_scale=0.2),
            [0, 1, 1, 1, 1, 0.6, 0.2],
        ),
        (  # a decay that begins before the warm-up ends
            dict(warmup_steps=4, schedule="stable", decay_fraction=1.0),
            [0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6],
        ),
        (
            dict(warmup_steps=0, schedule="cosine"),
            [1, (1 + np.cos(np.pi / 6)) / 2, 0.75, 0.5, 0.25, (1 - np.cos(np.pi / 6)) / 2, 0],
        ),
        (
            dict(warmup_steps=2, schedule="cosine", final_scale=0.1),
            [0, 0.5, 1, 0.1 + 0.9 * (1 + 0.5**0.5) / 2, 0.55, 0.1 + 0.9 * (1 - 0.5**0.5) / 2, 0.1],
        ),
    ],
)
def test_schedules_of_six_steps(settings, expected):
    found = rates(6, len(expected), learning_rate=1.0, **settings)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "max_norm, gradient, expected",
    [
        (1.0, [3.0, 4.0], [0.6, 0.8]),
        (1.0, [0.3, 0.4], [0.3, 0.4]),
        (2.5, [3.0, 4.0], [1.5, 2.0]),
        (0.0, [3.0, 4.0], [3.0, 4.0]),
        (1.0, [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_clipping_is_by_the_global_norm(max_norm, gradient, expected):
    tree = {"a": jnp.asarray(gradient[:1]), "b": {"c": jnp.asarray(gradient[1:])}}
    clipped, _ = optim.clip_by_norm(max_norm).update(tree, optax.EmptyState())
    np.testing.assert_allclose([clipped["a"][0], clipped["b"]["c"][0]], expected, rtol=1e-5)


def test_clipping_divides_by_norm_plus_a_millionth():
    clipped, _ = optim.clip_by_norm(1.0).update(jnp.asarray([1.0]), optax.EmptyState())
    assert float(clipped[0]) == pytest.approx(1 / (1 + 1e-6), abs=1e-7) and clipped[0] < 1.0


def test_the_optimizer_is_adamw_after_clipping():
    settings = OptimConfig(
        learning_rate=0.1, warmup_steps=1, weight_decay=0.01, beta1=0.9, beta2=0.99, clip_norm=1.0
    )
    transformation = optim.optimizer(settings)
    params = jnp.asarray([1.0, -2.0])
    state = transformation.init(params)
    x, m, v = np.asarray(params, np.float64), np.zeros(2), np.zeros(2)
    for n, gradient in enumerate([[3.0, 4.0], [0.1, -0.2], [1.0, 0.0]], start=1):
        g = np.asarray(gradient) * min(1.0, 1.0 / (np.linalg.norm(gradient) + 1e-6))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        step = m / (1 - 0.9**n) / (np.sqrt(v / (1 - 0.99**n)) + 1e-8) + 0.01 * x
        x = x - (0.0 if n == 1 else 0.1) * step
        updates, state = transformation.update(jnp.asarray(gradient), state, params, horizon=10)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params, x, rtol=1e-5)
        if n == 1:
            np.testing.assert_array_equal(params, [1.0, -2.0])


@pytest.mark.parametrize(
    "n, decay, kept",
    [
        (1, 0.9999, 2 / 11),
        (2, 0.9999, 3 / 12),
        (10, 0.9999, 11 / 20),
        (90, 0.9999, 0.91),
        (90, 0.9, 0.9),
        (10**6, 0.9999, 0.9999),
    ],
)
def test_the_ema_keeps_the_official_share_of_the_past(n, decay, kept):
    ema = optim.ema_update(
        {"w": jnp.asarray([1.0])}, {"w": jnp.asarray([0.0])}, jnp.int32(n), decay
    )
    assert float(ema["w"][0]) == pytest.approx(kept, abs=1e-7)


def test_an_ema_without_decay_is_the_parameters():
    new = jnp.asarray([0.1, -3.0, 1e-6])
    ema = optim.ema_update(jnp.asarray([2.0, 5.0, 1.0]), new, jnp.int32(500), 0.0)
    np.testing.assert_array_equal(ema, new)


def test_the_ema_follows_its_parameters_exactly_when_they_rest():
    x = jnp.asarray([0.1, -3.0])
    np.testing.assert_array_equal(optim.ema_update(x, x, jnp.int32(3), 0.999), x)
