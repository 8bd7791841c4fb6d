"""What was measured of one file of samples: numbers per sample, so that all can be resampled.

Nothing of a text is in it, so it may be kept, printed and handed on.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from flm_jax.lab.compare.results import Point


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Samples at one point, measured.

    Attributes:
      point: how they were written.
      seed: of the training.
      evaluations: network evaluations per sequence that were used, on average.
      file: name of the file of samples.
      sha256: of that file, hex.
      arrays: by metric; (N,) where it is of a sample, (G,) where it is of a group of samples, a
        single number (1,) where it is of all of them.
    """

    point: Point
    seed: int
    evaluations: float
    file: str
    sha256: str
    arrays: Mapping[str, np.ndarray]
