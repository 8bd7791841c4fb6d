"""Times for integrals: the right integral for any density, small variance for a good one."""

import numpy as np
import pytest

from flm_jax.flow.importance import Density, systematic

EDGES = np.array([0.0, 0.5, 2.0, 6.0, 7.0])


def density(sizes=(5.0, 3.0, 0.5, 0.0, 0.0)) -> Density:
    return Density.like(EDGES, np.array(sizes))


def test_the_mean_is_the_integral():
    x, weight = density().quantile((np.arange(100_000) + 0.5) / 100_000)
    assert np.mean(weight * np.exp(-x)) == pytest.approx(1 - np.exp(-7.0), rel=1e-6)
    assert np.mean(weight * x**2) == pytest.approx(7.0**3 / 3, rel=1e-5)


def test_every_place_is_reached():
    x, weight = density().quantile(np.array([0.0, 1.0]))
    assert x.tolist() == [0.0, 7.0]
    assert np.all(density().masses > 0.02) and weight[1] < 7.0 / 0.02
    flat = density((0.0,) * 5)
    assert flat.masses.sum() == pytest.approx(1.0) and flat.masses.min() > 0.02


def test_a_density_like_the_function_has_less_variance_than_an_even_one():
    u = np.random.default_rng(0).random(20_000)
    x, weight = density(np.exp(-2 * EDGES)).quantile(u)
    assert (weight * np.exp(-2 * x)).std() < 0.5 * (7.0 * np.exp(-2 * 7.0 * u)).std()


@pytest.mark.parametrize(("rows", "times"), [(1, 1), (5, 1), (4, 8), (7, 3)])
def test_all_numbers_lie_evenly_and_each_row_has_its_share(rows, times):
    u_NT = systematic([3], rows, times)
    assert sorted(np.floor(u_NT * rows * times).ravel().tolist()) == list(range(rows * times))
    assert np.array_equal(np.floor(u_NT * times), np.tile(np.arange(times), (rows, 1)))
    assert not np.array_equal(u_NT, systematic([4], rows, times))
