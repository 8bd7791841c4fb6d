"""The entropy inside each sample: the one number that needs neither training text nor a scorer."""

from collections.abc import Iterator

import numpy as np

from flm_jax.evals import text_statistics
from flm_jax.evals.base import Column, Evaluator


class SampleEntropy(Evaluator):
    """Evaluator: entropy in nats of the tokens within a row, averaged over rows."""

    columns: tuple[Column, ...] = tuple(
        column for column in text_statistics.COLUMNS if column.key == "sample_entropy"
    )

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the value for int rows (N, L)."""
        yield "sample_entropy", text_statistics.sample_entropy(np.asarray(tokens_NL))
