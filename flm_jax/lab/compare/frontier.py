"""The best that a method reaches: its Pareto set over knobs, read at a given diversity.

A knob (temperature, noise, nucleus) buys likelihood with diversity, so single points compare
nothing. All knob points of a method at one number of evaluations are pooled; those that no other
point beats in both are its front; log-perplexity is read off between two neighbours of the front,
linearly, at the entropy (or distinct-4) of real text and a little below. Outside of its front a
method has no value.
"""

from collections.abc import Sequence

from flm_jax.lab.compare.measured import Measured
from flm_jax.lab.compare.results import Point

ENTROPY, DIVERSITY = "entropy", "distinct_4"
TARGETS = {ENTROPY: (-0.3, -0.2, -0.1, 0.0), DIVERSITY: (-0.1, -0.05, 0.0)}  # from real text's


def choose(found: Sequence[Measured], real: Measured) -> list[Point]:
    """Which points are worth more samples, in the order of `found`.

    Of every method and number of evaluations: the points of the fronts over entropy and over
    distinct-4 that values at the targets are read from, and the likeliest point.

    Args:
      found: a first pass, of one seed or several.
      real: what `measuring.real` gives.
    """
    raise NotImplementedError
