"""Who is better, said of differences beyond two sigma only; whether judges agree on the order."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import TypeVar

from flm_jax.lab.compare.frontier import Value

SIGMAS = 2.0
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of several methods.

    Attributes:
      least: the method with the least value.
      tied: the others that cannot be told from it.
    """

    least: str
    tied: tuple[str, ...]

    @property
    def best(self) -> str | None:
        """The method that is better than every other; None if there is a tie."""
        return None if self.tied else self.least


def are_apart(first: Value, second: Value) -> bool:
    """Whether they differ by more than `SIGMAS` sigma of the difference; not if it is unknown."""
    sigma = math.hypot(first.sigma, second.sigma)
    return abs(first.value - second.value) > SIGMAS * sigma


def verdict(values: Mapping[str, Value]) -> Verdict | None:
    """Of the values of methods, lower is better; None of less than two, which compare nothing."""
    if len(values) < 2:
        return None
    least = min(values, key=lambda name: values[name].value)
    others = (name for name in values if name != least)
    tied = tuple(name for name in others if not are_apart(values[least], values[name]))
    return Verdict(least, tied)


def kendall(first: Mapping[Key, float], second: Mapping[Key, float]) -> tuple[float, int]:
    """(tau, how many both have): 1 = the same order, -1 = the reverse; nan of less than two.

    tau-b: (concordant - discordant pairs) / root of (pairs not tied in one * in the other).
    """
    both = [(first[key], second[key]) for key in first if key in second]
    signs = [(_sign(a - c), _sign(b - d)) for (a, b), (c, d) in itertools.combinations(both, 2)]
    of_one, of_other = sum(a != 0 for a, _ in signs), sum(b != 0 for _, b in signs)
    if not of_one or not of_other:
        return math.nan, len(both)
    return sum(a * b for a, b in signs) / math.sqrt(of_one * of_other), len(both)


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)
