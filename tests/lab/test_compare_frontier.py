"""Fronts, what is read from them, and whether intervals hold the truth as often as they say."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax.lab.compare import frontier
from flm_jax.lab.compare.frontier import DIVERSITY, ENTROPY, Curve, combined, front, place
from flm_jax.lab.compare.measured import GROUP, Measured
from flm_jax.lab.compare.results import Point

LIKELIHOOD = "nats_per_token/judge"
NUMBERS = st.floats(0, 4).map(lambda x: round(x, 1))


def made(method="flm", evaluations=4, knob=0.0, seed=1, *, n=96, mean=(3.0, 2.0, 0.7), draw=None):
    """Samples whose metrics are normal around (entropy, nats, distinct-4)."""
    generator = np.random.default_rng([seed, n, int(10 * knob)]) if draw is None else draw
    entropy, nats, distinct = mean
    arrays = {
        "entropy": generator.normal(entropy, 0.2, n),
        "distinct_4": generator.normal(distinct, 0.02, n // GROUP),
        "nats/judge": 10 * generator.normal(nats, 0.5, n),
        "tokens/judge": np.full(n, 10),
        "characters/judge": np.full(n, 40),
    }
    point = Point(method, evaluations, "euler", (("temperature", knob),))
    return Measured(point, seed, evaluations, "x", f"{seed:02d}{int(100 * knob):06x}", arrays)


def curve(x_SP, y_SP, x_BP=None, y_BP=None, axis=ENTROPY) -> Curve:
    x_SP, y_SP = np.atleast_2d(x_SP).astype(float), np.atleast_2d(y_SP).astype(float)
    points = tuple(Point("flm", 4, "euler", (("t", i),)) for i in range(x_SP.shape[1]))
    same = [np.repeat(z.mean(0, keepdims=True), 20, axis=0) for z in (x_SP, y_SP)]
    x_BP, y_BP = (z if given is None else given for z, given in zip(same, (x_BP, y_BP)))  # noqa: B905
    return Curve(axis, points, x_SP, y_SP, x_BP, y_BP)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=8), NUMBERS)
def test_reading_is_interpolation_along_the_front(points, target):
    x, y = np.array(points).T
    kept = front(x, y)
    for i, point in enumerate(points):  # by definition
        beaten = any((a >= point[0] and b <= point[1]) and (a, b) != point for a, b in points)
        assert beaten == (point not in {points[j] for j in kept}), i
    assert (np.diff(x[kept]) > 0).all() and (np.diff(y[kept]) > 0).all()
    here = place(x[None], y[None], target, near=0.25)
    value = here.read(y[None])[0]
    if target - 0.25 > x.max():
        assert math.isnan(value)
    else:
        assert value == pytest.approx(np.interp(target, x[kept], y[kept]))
    assert here.bound_B[0] == (target + 0.25 < x[kept].min())


def test_a_line_is_read_exactly_and_points_off_the_front_do_not_matter():
    whole = curve([1.0, 2.0, 3.0, 2.5], [0.1, 0.5, 0.9, 5.0])
    found = whole.at(2.25)
    assert found.value == pytest.approx(0.6) and found.sigma < 1e-12 and not found.bound
    assert whole.at(3.0 + frontier.NEAR[ENTROPY] / 2).value == pytest.approx(0.9)
    assert whole.at(3.0 + 2 * frontier.NEAR[ENTROPY]) is None  # a blank
    more = whole.at(0.5)
    assert more.value == pytest.approx(0.1) and more.bound
    assert list(whole.front()) == [0, 1, 2]


def test_what_most_resamples_do_not_reach_has_no_interval():
    away = np.full((20, 2), 1.0)
    assert math.isnan(curve([1.0, 3.0], [1.0, 2.0], away, away).at(2.0).sigma)


def test_sigma_is_the_larger_of_samples_and_seeds():
    seeds = np.array([1.0, 1.3, 1.6])
    s = 0.3 / math.sqrt(3)
    few = combined(seeds, 0.001)
    assert few.high - few.value == pytest.approx(4.3027 * s, rel=1e-4)
    assert few.sigma == pytest.approx(4.3027 / 1.96 * s, rel=1e-4)
    many = combined(seeds, 2.0)
    assert many.sigma == 2.0 and many.low == pytest.approx(1.3 - 3.92)
    assert combined(seeds[:1], 0.1).sigma == 0.1
    assert combined(seeds, math.nan).sigma == few.sigma  # nothing is known of the samples
    assert math.isnan(combined(seeds[:1], math.nan).sigma)


def test_the_spread_of_seeds_is_that_at_the_place_which_was_read():
    """Seeds move along the line y = x: their values at x = 2 are all alike."""
    moved = np.array([[-0.1], [0.0], [0.1]])
    x = np.array([1.0, 3.0]) + moved
    found = curve(x, x).at(2.0)
    assert found.value == pytest.approx(2.0) and found.sigma == pytest.approx(0.0, abs=1e-9)
    found = curve(x, np.array([1.0, 3.0]) - moved).at(2.0)  # across it: 2 moved
    assert found.sigma == pytest.approx(4.3027 / 1.96 * 0.2 / math.sqrt(3), rel=1e-3)


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_intervals_hold_the_truth_as_often_as_they_say(tau):
    """Three seeds, of standard deviation `tau`; 96 normal samples at each of two knob points.

    The points are (2.9, 1.9) and (3.1, 2.1), so the truth at 3 is 2.
    """
    held, rounds, widths = 0, 200, []
    for i in range(rounds):
        draw = np.random.default_rng(i)
        found = []
        for seed in range(3):
            off = draw.normal(0, tau)
            for x in (2.9, 3.1):
                mean = (x, x - 1 + off, 0.7)
                found.append(made(knob=x, seed=seed, n=96, mean=mean, draw=draw))
        value = frontier.curves(found, ENTROPY, LIKELIHOOD)["flm", 4].at(3.0)
        held += value.low <= 2.0 <= value.high
        widths.append(value.sigma)
    assert held / rounds >= 0.92
    known = math.sqrt(tau**2 / 3 + (0.25 + 0.04) / 2 / 288)  # of the value itself
    assert np.median(widths) < 3 * known  # and they are not too wide


def test_resamples_of_groups_have_the_deviation_of_their_mean():
    found = made(n=GROUP * 12)
    x_B, y_B = found.resampled(DIVERSITY, LIKELIHOOD)
    spread = np.std(found.arrays["distinct_4"], ddof=1) / math.sqrt(12)
    assert x_B.std() == pytest.approx(spread, rel=0.15)
    assert spread == pytest.approx(found.sigma(DIVERSITY))
    assert y_B.mean() == pytest.approx(found.value(LIKELIHOOD), abs=0.02)
    assert np.isnan(made(n=GROUP + 5).resampled(DIVERSITY, LIKELIHOOD)[0]).all()  # one group
    x_B, y_B = found.resampled(ENTROPY, LIKELIHOOD)
    assert x_B.std() == pytest.approx(found.sigma(ENTROPY), rel=0.15)
    assert y_B.std() == pytest.approx(found.sigma(LIKELIHOOD), rel=0.15)


def test_the_standard_error_of_a_quotient():
    """Of samples of different lengths; against its spread over many draws."""

    def draw(seed):
        generator = np.random.default_rng(seed)
        size = generator.integers(5, 50, 200)
        arrays = {"entropy": size, "nats/j": size * 2 + generator.normal(0, 9, 200)}
        return Measured(Point("m", 1, "s"), 0, 1, "", "00", arrays | {"tokens/j": size})

    many = [draw(seed).value("nats_per_token/j") for seed in range(300)]
    assert draw(0).sigma("nats_per_token/j") == pytest.approx(np.std(many), rel=0.2)
    assert np.isnan(draw(0).value("nats_per_character/j")) and np.isnan(draw(0).value("nothing"))


def test_only_points_of_all_seeds_are_pooled():
    both = [made(knob=0.5, seed=seed) for seed in (1, 2)]
    alone = made(knob=0.9, seed=1, mean=(3.0, 0.1, 0.7))
    assert len(frontier.curves([*both, alone], ENTROPY, LIKELIHOOD)["flm", 4].points) == 1
    assert ("mdlm", 4) not in frontier.curves(
        [made("mdlm", knob=0.1, seed=1), made("mdlm", knob=0.2, seed=2)], ENTROPY, LIKELIHOOD
    )


def test_points_that_values_are_read_from_are_chosen():
    """Entropies 2.0 to 3.2; real text has 3.0. Of distinct-4 all have that of real text."""
    real = made("real text", 0, mean=(3.0, 2.0, 0.7), n=960)
    found = [
        made(knob=x, mean=(x, x - 1, 0.7 + 0.1 * (x - 3)), n=960)
        for x in (2.0, 2.4, 2.62, 3.2, 3.4)
    ]
    found.append(made(knob=2.5, mean=(2.5, 3.5, 0.65), n=960))  # never on a front
    chosen = [dict(point.settings)["temperature"] for point in frontier.choose(found, real)]
    # 2.0 is the likeliest; 2.62 and 3.2 are around 2.7 to 3.0 and around their distinct-4
    assert 2.0 in chosen and {2.62, 3.2} <= set(chosen)
    assert not {2.5, 3.4} & set(chosen)
    assert frontier.headline(real) == LIKELIHOOD
