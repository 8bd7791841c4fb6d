"""What was measured of one file of samples: numbers per sample, so that all can be resampled.

Nothing of a text is in it, so it may be kept, printed and handed on.

Metrics: "entropy", "repetition_1" to "repetition_3", "copied", "valid" and "log_p" (of a synthetic
language) are of a sample; "distinct_1" to "distinct_4" and "self_bleu" of a group of samples;
"mauve/JUDGE" of all. "nats_per_token/JUDGE" and "nats_per_character/JUDGE" are quotients of sums
over samples, of the arrays "nats/JUDGE", "tokens/JUDGE" (the judge's own) and "characters/JUDGE".
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from flm_jax.evals.diversity import GROUP
from flm_jax.lab.compare.results import Point

UNITS = ("token", "character")
RESAMPLED = 200  # times


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Samples at one point, measured.

    Attributes:
      point: how they were written.
      seed: of the training.
      evaluations: network evaluations per sequence that were used, on average.
      file: name of the file of samples.
      sha256: of that file, hex.
      arrays: by name; (N,) where it is of a sample, (G,) where it is of a group of samples, a
        single number (1,) where it is of all of them.
    """

    point: Point
    seed: int
    evaluations: float
    file: str
    sha256: str
    arrays: Mapping[str, np.ndarray]

    @property
    def count(self) -> int:
        return len(self.arrays["entropy"])

    def metrics(self) -> Iterator[str]:
        """Names of all that `value` knows."""
        for name in self.arrays:
            kind, _, judge = name.partition("/")
            if kind == "nats":
                yield from (f"nats_per_{unit}/{judge}" for unit in UNITS)
            elif kind not in ("tokens", "characters"):
                yield name

    def value(self, metric: str) -> float:
        """The metric of all samples; nan where it is undefined."""
        above, below = self._parts(metric)
        total = float(below.sum())
        return float(above.sum()) / total if total else math.nan

    def sigma(self, metric: str) -> float:
        """Standard error of `value`, from the spread over samples or groups; nan if unknown."""
        above, below = self._parts(metric)
        n, total = len(above), float(below.sum())
        if n < 2 or not total:
            return math.nan
        off = above - self.value(metric) * below
        return float(np.sqrt(np.sum(off**2) * n / (n - 1))) / total

    def size(self, metric: str) -> int:
        """How many samples, or groups of samples, it is of."""
        return len(self._parts(metric)[0])

    @functools.cached_property
    def _of_samples(self) -> np.ndarray:
        """How often each sample is in each resample, float (B, N)."""
        return _draw(self.sha256, self.count)

    @functools.cached_property
    def _of_groups(self) -> np.ndarray:
        """The same for whole groups, float (B, G)."""
        return _draw(self.sha256, len(self.arrays["distinct_4"]))

    def resampled(self, axis: str, likelihood: str) -> tuple[np.ndarray, np.ndarray]:
        """Both metrics of `RESAMPLED` sets of as many samples, drawn from these: float (B,) each.

        Where the axis is a metric of groups, whole groups are drawn: n-grams of a sample that is
        drawn twice would count as repeated. With G groups deviations are too small by the root of
        (G - 1) / G, which is made up for; with one group nothing is known, and all is nan.
        """
        grouped = axis.startswith("distinct")
        weights_BN = self._of_groups if grouped else self._of_samples
        found = []
        for metric in (axis, likelihood):
            above, below = self._parts(metric)
            if grouped and metric == likelihood:
                above, below = (_sums(x, weights_BN.shape[1]) for x in (above, below))
            n = len(above)
            if n < 2 or n != weights_BN.shape[1]:
                found.append(np.full(RESAMPLED, math.nan))
                continue
            drawn_B = (weights_BN @ above) / np.maximum(weights_BN @ below, 1e-12)
            off_B = drawn_B - above.sum() / max(below.sum(), 1e-12)
            found.append(self.value(metric) + off_B * math.sqrt(n / (n - 1)))
        return found[0], found[1]

    def _parts(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The metric as a quotient of sums of these arrays, which have one length."""
        kind, _, judge = metric.partition("/")
        for unit in UNITS:
            if kind == f"nats_per_{unit}":
                above, below = (self.arrays.get(f"{x}/{judge}") for x in ("nats", f"{unit}s"))
                if above is None or below is None:
                    return np.zeros(0), np.zeros(0)
                return above.astype(np.float64), below.astype(np.float64)
        values = self.arrays.get(metric, np.zeros(0)).astype(np.float64)
        values = values[np.isfinite(values)]
        return values, np.ones(len(values))


def _draw(sha256: str, count: int) -> np.ndarray:
    generator = np.random.default_rng([int(sha256[:8], 16), count])  # the same in any order
    drawn_BN = generator.integers(max(count, 1), size=(RESAMPLED, count))
    place = (drawn_BN + count * np.arange(RESAMPLED)[:, None]).ravel()
    times = np.bincount(place, minlength=RESAMPLED * count).reshape(RESAMPLED, count)
    return times.astype(np.float64)


def _sums(values_N: np.ndarray, groups: int) -> np.ndarray:
    """Of each group."""
    return values_N[: groups * GROUP].reshape(groups, GROUP).sum(axis=1)
