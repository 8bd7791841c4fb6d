"""How much of the samples stands word for word in the training rows."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from flm_jax.errors import UserError
from flm_jax.evals.base import Column, Evaluator
from flm_jax.tokenizers import Tokenizer

LENGTH = 16
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying loses nothing


class Copying(Evaluator):
    """Share of the samples' runs of ``length`` tokens that occur in the training rows.

    Fresh real text has some, too: that is what to compare with. Runs are compared by a 64-bit hash;
    of a hundred million training runs one in 10^11 strangers would be taken for known.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        train_rows: np.ndarray,
        train_documents: Iterable[str] = (),
        length: int = LENGTH,
    ):
        del tokenizer, train_documents
        if length < 1:
            raise UserError(f"eval_options.copying.length={length} must be at least 1")
        self._length = length
        self._known = np.unique(run_hashes(train_rows, length))
        self.columns = (
            Column(
                "copied",
                "copied",
                f"Share of the runs of {length} tokens that stand in the training rows. Higher "
                "than that of held-out data: the model recites.",
                "data",
                "share",
            ),
        )

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the share for int rows (N, L)."""
        shares_N = self.of_each(tokens_NL)
        yield "copied", float(np.mean(shares_N)) if shares_N.size else math.nan

    def of_each(self, tokens_NL: np.ndarray) -> np.ndarray:
        """The share of every row, float64 (N,); nan where rows or training rows are too short."""
        runs = run_hashes(tokens_NL, self._length)
        if not runs.size or not self._known.size:
            return np.full(len(runs), math.nan)
        at = np.minimum(np.searchsorted(self._known, runs), len(self._known) - 1)
        return np.mean(self._known[at] == runs, axis=1)


def run_hashes(tokens_NL: np.ndarray, length: int) -> np.ndarray:
    """uint64 (N, L - length): of each run behind the first token, which is BOS everywhere."""
    inner = np.asarray(tokens_NL)[:, 1:].astype(np.uint64) + np.uint64(1)
    count = max(inner.shape[1] - length + 1, 0)
    hashes = np.zeros((len(inner), count), np.uint64)
    for offset in range(length):  # wraps around on purpose; mixed after each token
        hashes = (hashes ^ inner[:, offset : offset + count]) * _FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes
