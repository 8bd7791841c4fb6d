"""The order of rows: a bijection for every count, no pattern, and never another one."""

import itertools

import numpy as np
import pytest

from flm_jax.data.shuffle import shuffled


@pytest.mark.parametrize("count", [*range(1, 30), 121, 65537, 100_003])
def test_each_epoch_is_a_permutation(count):
    rows_N = shuffled(np.arange(3 * count), count, 5)
    for epoch_N in rows_N.reshape(3, count):
        np.testing.assert_array_equal(np.sort(epoch_N), np.arange(count))


def test_any_part_is_that_of_the_whole_and_places_may_be_huge():
    whole_N = shuffled(np.arange(500), 77, 3)
    places = np.array([499, 0, 76, 77, 312, 312])
    np.testing.assert_array_equal(shuffled(places, 77, 3), whole_N[places])
    count = (1 << 33) + 7
    far_N = shuffled(np.arange(6) * (1 << 60), count, 0)
    assert len(set(far_N)) == 6 and far_N.min() >= 0 and far_N.max() < count


def test_the_order_is_without_pattern():
    count = 10_007
    epochs = [shuffled(np.arange(count) + e * count, count, s) for s in (0, 1) for e in (0, 1)]
    for first_N, second_N in itertools.combinations([np.arange(count), *epochs], 2):
        assert (first_N == second_N).sum() < 10  # one is expected
        assert abs(np.corrcoef(first_N, second_N)[0, 1]) < 0.05
    for epoch_N in epochs:
        steps_N = np.diff(epoch_N) % count
        shares = np.bincount(steps_N * 10 // count, minlength=10) / len(steps_N)
        assert np.abs(shares - 0.1).max() < 0.02
        assert abs(np.corrcoef(epoch_N[:-1], epoch_N[1:])[0, 1]) < 0.05
    starts = np.array([shuffled(np.arange(1), 5, seed)[0] for seed in range(2000)])
    assert np.abs(np.bincount(starts) / 2000 - 0.2).max() < 0.04


def test_the_order_never_changes():
    """Checkpoints go on in it: if it must change, raise `_ORDER` in pipeline.py."""
    assert shuffled(np.arange(8), 1000, 1).tolist() == [785, 882, 729, 244, 261, 64, 975, 553]
    assert shuffled(np.arange(8) + 10**12, 123_456_789, 7).tolist() == [
        13640613,
        81442628,
        17226173,
        40606844,
        6188048,
        20142682,
        13377783,
        28806093,
    ]
