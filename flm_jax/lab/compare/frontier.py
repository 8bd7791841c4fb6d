"""The best that a method reaches: its Pareto set over knobs, read at a given diversity.

A knob (temperature, noise, nucleus) buys likelihood with diversity, so single points compare
nothing. All knob points of a method at one number of evaluations are pooled; those that no other
point beats in both are its front; log-perplexity is read off between two neighbours of the front,
linearly, at the entropy (or distinct-4) of real text and a little below. So it is the least
log-perplexity at which the method writes with at least that diversity.

* Where no point is as diverse, within `NEAR`, the method has no value.
* Where all points are more diverse than asked, the value is that of the likeliest of them: an upper
  bound, for the method was not tried there.

Several seeds: points are means over seeds; only points that every seed has are pooled.

**What sigma is made of.** w: standard deviation of the value over resamples of the samples of every
point and seed, each with its own front. s: standard error, over the S seeds, of what each has at
the place that was read; the noise of samples is in it, too. The 95 % interval is the wider one of
+- 1.96 w and +- t s, where t is Student's 97.5 % quantile for S - 1 degrees of freedom (4.3 for
three seeds, 12.7 for two), so it holds whichever of the two is the larger. `sigma` is half the
interval over 1.96: few seeds make it wide. With one seed the spread between trainings is unknown,
and sigma is that of these networks only. The diversity of real text is taken as a fixed number.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.lab.compare.measured import Measured
from flm_jax.lab.compare.results import Point

ENTROPY, DIVERSITY = "entropy", "distinct_4"
TARGETS = {ENTROPY: (-0.3, -0.2, -0.1, 0.0), DIVERSITY: (-0.1, -0.05, 0.0)}  # from real text's
NEAR = {ENTROPY: 0.02, DIVERSITY: 0.01}  # counts as reached
_NORMAL = 1.96


@dataclasses.dataclass(frozen=True)
class Value:
    """A log-perplexity at a given diversity.

    Attributes:
      sigma: see the module; nan where nothing is known of it.
      low, high: of its 95 % interval.
      bound: whether it is an upper bound, from samples more diverse than asked.
    """

    value: float
    sigma: float
    low: float
    high: float
    bound: bool = False


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a target is read on fronts, one for each row of points (B, P).

    Attributes:
      left_B, right_B: numbers of the neighbours; the same point where there is one only.
      share_B: how far from the left to the right one.
      reached_B, bound_B: whether there is a value, and whether it is an upper bound.
    """

    left_B: np.ndarray
    right_B: np.ndarray
    share_B: np.ndarray
    reached_B: np.ndarray
    bound_B: np.ndarray

    def read(self, y_BP: np.ndarray) -> np.ndarray:
        """float (B,), nan where the target is not reached."""
        left, right = _at(y_BP, self.left_B), _at(y_BP, self.right_B)
        return np.where(self.reached_B, left + self.share_B * (right - left), math.nan)


def front(x_P: np.ndarray, y_P: np.ndarray) -> np.ndarray:
    """Numbers of the points that no other beats in more x and less y, by growing x (and y)."""
    order = np.lexsort((y_P, -x_P))
    kept, least = [], math.inf
    for at in order:
        if y_P[at] < least and math.isfinite(x_P[at]):
            kept.append(int(at))
            least = float(y_P[at])
    return np.array(kept[::-1], int)


def place(x_BP: np.ndarray, y_BP: np.ndarray, target: float, near: float) -> Place:
    """Where `target` lies on the fronts of points (B, P): most x, least y."""
    usable = np.isfinite(x_BP) & np.isfinite(y_BP)
    above = usable & (x_BP >= target)
    # The likeliest of those that are diverse enough; of equal ones the most diverse.
    right_B = _first(above, y_BP, -x_BP)
    y_right = np.where(above.any(axis=1), _at(y_BP, right_B), math.inf)
    below = usable & (x_BP < target) & (y_BP < y_right[:, None])
    left_B = _first(below, -x_BP, y_BP)
    has_left, has_right = below.any(axis=1), above.any(axis=1)
    left_B = np.where(has_left, left_B, right_B)
    right_B = np.where(has_right, right_B, left_B)
    x_left, x_right = _at(x_BP, left_B), _at(x_BP, right_B)
    width = np.where(has_left & has_right, x_right - x_left, 1.0)
    return Place(
        left_B,
        right_B,
        share_B=np.where(has_left & has_right, (target - x_left) / width, 0.0),
        reached_B=has_right | (has_left & (x_left >= target - near)),
        bound_B=has_right & ~has_left & (x_right > target + near),
    )


def _at(values_BP: np.ndarray, at_B: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values_BP, at_B[:, None], axis=1)[:, 0]


