"""The kind init: the statistics of freshly initialised parameters."""

from typing import Any

import jax
import numpy as np

from flm_jax.interop import layout
from flm_jax.parity import networks
from flm_jax.parity.checks import Checks
from flm_jax.parity.goldens import Case, GoldenError

STANDARD_ERRORS = 5.0
ORDER = "__order__"
EXACT = 1e-7  # parameters that start at one number: zeros and ones


def random(case: Case, checks: Checks) -> None:
    """Mean, standard deviation and range of every parameter, and the order of the parameters.

    Both sides are one draw, so a difference has sqrt(2) times the error of either.
    """
    content = case.json()
    if not isinstance(content, dict) or not content.get("stats"):
        raise GoldenError("the file holds no statistics")
    for network, stats in content["stats"].items():
        stats = dict(stats)
        order = stats.pop(ORDER, list(stats))
        shapes = {name: tuple(stats[name]["shape"]) for name in order}
        sizes = layout.sizes_of(shapes, case.path)
        model = networks.model(case, sizes, 0.0)
        with checks.precision(32):
            ours = networks.official(jax.jit(model.init)(jax.random.key(0)), sizes)
            checks.exact(f"{network}: order of the parameters", list(ours), order)
            for name in order:
                _compare(checks, f"{network}: {name}", ours[name], stats[name])


def _compare(checks: Checks, name: str, ours: np.ndarray, stats: dict[str, Any]) -> None:
    if list(ours.shape) != stats["shape"]:
        checks.fail(name, f"shape {ours.shape} instead of {stats['shape']}")
        return
    values = ours.astype(np.float64).ravel()
    deviation = float(values.std())
    found = values.mean(), deviation, values.min(), values.max()
    expected = [stats[key] for key in ("mean", "std", "min", "max")]
    if deviation == 0.0 or stats["std"] == 0.0:
        checks.close(name, found, expected, EXACT)
        return
    kurtosis = np.mean((values - values.mean()) ** 4) / deviation**4
    n, spread = values.size, values.max() - values.min()
    errors = np.array(
        [
            deviation / np.sqrt(n),
            deviation * np.sqrt((kurtosis - 1.0) / (4.0 * n)),
            spread / n,  # of the ends of a uniform distribution
            spread / n,
        ]
    )
    tolerances = STANDARD_ERRORS * np.sqrt(2.0) * errors
    for key, mine, recorded, tolerance in zip(
        ("mean", "std", "min", "max"), found, expected, tolerances, strict=True
    ):
        checks.close(f"{name} {key}", mine, recorded, tolerance)
