"""Is this text good? Never one number: how likely it is, and how different its samples are.

A sampler can buy either with the other: who commits the most confident tokens first writes text
that is likelier than the truth's and nearly always the same; shuffled words are as diverse as can
be. So "best" is said among points of the truth's own diversity only, `MATCHED` apart at most, with
interpolation where a knob was swept; elsewhere the verdict says what was bought with what.

Two kinds of writing have a pair as good as that of real text, or a better one, and are not called
best (`refused`): copies of training text, and what is likelier than any real text of its diversity,
which the judge prefers to what people write.

Tables, the headline of a report and its plots take the pair from here (`read`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from flm_jax.evals.ranges import BELOW

MATCHED = 0.05  # of distinct-4
DIVERSITY, COPIED = "distinct_4", "copied"
# Columns of likelihoods, and what they count; the first that real text has is compared.
LIKELIHOODS = {"judge_nats": "token", "judge_nats_per_character": "character"}


@dataclasses.dataclass(frozen=True)
class Point:
    """One way of sampling, measured.

    Attributes:
      nats: mean -log p of a token (or character) under a judge.
      diversity: distinct-4 between samples (`evals.diversity`).
    """

    name: str
    nats: float
    diversity: float


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pair of every row of a table that has it.

    Attributes:
      likelihood: key of the column that `Point.nats` are from.
      unit: "token" or "character".
      real: real text.
      points: by the row's place in the table, that of `real` included.
    """

    likelihood: str
    unit: str
    real: Point
    points: Mapping[int, Point]


def read(rows: Sequence[Mapping[str, Any]]) -> Pairs | None:
    """The pairs of the rows of `base.table`; None without real text to compare with.

    Real text is the last row of kind "data": where there is fresh text of a known truth, that.
    """
    for likelihood, unit in LIKELIHOODS.items():
        points = {}
        for place, row in enumerate(rows):
            nats, diversity = (row["values"].get(key) for key in (likelihood, DIVERSITY))
            if nats is not None and diversity is not None:
                points[place] = Point(row["name"], nats, diversity)
        real = [point for place, point in points.items() if rows[place]["kind"] == "data"]
        if real:
            return Pairs(likelihood, unit, real[-1], points)
    return None


def is_matched(point: Point, truth: Point) -> bool:
    """Whether its diversity is that of the truth, as far as this is told apart."""
    return abs(point.diversity - truth.diversity) <= MATCHED


def bought(point: Point, truth: Point) -> str:
    """What was bought with what, in a few words for a cell; "" at matched diversity."""
    if is_matched(point, truth):
        return ""
    if point.diversity > truth.diversity:
        return "more diverse than real text, which costs likelihood"
    if point.nats <= truth.nats:
        return "likelihood bought with diversity, its samples are alike"
    return "less diverse than real text, its samples are alike"


def sentence(point: Point, truth: Point, unit: str = "token") -> str:
    """What the pair says, for a person who sees nothing else."""
    worse = round(point.nats - truth.nats, 2)
    matched = "as diverse as real text" + f", {worse:.2f} nats less likely" * (worse > 0)
    return (
        f"{point.nats:.2f} nats a {unit} (real text {truth.nats:.2f}), "
        f"distinct-4 {point.diversity:.2f} (real text {truth.diversity:.2f}): "
        f"{bought(point, truth) or matched}"
    )


def at_diversity_of(truth: Point, points: Sequence[Point]) -> float | None:
    """Nats of a method at the truth's diversity, interpolated over the values of a knob.

    Linear in diversity between the two neighbours around it. Where all points lie on one side, the
    nearest one if it is matched; else None: then the method has no such point.
    """
    ordered = sorted(points, key=lambda point: point.diversity)
    for below, above in zip(ordered, ordered[1:], strict=False):
        if below.diversity <= truth.diversity <= above.diversity:
            width = above.diversity - below.diversity
            share = (truth.diversity - below.diversity) / width if width else 0.5
            return below.nats + share * (above.nats - below.nats)
    matched = [point for point in points if is_matched(point, truth)]
    nearest = min(matched, key=lambda p: abs(p.diversity - truth.diversity), default=None)
    return None if nearest is None else nearest.nats


def best(methods: Mapping[str, Sequence[Point]], truth: Point) -> tuple[str, float] | None:
    """The method with the fewest nats at the truth's diversity; None if none reaches it."""
    reached = {name: at_diversity_of(truth, points) for name, points in methods.items()}
    known = {name: nats for name, nats in reached.items() if nats is not None}
    return min(known.items(), key=lambda item: item[1], default=None)


def refused(point: Point, row: Mapping[str, Any], pairs: Pairs, real: Mapping[str, Any]) -> str:
    """Why a row is not called best whatever its pair, in a few words; "" if it may be.

    ``real`` is the row of real text. What is likelier than real text is known where the row says on
    which "outside" of the range of real text (`evals.ranges`) its metrics are.
    """
    copied, known = row["values"].get(COPIED), real["values"].get(COPIED)
    if copied is not None and known is not None and copied > known + MATCHED:
        return (
            f"{100 * copied:.0f} % is copied from the training text (real text {100 * known:.0f} %)"
        )
    if is_matched(point, pairs.real) and row.get("outside", {}).get(pairs.likelihood) == BELOW:
        return "it is likelier than any real text of its diversity: the judge prefers it"
    return ""


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What there is to say of the models in a table: one sentence a row, then which is best.

    Rows of one "method" (where they have that key) differ in a knob; they are one curve.
    """
    pairs = read(rows)
    if pairs is None:
        return []
    said, methods, out = [], {}, []
    real = [rows[place] for place in pairs.points if rows[place]["kind"] == "data"][-1]
    for place, point in pairs.points.items():
        if rows[place]["kind"] == "model":
            said.append(f"{point.name}: {sentence(point, pairs.real, pairs.unit)}")
            points = methods.setdefault(rows[place].get("method", point.name), [])
            if why := refused(point, rows[place], pairs, real):
                out.append(f"{point.name} is not called best: {why}")
            else:
                points.append(point)
    swept = {name: points for name, points in methods.items() if len(points) > 1}
    for name, points in swept.items():
        nats = at_diversity_of(pairs.real, points)
        what = "it is not reached" if nats is None else f"{nats:.2f} nats a {pairs.unit}"
        said.append(f"{name} at the diversity of real text, interpolated over the knob: {what}")
    said += out
    if len(methods) > 1:
        found = best(methods, pairs.real)
        said.append(
            "none is called best: no samples are as diverse as real text"
            + " of those that may be" * bool(out)
            if found is None
            else f"best at the diversity of real text: {found[0]}, {found[1]:.2f} nats a "
            f"{pairs.unit}"
        )
    return said
