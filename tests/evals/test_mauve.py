"""MAUVE against its closed forms, and repetition against counting."""

import warnings

import numpy as np
import pytest
from known_chain import Chain

from flm_jax.evals.causal import CausalTruth
from flm_jax.evals.mauve import area, mauve
from flm_jax.evals.repetition import Repetition, of_each


def clouds(n: int, centres: np.ndarray, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return centres[draw.integers(len(centres), size=n)] + 0.1 * draw.normal(size=(n, 8))


EYE = 3 * np.eye(8)


def test_the_area_of_equal_and_of_disjoint_histograms():
    p = np.array([0.5, 0.3, 0.2])
    assert area(p, p) == pytest.approx(1.0)
    # KL(P | R_w) = -log w there, so the curve is ((1 - w)^5, w^5): 5 B(5, 6) = 1 / 252.
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1 / 252, rel=0.01)


def test_the_area_of_two_coins_by_numerical_integration():
    p, q = np.array([0.8, 0.2]), np.array([0.4, 0.6])
    w = np.linspace(0, 1, 200_001)[:, None]
    r = w * p + (1 - w) * q
    x, y = (np.exp(-5 * np.sum(one * np.log(one / r), axis=1)) for one in (q, p))
    # outside of the curve's ends it goes straight down, and straight to the left
    x, y = np.append(np.append(0.0, x[::-1]), 1.0), np.append(np.append(1.0, y[::-1]), 0.0)
    order = np.argsort(x, kind="stable")
    expected = np.trapezoid(y[order], x[order])
    assert area(p, q) == pytest.approx(expected, abs=2e-3)
    assert area(q, p) == pytest.approx(area(p, q))


def test_the_same_texts_have_one_other_texts_nearly_nothing():
    first, again = clouds(300, EYE[:4]), clouds(300, EYE[:4], seed=1)
    assert mauve(first, first) == pytest.approx(1.0)
    assert mauve(first, again) > 0.9
    assert mauve(first, clouds(300, EYE[4:])) == pytest.approx(1 / 252, rel=0.05)
    half = area(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5]))
    assert mauve(first, clouds(300, EYE[2:6])) == pytest.approx(half, rel=0.15)
    assert mauve(first, clouds(300, EYE[:2])) < 0.7  # half of the text is left out
    assert mauve(first, again) == mauve(first, again[:1000])


def test_sets_that_are_too_small_or_all_alike():
    with pytest.raises(ValueError, match="at least 2 texts, not of 1"):
        mauve(EYE[:1], EYE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mauve(np.ones((20, 3)), np.ones((20, 3))) == pytest.approx(1.0)
        assert mauve(np.ones((50, 3)), -np.ones((50, 3))) == pytest.approx(1 / 252, rel=0.01)


def test_features_of_a_judge_are_those_before_its_head():
    """The features of this chain are the log-probabilities of the next letter."""
    chain = Chain()
    truth = CausalTruth(chain.causal_net(), chain.tokenizer, 0, chain.name)
    rows, ends = chain.rows(700, 9), np.arange(700) % 9
    expected = np.log(np.maximum(chain.transitions_VVV[0], 1e-30))[rows[np.arange(700), ends]]
    np.testing.assert_allclose(truth.features(rows, ends), expected, rtol=1e-5)
    scores = truth.score(rows)
    np.testing.assert_allclose(scores, chain.score(rows), rtol=1e-5)


def test_repetition_counts_what_a_set_counts():
    draw = np.random.default_rng(0)
    rows = draw.integers(1, 5, size=(20, 12))
    for n in (1, 2, 3):
        expected = []
        for row in rows[:, 1:].tolist():
            grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
            expected.append(1 - len(set(grams)) / len(grams))
        np.testing.assert_allclose(of_each(rows, n), expected, atol=1e-12)
        assert dict(Repetition()(rows))[f"repetition_{n}"] == pytest.approx(np.mean(expected))
    assert of_each(np.array([[0, 1, 1, 1, 1]]), 1) == pytest.approx(0.75)
    assert np.isnan(of_each(rows[:, :2], 2)).all()
