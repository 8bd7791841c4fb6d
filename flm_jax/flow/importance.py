"""An integral over time from few random times: where they fall, and what each one counts.

    integral of f  =  E[f(x) / q(x)],   x ~ q

is right for every density q > 0, and has the smallest variance where q is proportional to the size
of f. q is constant between neighbouring edges, and made of measured sizes of f at the edges.
"""

import dataclasses
from typing import Self

import numpy as np

_EVERYWHERE = 0.1  # share of the times that is spread evenly over the intervals, whatever f is


@dataclasses.dataclass(frozen=True)
class Density:
    """Constant between edges, float64.

    Attributes:
      edges: (K + 1,), rising.
      masses: (K,), above 0, of sum 1.
    """

    edges: np.ndarray
    masses: np.ndarray

    @classmethod
    def like(cls, edges: np.ndarray, sizes: np.ndarray) -> Self:
        """Follows a function of these ``sizes`` (K + 1,) at the edges, and is nowhere 0."""
        widths = np.diff(edges)
        masses = np.maximum(sizes[:-1], sizes[1:]) * widths
        total = masses.sum()
        masses = masses / total if total > 0 else widths / widths.sum()
        return cls(edges, (1.0 - _EVERYWHERE) * masses + _EVERYWHERE / len(masses))

    def quantile(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, 1 / q(x)) where a share u in [0, 1] of the mass lies below x."""
        ends = np.append(0.0, np.cumsum(self.masses))
        at = np.clip(np.searchsorted(ends, u, side="right") - 1, 0, len(self.masses) - 1)
        per_mass = np.diff(self.edges)[at] / self.masses[at]
        x = self.edges[at] + (u - ends[at]) * per_mass
        return np.clip(x, self.edges[at], self.edges[at + 1]), per_mass


def systematic(seed: list[int], rows: int, times: int) -> np.ndarray:
    """Uniform numbers (rows, times): one in every ``times``-th of [0, 1) for each row.

    Rows share the strata of their first number, too, so that all rows * times numbers lie evenly.
    """
    draw = np.random.default_rng(seed)
    first_N = (draw.permutation(rows) + draw.random(rows)) / rows
    return (first_N[:, None] + np.arange(times)[None]) / times
