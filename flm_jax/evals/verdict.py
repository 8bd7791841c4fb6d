"""Is this text good? Never one number: how likely it is, and how different its samples are.

A sampler can buy either with the other: who commits the most confident tokens first writes text
that is likelier than the truth's and nearly always the same; shuffled words are as diverse as can
be. So "best" is said among points of the truth's own diversity only, `MATCHED` apart at most;
elsewhere the verdict says what was bought with what.
"""

import dataclasses
from collections.abc import Sequence

MATCHED = 0.05  # of distinct-4


@dataclasses.dataclass(frozen=True)
class Point:
    """One way of sampling, measured.

    Attributes:
      nats: mean -log p of a token under a judge.
      diversity: distinct-4 between samples (`evals.diversity`).
    """

    name: str
    nats: float
    diversity: float


def is_matched(point: Point, truth: Point) -> bool:
    """Whether its diversity is that of the truth, as far as this is told apart."""
    return abs(point.diversity - truth.diversity) <= MATCHED


def sentence(point: Point, truth: Point) -> str:
    """What the pair says, for a person who sees nothing else."""
    pair = (
        f"{point.nats:.2f} nats a token (real text {truth.nats:.2f}), "
        f"distinct-4 {point.diversity:.2f} (real text {truth.diversity:.2f})"
    )
    if is_matched(point, truth):
        return f"{pair}: as diverse as real text"
    if point.diversity > truth.diversity:
        return f"{pair}: more diverse than real text, which costs likelihood"
    if point.nats <= truth.nats:
        return f"{pair}: likelihood bought with diversity, its samples are alike"
    return f"{pair}: less diverse than real text, its samples are alike"


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


def best(methods: dict[str, Sequence[Point]], truth: Point) -> tuple[str, float] | None:
    """The method with the fewest nats at the truth's diversity; None if none reaches it."""
    reached = {name: at_diversity_of(truth, points) for name, points in methods.items()}
    known = {name: nats for name, nats in reached.items() if nats is not None}
    return min(known.items(), key=lambda item: item[1], default=None)
