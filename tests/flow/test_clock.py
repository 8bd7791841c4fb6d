"""The clock against closed forms, published fixtures and its own promises at the ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from flm_jax.flow import clock

# t(tau) of the official tables for K = 30522 and 50258 (tau rounded to float32 first).
TAUS = (1 / 1024, 1 / 8, 1 / 2, 1023 / 1024)
FIXTURES = {
    30522: (0.4811731795, 0.7450813354, 0.8044767956, 0.8806101109),
    50258: (0.5102220877, 0.7523992168, 0.8087411865, 0.8821052938),
}


@pytest.mark.parametrize("vocab_size", FIXTURES)
def test_published_values(vocab_size):
    taus = jnp.asarray(TAUS, jnp.float32)
    expected = np.asarray(FIXTURES[vocab_size])
    built = clock.build(vocab_size)
    np.testing.assert_allclose(built.to_t(taus), expected, atol=1.2e-7)
    with jax.enable_x64(True):
        built = clock.build(vocab_size)
        np.testing.assert_allclose(built.to_t(taus.astype(jnp.float64)), expected, atol=1e-10)


def test_two_tokens_have_a_closed_form():
    t = np.linspace(0.0, 0.99, 50)
    # With two tokens the arg max is right when a standard normal of variance 2 stays below t/(1-t).
    expected = 2 * (special.ndtr(t / (1 - t) / np.sqrt(2)) - 0.5)
    np.testing.assert_allclose(clock.decoding_accuracy(t, 2, "exact"), expected, atol=1e-12)
    np.testing.assert_allclose(clock.decoding_accuracy(t, 2, "gauss_hermite"), expected, atol=1e-4)


@pytest.mark.parametrize("vocab_size", [2, 27, 30522])
@pytest.mark.parametrize("quadrature", ["gauss_hermite", "exact"])
def test_ends_are_exact_and_both_directions_monotone(vocab_size, quadrature):
    built = clock.build(vocab_size, quadrature)
    x = jnp.concatenate(
        [jnp.linspace(0, 1, 20001), 1 - 2.0 ** -jnp.arange(1, 25), 2.0 ** -jnp.arange(1, 30)]
    ).sort()
    t, tau = np.asarray(built.to_t(x)), np.asarray(built.to_tau(x))
    assert t[0] == 0.0 and t[-1] == 1.0 and tau[-1] == 1.0 and tau[0] < 1e-6
    assert np.isfinite(t).all() and np.isfinite(tau).all()
    assert (np.diff(t) >= 0).all() and (np.diff(tau) >= 0).all()


def test_round_trip_and_derivative():
    with jax.enable_x64(True):
        built = clock.build(1000)
        tau = jnp.linspace(0.001, 0.999, 999)
        np.testing.assert_allclose(built.to_tau(built.to_t(tau)), tau, atol=1e-10)
        t, step = jnp.linspace(0.3, 0.9, 61), 1e-6
        slope = (built.to_tau(t + step) - built.to_tau(t - step)) / (2 * step)
        np.testing.assert_allclose(built.dtau_dt(t), slope, rtol=1e-5, atol=1e-7)


def test_float32_is_as_good_as_float64_rounded():
    tau = np.random.default_rng(0).uniform(size=5000).astype(np.float32)
    narrow = np.asarray(clock.build(30522).to_t(tau))
    with jax.enable_x64(True):
        wide = np.asarray(clock.build(30522).to_t(tau.astype(np.float64)))
    np.testing.assert_allclose(narrow, wide, atol=1.2e-7)


def test_answers_in_the_type_of_the_question_but_at_least_float32():
    built = clock.build(27)
    assert built.to_t(jnp.ones(3, jnp.bfloat16)).dtype == jnp.float32
    assert built.to_t(jnp.ones((2, 3))).shape == (2, 3)


def test_a_clock_built_inside_a_trace_serves_outside_of_it_too():
    kept = []

    @jax.jit
    def first_use(tau):
        kept.append(clock.build(27))
        return jax.lax.map(kept[0].to_t, tau)

    tau = jnp.linspace(0, 1, 5)
    expected = clock.build(27).to_t(tau)
    np.testing.assert_array_equal(first_use(tau), expected)
    np.testing.assert_array_equal(kept[0].to_t(tau), expected)
    np.testing.assert_array_equal(jax.jit(kept[0].to_t)(tau), expected)


def test_identity_clock():
    built, x = clock.identity(), jnp.linspace(0, 1, 5)
    np.testing.assert_array_equal(built.to_t(x), x)
    np.testing.assert_array_equal(built.to_tau(x), x)
    np.testing.assert_array_equal(built.dtau_dt(x), 1.0)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="at least 2 tokens, not 1"):
        clock.build(1)
    with pytest.raises(ValueError, match="'simpson'; choose"):
        clock.build(5, "simpson")