def _first(allowed_BP: np.ndarray, *keys_BP: np.ndarray) -> np.ndarray:
    """The number of the allowed point with the least first key, then the least second, int (B,)."""
    for key in keys_BP:
        key = np.where(allowed_BP, key, math.inf)
        allowed_BP = allowed_BP & (key == key.min(axis=1, keepdims=True))
    return allowed_BP.argmax(axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """The points of a method at one number of evaluations, on one axis of diversity.

    Attributes:
      points: P of them.
      x_SP, y_SP: diversity and log-perplexity of each seed.
      x_BP, y_BP: of resamples, means over seeds.
    """

    axis: str
    points: tuple[Point, ...]
    x_SP: np.ndarray
    y_SP: np.ndarray
    x_BP: np.ndarray
    y_BP: np.ndarray

    def front(self) -> np.ndarray:
        """Numbers of the points of the front of means over seeds."""
        return front(self.x_SP.mean(axis=0), self.y_SP.mean(axis=0))

    def at(self, target: float) -> Value | None:
        """The log-perplexity at a diversity; None where it is not reached."""
        near = NEAR[self.axis]
        x_1P, y_1P = (z.mean(axis=0, keepdims=True) for z in (self.x_SP, self.y_SP))
        here = place(x_1P, y_1P, target, near)
        value = float(here.read(y_1P)[0])
        if not math.isfinite(value):
            return None
        resampled = place(self.x_BP, self.y_BP, target, near).read(self.y_BP)
        resampled = resampled[np.isfinite(resampled)]
        enough = len(resampled) >= len(self.x_BP) / 2
        w = float(resampled.std(ddof=1)) if enough else math.nan
        return combined(self._of_seeds(here, target), w, bool(here.bound_B[0]))

    def _of_seeds(self, here: Place, target: float) -> np.ndarray:
        """What each seed has at the place of the means, to first order: float (S,)."""
        left, right, share = int(here.left_B[0]), int(here.right_B[0]), float(here.share_B[0])
        x_left, x_right = (self.x_SP[:, at].mean() for at in (left, right))
        y_left, y_right = (self.y_SP[:, at].mean() for at in (left, right))
        slope = (y_right - y_left) / (x_right - x_left) if share else 0.0
        x_S = (1 - share) * self.x_SP[:, left] + share * self.x_SP[:, right]
        y_S = (1 - share) * self.y_SP[:, left] + share * self.y_SP[:, right]
        return y_S - slope * (x_S - target) * bool(share)


def combined(values_S: np.ndarray, w: float, bound: bool = False) -> Value:
    """The mean over seeds with its interval; `w` is the deviation of that mean over resamples."""
    mean, seeds = float(np.mean(values_S)), len(values_S)
    s = float(np.std(values_S, ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
    halves = [_NORMAL * w, _student(seeds - 1) * s if seeds > 1 else math.nan]
    half = max((one for one in halves if math.isfinite(one)), default=math.nan)
    return Value(mean, half / _NORMAL, mean - half, mean + half, bound)


@functools.cache
def _student(degrees: int) -> float:
    from scipy import special

    return float(special.stdtrit(degrees, 0.975))


def curves(found: Sequence[Measured], axis: str, likelihood: str) -> dict[tuple[str, int], Curve]:
    """The curve of every (method, evaluations), in the order of `found`."""
    by_key: dict[tuple[str, int], dict[Point, dict[int, Measured]]] = {}
    for one in found:
        points = by_key.setdefault((one.point.method, one.point.evaluations), {})
        points.setdefault(one.point, {})[one.seed] = one
    made = {}
    for key, points in by_key.items():
        seeds = sorted({seed for by_seed in points.values() for seed in by_seed})
        whole = {point: by_seed for point, by_seed in points.items() if len(by_seed) == len(seeds)}
        if whole:
            made[key] = _curve(whole, seeds, axis, likelihood)
    return made


def _curve(
    points: Mapping[Point, Mapping[int, Measured]],
    seeds: Sequence[int],
    axis: str,
    likelihood: str,
) -> Curve:
    values = [
        [[points[point][seed].value(metric) for point in points] for seed in seeds]
        for metric in (axis, likelihood)
    ]
    resampled = [
        np.mean([by_seed[seed].resampled(axis, likelihood) for seed in seeds], axis=0)
        for by_seed in points.values()
    ]
    x_BP, y_BP = np.stack(resampled, axis=-1)
    return Curve(axis, tuple(points), np.array(values[0]), np.array(values[1]), x_BP, y_BP)


def choose(found: Sequence[Measured], real: Measured, likelihood: str = "") -> list[Point]:
    """Which points are worth more samples, in the order of `found`.

    Of every method and number of evaluations: the points of the fronts over entropy and over
    distinct-4 that values at the targets are read from, and the likeliest point.

    Args:
      found: a first pass, of one seed or several.
      real: what `measuring.real` gives.
      likelihood: the metric to choose by; "" = `headline`.
    """
    likelihood = likelihood or headline(real)
    chosen: set[Point] = set()
    for axis, offsets in TARGETS.items():
        centre = real.value(axis)
        for curve in curves(found, axis, likelihood).values():
            x_1P, y_1P = (z.mean(axis=0, keepdims=True) for z in (curve.x_SP, curve.y_SP))
            if not np.isfinite(y_1P).any():
                continue
            wanted = [int(np.nanargmin(y_1P[0]))]
            for offset in offsets if math.isfinite(centre) else ():
                here = place(x_1P, y_1P, centre + offset, NEAR[axis])
                wanted += [int(here.left_B[0]), int(here.right_B[0])]
            chosen |= {curve.points[at] for at in wanted}
    return list(dict.fromkeys(one.point for one in found if one.point in chosen))


def headline(real: Measured) -> str:
    """The likelihood that tables begin with: per token of the first judge."""
    return next(name for name in real.metrics() if name.startswith("nats_per_token/"))
