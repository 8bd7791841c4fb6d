"""The tables of the proof: a row for every way of writing, a column for every number of steps."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flm_jax.lab.proof.measuring import RIGHT, VALID, Measured, Point
from flm_jax.report.charts import Series
from flm_jax.report.svg import Picture

TITLES = {
    VALID: "valid samples",
    RIGHT: "right answers",
    "distinct_4": "distinct-4",
    "total_variation": "total variation from the truth",
    "feature_distance": "distance of features from the truth",
    "held_out": "never trained on, of the valid",
    "coverage": "texts that occur",
    "distinct": "different texts among the valid",
    "log_likelihood": "log-likelihood of the valid, nats",
}
AS_THEY_ARE = ("log_likelihood", "distinct_4")  # the others are shares, in percent
OF_FRESH_TRUTH = {  # what as many samples of the truth itself have, in brackets
    "total_variation": "total_variation_noise",
    "feature_distance": "feature_distance_truth",
}
OF_OPEN_LANGUAGES = ("distinct", "log_likelihood")  # for languages too large for total variation
REAL = Point("held-out data", "", 0)
OURS, THEIRS, FACTOR = "any_order", "mdlm", 4  # who is compared, and by how many times as much
NEAR = 0.05  # of distinct-4, to be compared
COLOURS = tuple(f"s{number}" for number in range(1, 11))  # of a picture
DASHES = ("", "5 4", "2 3", "9 3 2 3")  # of the ways in which one method writes


class Task:
    """What was found at one task: one value per seed of every column at every point."""

    def __init__(self, first: Measured):
        self.column, self.open_tokens, self.possible = (
            first.column,
            first.open_tokens,
            first.possible,
        )
        self.found: dict[str, dict[Point, list[float]]] = {}

    def add(self, values: Mapping[Point, Mapping[str, float | None]]) -> None:
        for point, row in values.items():
            counted = row.get("coverage") is not None
            for column, value in row.items():
                if value is None or (counted and column in OF_OPEN_LANGUAGES):
                    continue
                own = self.found.setdefault(column, {}).setdefault(point, [])
                if point.evaluations or not own:  # without a model: the same for all methods
                    own.append(value)

    def mean(self, column: str, point: Point) -> float:
        return float(np.mean(self.found[column][point]))


class Tables:
    """Everything that was found, by task, and the minutes of training by language and method."""

    def __init__(self):
        self.tasks: dict[str, Task] = {}
        self._minutes: dict[tuple[str, str], list[float]] = {}

    def add(self, measured: Measured) -> None:
        self.tasks.setdefault(measured.task, Task(measured)).add(measured.values)

    def minutes(self, language: str, method: str, value: float) -> None:
        self._minutes.setdefault((language, method), []).append(value)

    def picture(self, task: str) -> Picture:
        """The share of right texts against evaluations.

        A method has one colour; its other ways of writing ("flm, grid 4") are dashed.
        """
        one = self.tasks[task]
        methods: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for point in one.found[one.column]:
            if point.evaluations:
                curves = methods.setdefault(point.method, {})
                percent = 100.0 * one.mean(one.column, point)
                curves.setdefault(point.curve, []).append((point.evaluations, percent))
        lines = [
            Series(name, *np.array(sorted(points), float).T, colour=colour, dashes=dashes)
            for curves, colour in zip(methods.values(), itertools.cycle(COLOURS))
            for (name, points), dashes in zip(curves.items(), itertools.cycle(DASHES))
        ]
        # Powers of two: other numbers would stand in their place.
        numbers = sorted({int(n) for line in lines for n in line.x if not int(n) & (int(n) - 1)})
        return Picture(
            task,
            f"{task}: right texts against network evaluations",
            "evaluations",
            "right texts, %",
            tuple(lines),
            log_x=True,
            y_range=(0.0, 100.0),
            x_ticks=tuple(numbers),
        )

    def text(self) -> str:
        blocks = [self.section(name, task) for name, task in self.tasks.items()]
        rows = [(f"{x}, {y}", [f"{np.mean(z):.1f}"]) for (x, y), z in self._minutes.items()]
        return "\n".join([*blocks, "## Training\n", markdown("minutes a run", ["mean"], rows)])

    def section(self, name: str, task: Task) -> str:
        """The tables of one task."""
        facts = [f"{task.open_tokens} tokens to write"]
        if task.possible:
            facts.append(f"{count(task.possible)} possible texts")
        blocks = [f"## {name}\n\n{', '.join(facts)}.\n"]
        for column, title in TITLES.items():
            if column in task.found:
                blocks.append(table(task, column, title))
        if compared := against(task):
            blocks.append(compared)
        return "\n".join(blocks)


def table(task: Task, column: str, title: str) -> str:
    """One column of what was measured; what no model has written stands below."""
    found, percent = task.found[column], column not in AS_THEY_ARE
    truth = task.found.get(OF_FRESH_TRUTH.get(column, ""), {})
    if truth:
        title += " (of as many samples of the truth itself)"
    numbers = sorted({point.evaluations for point in found} - {0})
    rows: dict[str, list[str]] = {}
    for point, values in found.items():
        shown = cell(values, percent)
        if point in truth:
            shown += f" ({cell([float(np.mean(truth[point]))], percent)})"
        cells = rows.setdefault(point.curve, ["–"] * max(len(numbers), 1))
        cells[numbers.index(point.evaluations) if point.evaluations else 0] = shown
    no_model = {point.curve for point in found if not point.evaluations}
    order = [row for row in rows if row not in no_model]
    lines = [(row, rows[row]) for row in order]
    lines += [(f"{row} (no evaluations)", rows[row]) for row in rows if row in no_model]
    return markdown(f"{title}, by evaluations", list(map(str, numbers)), lines)


def against(task: Task) -> str:
    """Any-order flow maps with N evaluations against the better masked sampler with four times N.

    Where that is fewer than there are tokens to write. Of each side the best way of writing counts;
    where the diversity of real text is known, only those that are near to it do.
    """
    found = task.found[task.column]
    rows = []
    for n in sorted({point.evaluations for point in found} - {0}):
        if FACTOR * n >= task.open_tokens:
            continue
        ours, theirs = best(task, OURS, n), best(task, THEIRS, FACTOR * n)
        if ours is not None and theirs is not None:
            shares = [task.mean(task.column, x) for x in (ours, theirs)]
            verdict = "yes" if shares[0] >= shares[1] else "no"
            shown = [f"{cell(found[x])} ({x.way or 'plain'})" for x in (ours, theirs)]
            rows.append((f"{n} against {FACTOR * n}", [*shown, verdict if any(shares) else "–"]))
    if not rows:
        return ""
    names = [f"{OURS}, the best way", f"{THEIRS}, the best way", "at least as good"]
    return markdown("evaluations", names, rows)


def best(task: Task, method: str, evaluations: int) -> Point | None:
    """The best way in which a method writes, of those at the diversity of real text."""
    found, diversity = task.found[task.column], task.found.get("distinct_4", {})

    def suits(point: Point) -> bool:
        near = REAL not in diversity or (
            abs(task.mean("distinct_4", point) - task.mean("distinct_4", REAL)) <= NEAR
        )
        return (point.method, point.evaluations) == (method, evaluations) and near

    suiting = [point for point in found if suits(point)]
    return max(suiting, key=lambda point: task.mean(task.column, point), default=None)


def markdown(first: str, names: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table."""
    lines = [f"| {first} | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines) + "\n"


def count(size: int) -> str:
    """132, 1,000,000, 6.8e21."""
    return f"{size:,}" if size <= 10**6 else f"{size:.1e}".replace("e+", "e")


def cell(values: Sequence[float], percent: bool = True) -> str:
    """Mean over seeds and half their range, in percent or as they are."""
    scale, digits, unit = (100, 1, " %") if percent else (1, 2, "")
    mean = f"{scale * np.mean(values):.{digits}f}"
    spread = f" ± {scale * np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{mean}{spread}{unit}"
