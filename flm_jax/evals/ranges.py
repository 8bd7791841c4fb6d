"""The range of every metric on real text: what samples of a model are held against.

Real rows are split into disjoint halves, at random and many times, each half of as many rows as
there are samples, and every half is measured. The values of 98 of 100 halves are the range: fresh
real text is outside at about 2 % of the metrics, on either side, and what is outside is named.

Halves are drawn from R rows without replacement, so they lie closer together than fresh text of n
rows does. For a mean over rows the variance is (1/n - 1/R) instead of the (1/n + 1/R) of the
distance between fresh text and the rows that were split: the range is widened around its middle by
the root of their ratio, (R + n) / (R - n). Without that a range from R = 2 n rows would call a
sixth of all fresh text unlike itself.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.errors import UserError
from flm_jax.evals.base import Evaluator, format_value
from flm_jax.host import progress

LOW, HIGH = 1.0, 99.0  # percentiles
FALSE_ALARMS = (LOW + 100.0 - HIGH) / 100.0  # of fresh real text, for each metric
SPLITS = 100  # for two values each
BELOW, ABOVE, NOTHING = "below", "above", "nothing"


class Range(NamedTuple):
    """Where a metric of real text lies."""

    low: float
    high: float


def of(
    evaluators: Sequence[Evaluator],
    real_rows: np.ndarray,
    count: int,
    splits: int = SPLITS,
    seed: int = 0,
) -> dict[str, Range]:
    """The range of each column of the evaluators on ``count`` rows of real text.

    Columns that are undefined on some half have none.

    Args:
      real_rows: int (R, L), R at least 2 * count, the more the better; not those that evaluators
        were fitted on or compare with.
      count: as many rows as there are samples.

    Raises UserError for too few rows.
    """
    total = len(real_rows)
    if count < 1 or splits < 1:
        raise ValueError(f"count={count} and splits={splits} must be at least 1")
    if total < 2 * count:
        raise UserError(
            f"two halves of {count} rows need {2 * count} rows of real text, but there are "
            f"{total}; give more real text, or at most {total // 2} samples"
        )
    rows, draw = np.asarray(real_rows), np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in progress.bar(range(splits), desc="measuring halves of real text", delay=2):
        order = draw.permutation(total)
        for half in (order[:count], order[count : 2 * count]):
            for evaluator in evaluators:
                for name, value in evaluator(rows[half]):
                    found.setdefault(name, []).append(float(value))
    wider = math.sqrt((total + count) / (total - count))
    shares = {c.key for one in evaluators for c in one.columns if c.unit == "share"}
    return {
        name: _range(values, wider, 1.0 if name in shares else math.inf)
        for name, values in found.items()
        if np.all(np.isfinite(values))
    }


def _range(values: Sequence[float], wider: float, most: float) -> Range:
    low, middle, high = (float(x) for x in np.percentile(values, [LOW, 50.0, HIGH]))
    least = 0.0 if min(values) >= 0.0 else -math.inf
    widened = middle - wider * (middle - low), middle + wider * (high - middle)
    return Range(max(widened[0], least), min(widened[1], most))


def sides(values: Mapping[str, float | None], ranges: Mapping[str, Range]) -> dict[str, str]:
    """ "below" or "above" for every metric that is not in its range, "nothing" without a value."""
    found = {}
    for key in (key for key in ranges if key in values):
        (low, high), given = ranges[key], values[key]
        value = math.nan if given is None else given
        rounding = 1e-9 * max(1.0, abs(low), abs(high))
        if not math.isfinite(value):
            found[key] = NOTHING
        elif not low - rounding <= value <= high + rounding:
            found[key] = BELOW if value < low else ABOVE
    return found


def outside(
    values: Mapping[str, float | None],
    ranges: Mapping[str, Range],
    columns: Sequence[Mapping[str, object]] = (),
) -> list[str]:
    """A sentence for every metric of samples that is outside the range of real text.

    Args:
      values: by column; None or nan where there is none.
      columns: of `base.table`, for titles and units; without them the keys stand for them.
    """
    known = {str(column["key"]): column for column in columns}
    said = []
    for key, side in sides(values, ranges).items():
        column = known.get(key, {"title": key})
        value, low, high = (format_value(x, column) for x in (values[key], *ranges[key]))
        between = f"{low} to {high}" if low != high else f"always {low}"
        what = "has no value" if side == NOTHING else f"{value} is {side}"
        said.append(f"{column['title']} {what}, real text {between}")
    return said
