"""The kinds of samples: how many of each, their times, and the rows of a micro-batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.losses.kinds import Kinds


def test_official_sizes_of_the_kinds():
    assert Kinds.of(512, 0.5, 1 / 32) == (256, 248, 8, 0)
    assert Kinds.of(256, 0.5, 1 / 32) == (128, 124, 4, 0)
    assert Kinds.of(128, 0.5, 1 / 32) == (64, 62, 2, 0)
    assert Kinds.of(512, 0.5, 1 / 32, at_zero_fraction=0.25) == (192, 186, 6, 128)


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
                counts = Kinds.of(size, diagonal, boundary, 0.3)
                assert sum(counts) == size and min(counts) >= 0
                assert counts.at_zero == int(0.3 * size)
                assert abs(counts.diagonal - 0.7 * size * diagonal) <= 1.0
                assert abs(counts.boundary - 0.7 * wanted) <= 1.0


def test_a_sample_takes_the_times_of_its_kind():
    drawn_N = jnp.asarray([0.1, 0.2, 0.3, 0.4, 0.5])
    tau_s, tau_t = Kinds(2, 2, 1).times(drawn_N, drawn_N + 0.1, drawn_N + 0.6)
    np.testing.assert_allclose(tau_s, [0.1, 0.2, 0.4, 0.5, 0.0], rtol=1e-6)
    np.testing.assert_allclose(tau_t, [0.1, 0.2, 0.9, 1.0, 1.0], rtol=1e-6)  # none beyond 1
    tau_s, tau_t = Kinds(1, 2, 1, 1).times(drawn_N, drawn_N + 0.1, drawn_N + 0.2)
    np.testing.assert_allclose(tau_s, [0.1, 0.3, 0.4, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(tau_t, [0.1, 0.4, 0.5, 1.0, 0.0], rtol=1e-6)


@pytest.mark.parametrize(
    "kinds", [Kinds(0, 8, 0), Kinds(3, 4, 1), Kinds(8, 0, 0), Kinds(3, 0, 2, 3), Kinds(0, 0, 1, 7)]
)
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_the_parts_of_a_micro_batch_cover_its_rows_and_are_joined_by_kind(kinds, micro_batches):
    group_N = np.repeat([0, 1, 2], kinds.groups)
    for first in range(micro_batches):
        index_B = jnp.arange(first, 8, micro_batches)
        np.testing.assert_array_equal(kinds.group_of(index_B), group_N[index_B])
        parts = kinds.parts(len(index_B))
        assert sum(part.stop - part.start for part in parts) <= len(index_B) + 2  # one row twice
        values_BL = 1.0 + index_B[:, None] * jnp.ones((1, 2))
        values = [
            (1 + group) * values_BL[part] if part.start < part.stop else None
            for group, part in enumerate(parts)
        ]
        whole_BL = kinds.join(index_B, values)
        np.testing.assert_array_equal(whole_BL, (1 + group_N[index_B])[:, None] * values_BL)
