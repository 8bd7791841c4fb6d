"""Coefficients of jumps and of fresh noise: their laws, and the official numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps, times

# (tau_s, tau_u, tau_t) -> weights of x and p1 in X_{s,u}, and lambda; vocabulary of LM1B.
SEMIGROUP = [
    ((0.0, 0.5, 1.0), (0.1955232, 0.8044768), 0.0),
    ((0.2, 0.4, 0.6), (0.8743676, 0.1256323), 0.5365587),
    ((0.5, 0.7, 0.9), (0.9035432, 0.0964568), 0.4080789),
    ((0.0, 0.25, 0.5), (0.2265219, 0.7734781), 0.8298940),
]
# Step of four with gamma 0.8 -> tau~; weights of z and p; correction of p; noise.
GAMMA = [
    (0.983861750, 0.1359131, 0.8640869, -0.0906088, 0.1812175),
    (0.999392500, 0.5178922, 0.4821078, -0.0782093, 0.1564186),
    (0.999991973, 0.5275184, 0.4724816, -0.0687614, 0.1375228),
]


@pytest.fixture
def clock():
    with jax.enable_x64(True):
        yield clock_lib.build(30522)


def triples(n: int = 200) -> list[np.ndarray]:
    """s <= u <= t in [0, 1), float64 arrays (n,)."""
    return list(np.sort(np.random.default_rng(0).uniform(0, 1, (3, n)), axis=0))


@pytest.mark.parametrize("tau, weights, mixture", SEMIGROUP)
def test_official_weights_of_the_first_jump_and_of_the_mixture(clock, tau, weights, mixture):
    s, u, t = (clock.to_t(jnp.float64(x)) for x in tau)
    np.testing.assert_allclose(maps.jump(s, u, maps.EPS_MAP), weights, atol=1.5e-7)
    np.testing.assert_allclose(maps.semigroup_weight(s, u, t), mixture, atol=1e-7)


@pytest.mark.parametrize("step, numbers", list(enumerate(GAMMA)))
def test_official_weights_of_a_step_with_fresh_noise(clock, step, numbers):
    now, then = (clock.to_t(jnp.float64(i / 4)) for i in (step, step + 1))
    aim, keep, add, noise = maps.gamma_noise(now, then, 0.8)
    tau_aim, weight_z, weight_p, correction, level = numbers
    np.testing.assert_allclose(clock.to_tau(aim), tau_aim, atol=1e-9)
    np.testing.assert_allclose(
        [keep, add, noise], [weight_z, weight_p + correction, level], atol=1e-7
    )


def test_a_jump_keeps_a_state_on_the_line_to_a_point_mass():
    """delta = e_y: x_t = (1 - t) eps + t e_y is moved along itself, so that jumps compose."""
    s, u, t = triples()
    eps, clean = 1.7, -0.4
    keep, add = (np.asarray(c, float) for c in maps.jump(s, u))
    x_u = keep * ((1 - s) * eps + s * clean) + add * clean
    np.testing.assert_allclose(x_u, (1 - u) * eps + u * clean, rtol=1e-5)
    keep, add = maps.jump(u, t)
    np.testing.assert_allclose(keep * x_u + add * clean, (1 - t) * eps + t * clean, rtol=1e-4)


def test_the_mixture_of_two_jumps_lands_where_they_lead():
    """For any two predictions: X_{u,t}(X_{s,u}(x)) = X_{s,t}(x) with delta_{s,t} of the law."""
    with jax.enable_x64(True):
        s, u, t = (jnp.asarray(x) for x in triples())
        x, first, second = np.random.default_rng(1).normal(size=(3, s.size))
        (keep, add), (keep_next, add_next) = maps.jump(s, u), maps.jump(u, t)
        landed = keep_next * (keep * x + add * first) + add_next * second
        weight = maps.semigroup_weight(s, u, t, eps=0.0)
        keep, add = maps.jump(s, t)
        mixture = weight * first + (1 - weight) * second
        np.testing.assert_allclose(keep * x + add * mixture, landed, rtol=1e-9, atol=1e-12)
        assert ((0 <= weight) & (weight <= 1)).all()


def test_the_mixture_at_its_ends():
    """At t = 1 and at u = s the second jump decides, at u = t < 1 the first one; s = t is 0."""
    s, t = jnp.asarray([0.2, 0.2, 0.2, 0.4, 1.0]), jnp.asarray([1.0, 0.7, 0.7, 0.4, 1.0])
    u = jnp.asarray([0.6, 0.2, 0.7, 0.4, 1.0])
    np.testing.assert_allclose(maps.semigroup_weight(s, u, t), [0, 0, 1, 0, 0], atol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (3, 4)])
@pytest.mark.parametrize("eps", [0.0, maps.EPS_MAP])
def test_a_clean_state_is_kept(shape, eps):
    """s = 1 would be 0/0; values and gradients stay finite, also beside tokens that move."""
    s = jnp.full(shape, 1.0).at[0].set(0.5)
    keep, add = maps.jump(s, jnp.ones(shape), eps)
    np.testing.assert_array_equal(keep[1:], 1.0)
    np.testing.assert_array_equal(add[1:], 0.0)
    np.testing.assert_allclose([keep[0], add[0]], np.stack([0 * s[0], 0 * s[0] + 1]), atol=1e-7)
    slope = jax.grad(lambda s: sum(map(jnp.sum, maps.jump(s, jnp.ones(shape), eps))))(s)
    assert np.isfinite(slope).all()


def test_a_step_with_noise_at_a_clean_state_keeps_it():
    for gamma in (0.0, 0.5, 1.0):
        _, keep, add, noise = maps.gamma_noise(jnp.ones(2), jnp.ones(2), gamma)
        np.testing.assert_array_equal([keep, add, noise], [[1, 1], [0, 0], [0, 0]])


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_fresh_noise_keeps_mean_and_variance_of_the_marginal(gamma):
    """p = e_y: x_t has mean t e_y and deviation 1 - t; after the step those of t'."""
    with jax.enable_x64(True):
        now, _, then = (jnp.asarray(x) for x in triples())
        aim, keep, add, noise = maps.gamma_noise(now, then, gamma)
        np.testing.assert_allclose(keep * now + add, then, atol=1e-12)
        variance = (keep * (1 - now)) ** 2 + noise**2
        np.testing.assert_allclose(variance, (1 - then) ** 2, atol=1e-12)
        assert (aim >= then - 1e-12).all()
        plain_keep, plain_add = maps.jump(now, then)
        if gamma == 0.0:
            np.testing.assert_allclose([aim, keep, add], [then, plain_keep, plain_add])
        if gamma == 1.0:  # t' p + (1 - t') xi
            np.testing.assert_allclose(keep, 0.0, atol=1e-15)
            np.testing.assert_allclose([aim, add, noise], [0 * then + 1, then, 1 - then])


def test_pairs_are_sorted_neighbours():
    s, t = times.pairs(jnp.asarray([0.9, 0.1, 0.2, 0.3, 0.5, 0.5]))
    np.testing.assert_array_equal([s, t], np.float32([[0.1, 0.2, 0.5], [0.9, 0.3, 0.5]]))
