"""The kinds of samples: how many of each, their times, and the rows of a micro-batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.losses.kinds import Kinds


def test_official_sizes_of_the_kinds():
    assert Kinds.of(512, 0.5, 1 / 32) == (256, 248, 8)
    assert Kinds.of(128, 0.5, 1 / 32) == (64, 62, 2)


def test_the_kinds_add_up_to_the_batch():
    draw = np.random.default_rng(0)
    fractions = [0.0, 1.0, *draw.uniform(size=10)]
    for size in (1, 2, 7, 32, 513):
        for diagonal in fractions:
            for boundary in fractions:
                counts = Kinds.of(size, diagonal, boundary)
                assert sum(counts) == size and min(counts) >= 0
                assert counts.diagonal == int(size * diagonal)
                assert counts.off_diagonal == size - counts.diagonal
                wanted = size * (1 - diagonal) * boundary
                assert abs(counts.boundary - wanted) <= 1.0


def test_a_sample_takes_the_times_of_its_kind():
    drawn_N = jnp.asarray([0.1, 0.2, 0.3, 0.4, 0.5])
    tau_s, tau_t = Kinds(2, 2, 1).times(drawn_N, drawn_N + 0.1, drawn_N + 0.6)
    np.testing.assert_allclose(tau_s, [0.1, 0.2, 0.4, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(tau_t, [0.1, 0.2, 0.9, 1.0, 1.0], rtol=1e-6)  # none beyond 1


@pytest.mark.parametrize("diagonal", [0, 3, 8])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_the_parts_of_a_micro_batch_cover_its_rows_and_are_joined_by_kind(diagonal, micro_batches):
    kinds = Kinds(diagonal, 8 - diagonal, 0)
    for first in range(micro_batches):
        index_B = jnp.arange(first, 8, micro_batches)
        on, off = kinds.parts(len(index_B))
        assert off.start <= on.stop <= off.start + 1 and off.stop == len(index_B)
        values_BL = 1.0 + index_B[:, None] * jnp.ones((1, 2))
        whole_BL = kinds.join(
            index_B,
            values_BL[on] if on.stop else None,
            -values_BL[off] if off.start < off.stop else None,
        )
        sign_B = np.where(np.asarray(index_B) < diagonal, 1.0, -1.0)
        np.testing.assert_array_equal(whole_BL, sign_B[:, None] * values_BL)
