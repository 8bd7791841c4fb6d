"""Comparisons, their tolerances, and the score.

Tolerances are absolute numbers, from one of four rules:

* float32 with a record in the manifest: ten times the recorded difference between the official
  code in float32 and in float64, at least `ULPS` units in the last place of the largest entry;
  for a mean or a sum, also at least what follows from the record of its terms (once, not ten
  times): in its own record their errors may cancel by luck;
* gradients: ten times the recorded worst relative difference, at least 1e-5 of the largest entry;
* float64 against a float64 array: `FLOAT64` of the largest entry, unless the kind states another;
* anything else: a floor relative to the largest entry that the kind states.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from flm_jax.lab.parity.goldens import Case, GoldenError

TIMES_RECORD = 10.0
ULPS = 4.0 * float(np.finfo(np.float32).eps)
GRADIENT_FLOOR = 1e-5
FLOAT64 = 1e-9


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison, or the reason why there is none."""

    case: str
    quantity: str
    max_abs: float | None
    relative: float | None
    tolerance: float | None
    ok: bool
    reason: str = ""

    def line(self) -> str:
        numbers = "".join(
            f" {'-':>9}" if x is None else f" {x:9.2e}"
            for x in (self.max_abs, self.relative, self.tolerance)
        )
        verdict = "ok" if self.ok else "FAIL"
        return f"{self.case:<32} {self.quantity:<58}{numbers}  {verdict} {self.reason}".rstrip()

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no inf and nan: those become text."""
        fields = dataclasses.asdict(self)
        odd = {k: str(x) for k, x in fields.items() if isinstance(x, float) and not np.isfinite(x)}
        return fields | odd


HEADER = f"{'case':<32} {'quantity':<58} {'max abs':>9} {'relative':>9} {'tolerance':>9}"


@dataclasses.dataclass
class Checks:
    """The comparisons of one case. ``emit`` is told every row as it is made."""

    case: Case
    emit: Callable[[Row], None]
    bits: int = 0  # 64 or 32 inside `precision`, 0 outside

    @contextlib.contextmanager
    def precision(self, bits: int) -> Iterator[None]:
        """Everything inside is computed in this float type; rows are labelled with it."""
        self.bits, before = bits, self.bits
        try:
            with jax.enable_x64(bits == 64):
                yield
        finally:
            self.bits = before

    def fail(self, quantity: str, reason: str) -> None:
        self.emit(Row(self.case.name, self._label(quantity), None, None, None, False, reason))

    def exact(self, quantity: str, ours: Any, expected: Any) -> None:
        """Integers, truth values or anything with an equality: the same, entry by entry."""
        ours, expected = np.asarray(ours), np.asarray(expected)
        if ours.shape != expected.shape:
            self.fail(quantity, f"shape {ours.shape} instead of {expected.shape}")
            return
        wrong = int(np.sum(ours != expected))
        reason = f"{wrong} of {ours.size} entries differ" if wrong else ""
        row = Row(self.case.name, self._label(quantity), None, None, None, not wrong, reason)
        self.emit(row)

    def close(
        self, quantity: str, ours: ArrayLike, expected: ArrayLike, tolerance: ArrayLike
    ) -> None:
        """Largest absolute difference at most ``tolerance``: a number, or one per entry."""
        ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
        if ours.shape != expected.shape:
            self.fail(quantity, f"shape {ours.shape} instead of {expected.shape}")
            return
        if ours.size == 0:
            self.fail(quantity, "nothing to compare")
            return
        if not np.isfinite(expected).all():
            self.fail(quantity, "the recorded array is not finite")
            return
        error = np.abs(ours - expected)
        worst = float(np.max(error))  # nan wins
        relative = worst / max(largest(expected), np.finfo(np.float64).tiny)
        ok = bool(np.all(error <= tolerance))
        bound = float(np.max(tolerance))
        self.emit(Row(self.case.name, self._label(quantity), worst, relative, bound, ok))

    def recorded(
        self,
        name: str,
        ours: ArrayLike,
        *,
        space: str = "",
        floor: float | None = None,
        floor64: float = FLOAT64,
        at_least: float = 0.0,
        view: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    ) -> None:
        """Compares with the recorded array of that name in the current precision.

        In float64 that is the array under mid64/ or out64/, if there is one. ``floor`` is the
        relative tolerance where the manifest has no record, ``at_least`` an absolute one that the
        float32 comparison is never stricter than. ``view`` is applied to the recorded
        array first (what a network sees of it); its tolerance scales with the largest entry.
        """
        case = self.case
        if self.bits == 64:
            wide = name.replace("/", "64/", 1)
            if wide not in case:
                return
            expected = case[wide]
            relative = floor64
        else:
            expected = case[name]
            relative = self._relative(name, expected, floor)
        expected = view(np.asarray(expected, np.float64))
        ours = np.asarray(ours)
        if ours.size == expected.size:
            ours = ours.reshape(expected.shape)
        tolerance = max(relative * largest(expected), at_least if self.bits != 64 else 0.0)
        self.close(f"{name} {space}".strip(), ours, expected, tolerance)

    def gradient(self, name: str, ours: ArrayLike, expected: np.ndarray, space: str = "") -> None:
        """The gradient rule; works in both precisions, the recorded gradients being float32."""
        worst = case_record(self.case, "grad_worst_relative_fp32_vs_fp64")[0]
        relative = max(TIMES_RECORD * float(worst), GRADIENT_FLOOR)
        tolerance = relative * largest(expected)
        self.close(f"grad/{name} {space}".strip(), ours, expected, tolerance)

    def record_of(self, name: str) -> float:
        """The recorded difference between float32 and float64; GoldenError without a record."""
        record = self.case.entry.get("fp32_vs_fp64", {}).get(name)
        if record is None:
            raise GoldenError(f"the manifest has no record of how exact {name!r} is")
        return record[0] if isinstance(record, list) else record

    def _relative(self, name: str, expected: np.ndarray, floor: float | None) -> float:
        if floor is not None and self.case.entry.get("fp32_vs_fp64", {}).get(name) is None:
            return floor
        return max(TIMES_RECORD * self.record_of(name) / (largest(expected) or 1.0), ULPS)

    def _label(self, quantity: str) -> str:
        return f"{quantity} [float{self.bits}]" if self.bits else quantity


def largest(array: np.ndarray) -> float:
    """Largest magnitude of an array, 0 for an empty one."""
    return float(np.max(np.abs(array), initial=0.0))


def case_record(case: Case, name: str) -> Any:
    """A field of the case's entry in the manifest; GoldenError without it."""
    if name not in case.entry:
        raise GoldenError(f"the manifest does not say {name!r} of this case")
    return case.entry[name]
