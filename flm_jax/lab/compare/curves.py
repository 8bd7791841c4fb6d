"""What the pictures of a comparison show, from results.json: the same for pages and files."""

from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.evals import verdict
from flm_jax.lab.compare import findings, frontier, tables
from flm_jax.lab.compare.findings import Results
from flm_jax.lab.compare.frontier import DIVERSITY, ENTROPY
from flm_jax.lab.compare.tables import NAMES
from flm_jax.report.charts import Series
from flm_jax.report.svg import Picture

_BANDS = {ENTROPY: 0.1, DIVERSITY: verdict.MATCHED}
_COLOURS = tuple(f"s{i}" for i in (1, 3, 4, 5, 6, 7, 9, 10))  # s2 is real text, s8 landmarks


def every(results: Results) -> list[Picture]:
    """All pictures that there is something for, the headlines first."""
    made = [over(results, axis, milliseconds(results)) for axis in NAMES]
    made += [over(results, axis, None) for axis in NAMES]
    made += [fronts(results, axis, n) for n in tables.numbers(results) for axis in NAMES]
    return [picture for picture in made if picture.series]


def milliseconds(results: Results) -> dict[tuple[str, int], float]:
    return {
        (row["method"], row["evaluations"]): row["milliseconds"] for row in results["latencies"]
    }


def over(results: Results, axis: str, times: Mapping[tuple[str, int], float] | None) -> Picture:
    """Nats at the diversity of real text, over evaluations or (with `times`) over milliseconds."""
    found = findings.pick(results, results["headline"], axis, 0.0)
    made = []
    for method in tables.methods(results):
        curve = sorted(
            (n if times is None else times[method, n], value.value)
            for (name, n), value in found.items()
            if name == method and (times is None or (method, n) in times)
        )
        if curve:
            made.append(_line(results, method, curve))
    what = "evaluations" if times is None else "milliseconds"
    title = "evaluations of the network" if times is None else "milliseconds a sample"
    return Picture(
        f"{what}_{axis}",
        f"At the {NAMES[axis]} of real text, over {title}",
        what,
        _unit(results),
        tuple(made),
        log_x=True,
        level=results["real"]["values"].get(results["headline"]),
    )


def fronts(results: Results, axis: str, number: int) -> Picture:
    """The fronts of all methods at one number of evaluations, with real text among them."""
    likelihood, real = results["headline"], results["real"]["values"]
    made = []
    for method in tables.methods(results):
        points = means(results, method, number, (axis, likelihood))
        if points:
            x, y = np.array(points).T
            kept = frontier.front(x, y)
            made.append(_line(results, method, list(zip(x[kept], y[kept], strict=True))))
    centre, level = real.get(axis), real.get(likelihood)
    band = None
    if made and centre is not None and level is not None:
        highest = max(float(one.y.max()) for one in made)
        made.append(_series("real text", [(centre, level)], "s2"))
        band = centre - _BANDS[axis], centre + _BANDS[axis]
        for one in results["landmarks"]:
            x, y = (one["values"].get(metric) for metric in (axis, likelihood))
            if x is not None and y is not None and y <= highest:  # others would fill the picture
                made.append(_series(one["name"], [(x, y)], "s8"))
    return Picture(
        f"front_{axis}_{number}",
        f"{number} evaluation{'s' * (number != 1)}: what knobs reach",
        f"{NAMES[axis]} {'between samples' if axis == DIVERSITY else 'in a sample'}",
        _unit(results),
        tuple(made),
        band=band,
    )


def means(
    results: Results, method: str, number: int, metrics: Sequence[str]
) -> list[tuple[float, ...]]:
    """Of every point of a method that has them, as means over seeds."""
    by_point: dict[str, list[list[float]]] = {}
    for row in results["points"]:
        if (row["method"], row["evaluations"]) == (method, number):
            values = [row["values"].get(metric) for metric in metrics]
            if None not in values:
                by_point.setdefault(row["knobs"], []).append(values)
    return [tuple(np.mean(many, axis=0).tolist()) for many in by_point.values()]


def _line(results: Results, method: str, points: Sequence[tuple[float, float]]) -> Series:
    place = tables.methods(results).index(method)
    return _series(method, points, _COLOURS[place % len(_COLOURS)])


def _series(name: str, points: Sequence[tuple[float, float]], colour: str) -> Series:
    x, y = np.array(points, np.float64).T
    return Series(name, x, y, colour=colour, dots=True)


def _unit(results: Results) -> str:
    return f"nats per token under {tables.judge_of(results['headline'])}"
