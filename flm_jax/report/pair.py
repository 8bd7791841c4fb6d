"""The verdict as pictures: likelihood against diversity, and against evaluations of the network."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flm_jax.evals import verdict
from flm_jax.evals.verdict import Pairs
from flm_jax.report.charts import Series, chart, framed, labelled, ticks
from flm_jax.report.markup import escape, is_number, plural
from flm_jax.report.workdir import Json, Run

_COLOURS = {"model": "s1", "yardstick": "s6", "data": "s2"}
_APART = 6.0  # per cent of the height between two labels that stand side by side
_LETTER = 1.7  # per cent of the width
_EDGES = (-verdict.MATCHED, verdict.MATCHED)


def pair(run: Run) -> str:
    """Sentences and both pictures; only sentences where there is nothing to draw."""
    rows = run.results.get("rows", [])
    said = "".join(f"<li>{escape(text)}</li>" for text in run.results.get("verdict", []))
    said = f'<ul class="verdict">{said}</ul>' if said else ""
    pairs = verdict.read(rows)
    if pairs is None:
        return said
    over = _over_evaluations(rows, pairs)
    return f'{said}<div class="pair">{_scatter(rows, pairs)}{over}</div>'


@dataclasses.dataclass(frozen=True)
class _Mark:
    """A labelled point, in per cent of the width from the left and of the height from the top."""

    across: float
    down: float
    label: str
    kind: str
    help: str


def _scatter(rows: Sequence[Json], pairs: Pairs) -> str:
    """Nats against distinct-4, with the band in which diversity counts as that of real text."""
    points = pairs.points.values()
    matched = [pairs.real.diversity + edge for edge in _EDGES]
    left, right = _range([*(point.diversity for point in points), *matched])
    bottom, top = _range([point.nats for point in points])
    marks = [
        _Mark(
            100 * (point.diversity - left) / (right - left),
            100 * (top - point.nats) / (top - bottom),
            _label(rows[place]),
            rows[place]["kind"],
            f"{point.name}: {verdict.sentence(point, pairs.real, pairs.unit)}",
        )
        for place, point in pairs.points.items()
    ]
    keys = "".join(
        f'<span class="key" data-colour="{_COLOURS[kind]}">{name}</span>'
        for kind, name in (("model", "model"), ("data", "real text"), ("yardstick", "baselines"))
        if any(mark.kind == kind for mark in marks)
    )
    plot = framed(
        "lin",
        [((x - left) / (right - left), label) for x, label in labelled(ticks(left, right, 6))],
        [((top - y) / (top - bottom), label) for y, label in labelled(ticks(bottom, top))],
        "distinct-4 between samples: alike on the left, different on the right",
        "; ".join(mark.help for mark in marks),
        band=((matched[0] - left) / (right - left), (matched[1] - left) / (right - left)),
        above=_dots(marks),
    )
    return (
        f'<figure class="chart scatter"><figcaption><b>Likelihood and diversity</b>{keys}'
        f'<span class="unit">nats per {pairs.unit}, lower is likelier · band: as diverse as real '
        f'text, where alone "best" is said</span></figcaption>'
        f"{plot}</figure>"
    )


def _dots(marks: Sequence[_Mark]) -> str:
    """Points with labels that lie neither on each other nor, where it can be, on points."""
    drawn, taken = [], []
    for mark in sorted(marks, key=lambda mark: mark.down):
        others = [other for other in marks if other is not mark]
        left = not _is_free(mark, others, 1) and _is_free(mark, others, -1)
        start, end = _span(mark, -1 if left else 1)
        near = [down for a, b, down in taken if a < end and start < b]
        places = sorted((mark.down + n for n in range(-40, 41)), key=lambda at: abs(at - mark.down))
        free = (at for at in places if 0 < at < 98 and all(abs(at - x) >= _APART for x in near))
        down = next(free, mark.down)
        taken.append((start, end, down))
        paint = f'data-colour="{_COLOURS.get(mark.kind, "s1")}"'
        drawn.append(
            f'<i class="point" {paint} style="left:{mark.across:.2f}%;top:{mark.down:.2f}%" '
            f'title="{escape(mark.help)}"></i><span class="mark{" left" * left}" '
            f'style="left:{mark.across:.2f}%;top:{down:.2f}%">{escape(mark.label)}</span>'
        )
    return "".join(drawn)


def _span(mark: _Mark, side: int) -> tuple[float, float]:
    """From where to where a label reaches, on the right (1) or the left (-1) of its point."""
    other = mark.across + side * (2 + _LETTER * len(mark.label))
    return min(mark.across, other), max(mark.across, other)


def _is_free(mark: _Mark, others: Sequence[_Mark], side: int) -> bool:
    start, end = _span(mark, side)
    covered = (abs(o.down - mark.down) < _APART / 2 and start <= o.across <= end for o in others)
    return start >= 0 and end <= 100 and not any(covered)


def _label(row: Json) -> str:
    """Of a model's row "8 steps", with the knob that was swept; its name otherwise."""
    if row["kind"] != "model" or not is_number(row.get("steps")):
        return row["name"]
    return plural(row["steps"], "step") + row["name"].removeprefix(row.get("method", row["name"]))


def _over_evaluations(rows: Sequence[Json], pairs: Pairs) -> str:
    """Nats against evaluations of the network, real text as a line to reach; "" for one number."""
    found: dict[str, list[tuple[int, float]]] = {}
    for place, point in pairs.points.items():
        if rows[place]["kind"] == "model" and is_number(rows[place].get("steps")):
            knob = point.name.removeprefix(rows[place].get("method", point.name)).strip(", ")
            found.setdefault(knob or "model", []).append((rows[place]["steps"], point.nats))
    steps = sorted({n for curve in found.values() for n, _ in curve})
    if len(steps) < 2:
        return ""
    lines = []
    for i, (name, curve) in enumerate(found.items()):
        x, y = np.array(sorted(curve), dtype=np.float64).T
        lines.append(Series(name, x, y, colour=f"s{(0, 2, 3, 4, 5)[i % 5] + 1}", dots=True))
    ends = np.array([steps[0], steps[-1]], dtype=np.float64)
    lines.append(Series("real text", ends, np.full(2, pairs.real.nats), colour="s2"))
    title, unit = "Likelihood against evaluations", f"nats per {pairs.unit}"
    return chart("nats-steps", title, lines, "evaluations of the network", unit)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.1
    return low - margin, high + margin
