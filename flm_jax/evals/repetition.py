"""How much a sample repeats itself: the share of its n-grams that it has had before.

    repetition-n = 1 - different n-grams / all n-grams       of one sample, then the mean

Text has some, too; compare with real text of the same length.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from flm_jax.evals.base import Column, Evaluator
from flm_jax.evals.copying import run_hashes
from flm_jax.tokenizers import Tokenizer

LENGTHS = (1, 2, 3)


class Repetition(Evaluator):
    """Evaluator: repetition-1 to repetition-3 of tokens."""

    columns = tuple(
        Column(
            f"repetition_{n}",
            f"repetition-{n}",
            f"Share of the {n}-grams of tokens that stood in the same sample before. Higher than "
            "that of real text: samples repeat themselves.",
            "data",
            "share",
        )
        for n in LENGTHS
    )

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        train_rows: np.ndarray | None = None,
        train_documents: Iterable[str] = (),
    ):
        del tokenizer, train_rows, train_documents

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values for int rows (N, L)."""
        for n in LENGTHS:
            shares_N = of_each(tokens_NL, n)
            yield f"repetition_{n}", float(np.mean(shares_N)) if shares_N.size else math.nan


def of_each(tokens_NL: np.ndarray, n: int) -> np.ndarray:
    """repetition-n of every row, its first token (BOS) left out: float64 (N,); nan if too short."""
    runs = np.sort(run_hashes(tokens_NL, n), axis=1)
    if not runs.shape[1]:
        return np.full(len(runs), math.nan)
    return np.mean(np.diff(runs, axis=1) == 0, axis=1) * (1 - 1 / runs.shape[1])
