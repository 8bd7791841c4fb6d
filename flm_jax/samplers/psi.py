"""Times and mixtures of the psi-samplers of diffusions on tokens (arXiv 2602.21185).

A step of them draws, for one evaluation of the network at time t,

    q = kappa * q(x_s | x_t, p) + (1 - kappa) * F_s[q(x_0 | x_t, p)]

F_s noises a clean text anew up to time s: kappa = 1 is the ancestral step; with less, tokens that
were settled may change again, which corrects earlier mistakes. kappa is a rule of time that may
differ in three parts of the way, and in the second one time may stand still.

The rules and what they are called in the public code, with (t, s) two neighbouring times:

    pure-posterior     kappa = 1
    pure-pc            kappa = 0
    constant-E         kappa = E
    max-capped-E       kappa = 1 - sigma / (1 - alpha_s), sigma = min(E, (1 - alpha_s) / alpha_t)
    max-rescale-E      the same with sigma = E * min(E, (1 - alpha_s) / alpha_t)
    constant-remdm-E   the same with sigma = E

(E counts twice in max-rescale, as it does there.) The last time of a part has kappa = 1 in the last
three. Plain numpy: a schedule is a constant of a compiled sampler.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flm_jax.errors import UserError

POSTERIOR, CORRECTOR = "pure-posterior", "pure-pc"
SIGMAS: dict[str, Callable[[float, np.ndarray], np.ndarray]] = {
    "max-capped": lambda e, most: np.minimum(e, most),
    "max-rescale": lambda e, most: e * np.minimum(e, most),
    "constant-remdm": lambda e, most: np.full_like(most, e),
}
CONSTANT = "constant"
NAMES = (POSTERIOR, CORRECTOR, *(f"{name}-E" for name in (CONSTANT, *SIGMAS)))


class Rule(NamedTuple):
    """What kappa is in a part of the way: a row of the table above and its E."""

    name: str
    e: float = 0.0

    @classmethod
    def read(cls, text: str) -> "Rule":
        """UserError if it is none of the table."""
        text = text.strip()
        if text in (POSTERIOR, CORRECTOR):
            return cls(text)
        found = re.fullmatch(rf"({'|'.join((CONSTANT, *SIGMAS))})-([0-9.]+(?:e-?[0-9]+)?)", text)
        number = _number(found[2]) if found else None
        if found is None or number is None:
            raise UserError(f"{text!r} is no rule of kappa; write {', '.join(NAMES)}, E in [0, 1]")
        return cls(found[1], number)

    def kappas(self, alphas: np.ndarray) -> np.ndarray:
        """kappa at every time of a part, whose alphas are given."""
        if self.name in (POSTERIOR, CORRECTOR):
            return np.full(len(alphas), float(self.name == POSTERIOR))
        if self.name == CONSTANT:
            return np.full(len(alphas), self.e)
        alpha_t, noise = alphas[:-1], 1.0 - alphas[1:]
        sigma = SIGMAS[self.name](self.e, noise / alpha_t)
        # Without noise left at s both parts of the mixture are one law.
        kappas = 1.0 - sigma / np.where(noise > 0.0, noise, np.inf)
        return np.append(np.clip(kappas, 0.0, 1.0), 1.0)[: len(alphas)]


def read_rules(text: str) -> tuple[Rule, Rule, Rule]:
    """One rule for the whole way, or three with "/" between; UserError for others."""
    rules = tuple(Rule.read(part) for part in text.split("/"))
    if len(rules) not in (1, 3):
        raise UserError(
            f"psi={text!r} has {len(rules)} rules; give one, or three with / between, for the "
            "early, the middle and the late part"
        )
    early, middle, late = rules * 3 if len(rules) == 1 else rules
    return early, middle, late


class Parts(NamedTuple):
    """How many of the times are early, in the middle and late."""

    early: int
    middle: int
    late: int

    @classmethod
    def of(cls, points: int, early: float, middle: float) -> "Parts":
        """For these shares of the first two."""
        first = round(early * points)
        second = min(round(middle * points), points - first)
        return cls(first, second, points - first - second)

    def times(self, first: float, last: float, hold: float) -> np.ndarray:
        """From ``first`` to ``last``; with ``hold`` > 0 all of the middle is at that time."""
        if not hold:
            return np.linspace(first, last, sum(self))
        before = np.linspace(first, hold, self.early)
        after = np.linspace(hold, last, self.late)
        return np.concatenate([before, np.full(self.middle, hold), after])

    def kappas(self, rules: tuple[Rule, Rule, Rule], alphas: np.ndarray) -> np.ndarray:
        """kappa at every time, each part by its rule."""
        parts = np.split(alphas, [self.early, self.early + self.middle])
        return np.concatenate([r.kappas(part) for r, part in zip(rules, parts, strict=True)])


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0.0 <= number <= 1.0 else None
