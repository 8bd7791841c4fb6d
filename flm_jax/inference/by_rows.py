"""Numbers of many token rows from a compiled function of a few."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flm_jax.host import progress

# (tokens (B, L), index of each row (B,), further numbers of each row ...) -> a tree of (B, ...)
OfBatch = Callable[..., Any]


def by_rows(of_batch: OfBatch, size: int, what: str, tokens_NL: np.ndarray, *of_rows: Any) -> Any:
    """``of_batch`` of all rows, float64 (N, ...), ``size`` of them at one time.

    ``of_rows`` are further arrays (N, ...). The last batch is filled up with its last row.
    """
    count = len(tokens_NL)
    size = min(size, count)
    parts = []
    for first in progress.bar(range(0, count, size), desc=what, delay=2, leave=False):
        index_B = np.minimum(first + np.arange(size), count - 1)
        found = of_batch(tokens_NL[index_B], index_B, *(array[index_B] for array in of_rows))
        kept = min(size, count - first)
        parts.append(jax.tree.map(lambda x, n=kept: np.asarray(x, np.float64)[:n], found))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
