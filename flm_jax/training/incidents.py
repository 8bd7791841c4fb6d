"""What should not happen in training: numbers not finite, norms that leap, exceptions."""

import bisect
import collections
import errno
import io
import pathlib
import sys
import traceback
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flm_jax.errors import UserError, first_line
from flm_jax.host import files

FOLDER = "nonfinite"
MOST_FILES = 20  # a run that skips on and on must not fill the disk
LEAST_NORMS = 20
# Exceptions that say something of the machine, not of the code.
OF_THE_MACHINE = (OSError, MemoryError, jax.errors.JaxRuntimeError)


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
    """Writes the batch of a step for `flm reproduce`; None if there are enough already.

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


def describe(error: Exception) -> str:
    """An exception in a line, with the remedy where there is one."""
    if isinstance(error, UserError):
        return str(error)
    line = first_line(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in line:
        line += ": out of memory; model.remat=full and a smaller model.head_chunk need less"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        line += "; free space there"
    return line


def keep_traceback(workdir: pathlib.Path, step: int, error: Exception) -> str:
    """Writes where an exception came from to a file; returns what to say about it.

    A disk that is full does not take it: then it goes to stderr.
    """
    process = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = workdir / "tracebacks" / f"step_{step:08d}{process}.txt"
    try:
        files.write_atomically(path, "".join(traceback.format_exception(error)))
    except UserError:
        traceback.print_exception(error, file=sys.stderr)
        return ""
    return f"; where it came from: {path}"
