"""What a training step must not do: numbers that are not finite, gradient norms that leap."""

import bisect
import collections
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flm_jax import files

FOLDER = "nonfinite"
MOST_FILES = 20  # a run that skips on and on must not fill the disk
LEAST_NORMS = 20


class Spikes:
    """Finds gradient norms far above the running median.

    Args:
      factor: a norm above so many medians is a spike; 0: none is.
      window: norms that the median is taken of; the first ``LEAST_NORMS`` are never spikes.
    """

    def __init__(self, factor: float, window: int = 100):
        self._factor = factor
        self._newest: collections.deque[float] = collections.deque(maxlen=window)
        self._sorted: list[float] = []

    def median_if_spike(self, norm: float) -> float | None:
        """The median before this norm if it is a spike, else None; remembers the norm."""
        count = len(self._sorted)
        middle = self._sorted[count // 2] if count else 0.0
        if count == self._newest.maxlen:
            del self._sorted[bisect.bisect_left(self._sorted, self._newest[0])]
        self._newest.append(norm)
        bisect.insort(self._sorted, norm)
        spike = self._factor and count >= LEAST_NORMS and norm > self._factor * middle
        return middle if spike else None


def keep_batch(
    workdir: pathlib.Path,
    step: int,
    tokens_BL: np.ndarray,
    mask_BL: np.ndarray,
    facts: Mapping[str, Any],
) -> pathlib.Path | None:
    """Writes the batch of a step for `flm_jax.reproduce`; None if there are enough already.

    Args:
      facts: scalars and texts by name: loss, grad_norm, seed, checkpoint_step, config, command.
    """
    path = path_of(workdir, step)
    there = list(path.parent.glob("step_*.npz"))
    if len(there) >= MOST_FILES and path not in there:
        return None
    content = io.BytesIO()
    np.savez_compressed(content, step=step, tokens=tokens_BL, mask=mask_BL, **facts)
    files.write_atomically(path, content.getvalue())
    return path


def path_of(workdir: pathlib.Path, step: int) -> pathlib.Path:
    return workdir / FOLDER / f"step_{step:08d}.npz"
