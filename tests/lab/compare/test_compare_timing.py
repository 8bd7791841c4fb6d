"""Which points of a comparison are timed, that it is done once, and what a guide costs."""

import pathlib
from unittest.mock import Mock

import pytest

from flm_jax.lab.compare import timing
from flm_jax.lab.compare.drawing import Trained
from flm_jax.lab.compare.results import Point

GUIDED = (("guidance", 5.0), ("guide", "dropout"))


@pytest.mark.parametrize(
    ("settings", "passes", "steps"),
    [
        ((), 1, 8),
        ((("gamma", 0.5), ("sampler_options.order", "drawn")), 1, 8),
        (GUIDED, 1, 4),
        ((("guidance", 1.0), ("guide", "dropout")), 1, 8),  # at scale 1 nobody is asked
        ((), 2, 4),
        (GUIDED, 3, 2),
        ((("fixed_point_iterations", 4),), 2, 2),
        ((("fixed_point_iterations", 99),), 1, 1),
    ],
)
def test_guides_and_passes_are_paid_from_the_evaluations(settings, passes, steps):
    assert Point("flm", 8, "euler", settings).steps(passes) == steps


POINTS = [
    Point("flm", 2, "euler"),
    Point("flm", 2, "euler", (("prior_scale", 0.8),)),
    Point("flm", 2, "euler", GUIDED),
    Point("flm", 2, "churn"),
    Point("flm", 4, "churn"),
    Point("ar", 13, "autoregressive"),
]


def test_settings_that_take_no_time_are_not_timed():
    assert timing.one_each(POINTS) == [POINTS[0], *POINTS[2:]]


def test_the_slowest_counts_and_nothing_is_timed_twice(tmp_path, monkeypatch):
    asked = []

    def timed(network, points):
        asked.extend(points)
        for point in points:
            yield point, LATENCIES[point.sampler, point.settings]

    made = timing.latency.Latency(
        *[1.0, 8] + [0.0] * 3 + [5, 0.0, 1] + [0.0] * 2, "limit", 0, "", ""
    )
    replaced = timing.dataclasses.replace
    LATENCIES = {
        ("euler", ()): replaced(made, p50_ms=3.0),
        ("euler", GUIDED): replaced(made, p50_ms=2.0),
        ("churn", ()): replaced(made, p50_ms=5.0),
        ("autoregressive", ()): replaced(made, p50_ms=9.0),
    }
    monkeypatch.setattr(timing, "_timed", timed)
    networks = [Trained(name, 1, "", pathlib.Path(name)) for name in ("flm", "ar")]
    wanted = {("flm", 2): 5.0, ("flm", 4): 5.0, ("ar", 13): 9.0}
    assert timing.milliseconds(networks, POINTS, tmp_path) == wanted
    assert asked == timing.one_each(POINTS)
    assert timing.milliseconds(networks, POINTS, tmp_path) == wanted
    more = [*POINTS, Point("flm", 1, "euler")]
    assert timing.milliseconds(networks, more, tmp_path) == wanted | {("flm", 1): 3.0}
    assert asked[-1] == more[-1] and len(asked) == len(timing.one_each(POINTS)) + 1
    (tmp_path / timing.FILE).write_text("{")  # damaged: timed again
    assert timing.milliseconds(networks, POINTS, tmp_path) == wanted


def test_a_network_is_timed_in_the_settings_of_a_point(monkeypatch):
    model = Mock(config=Mock(data=Mock(length=6)))
    monkeypatch.setattr(timing.inference, "load", lambda path: model)
    monkeypatch.setattr(timing.latency, "measure", Mock(return_value="found"))
    network = Trained("flm", 1, "runs/flm_1", pathlib.Path())
    assert list(timing._timed(network, POINTS[2:3])) == [(POINTS[2], "found")]
    arguments, named = timing.latency.measure.call_args
    assert arguments == (model, "euler", GUIDED, 2, 6) and named["max_batch"] == 1
