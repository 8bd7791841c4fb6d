"""Samples of Sudoku rows, checked exactly: no judge, no reference.

A row brings its own puzzle, so rows that were written from nothing and rows that were completed
from a given puzzle (`flm_jax.data.tasks.sudoku.score`) are measured alike. A puzzle of the data set
has one solution: "right" is then the published accuracy.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from absl import logging

from flm_jax.data.tasks import puzzles, sudoku
from flm_jax.evals.base import Column, Evaluator
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.sudoku import SudokuTokens

COLUMNS = (
    Column(
        "sudoku_right",
        "right",
        "Share of rows whose solution is valid and has the clues of their puzzle.",
        "higher",
        "share",
    ),
    Column(
        "sudoku_valid",
        "valid grids",
        "Share of rows with every digit once in every row, column and box.",
        "higher",
        "share",
    ),
    Column(
        "sudoku_kept", "clues kept", "Share of rows with all clues of their puzzle.", None, "share"
    ),
    Column(
        "sudoku_legal",
        "legal rows",
        "Share of rows with digits in the cells and row ends between them.",
        None,
        "share",
    ),
    Column(
        "sudoku_unseen",
        "unseen",
        "Share of the valid grids that are the solution of no training row.",
        "data",
        "share",
    ),
    Column("sudoku_distinct", "distinct", "Different grids among the valid ones.", "data", "share"),
)
_SHAPES = {
    sudoku.row_length(size, form): (size, form) for size in puzzles.SIZES for form in sudoku.FORMS
}


class SudokuRows(Evaluator):
    """Evaluator for models trained on the data set "sudoku"; every value is nan for others."""

    columns = COLUMNS
    corpus = "sudoku"

    def __init__(
        self, tokenizer: Tokenizer, train_rows: np.ndarray, train_documents: Iterable[str] = ()
    ):
        del train_documents
        self._shape = None
        if isinstance(tokenizer, SudokuTokens):
            self._shape = _SHAPES.get(np.shape(train_rows)[1])
        if self._shape is None:
            logging.warning(
                "evaluator 'sudoku' knows nothing about these rows; use it with the data set "
                "'sudoku', or remove it from evals"
            )
            return
        read = (sudoku.read_row(row_L, *self._shape)[1] for row_L in train_rows)
        self._seen = {solution for solution in read if solution is not None}

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values of `COLUMNS` for int rows (N, L)."""
        if self._shape is None:
            yield from ((column.key, math.nan) for column in COLUMNS)
            return
        scores = sudoku.score(tokens_NL, None, *self._shape)
        for name in ("right", "valid", "kept", "legal"):
            yield f"sudoku_{name}", float(vars(scores)[name].mean())
        valid_NL = np.asarray(tokens_NL)[scores.valid]
        grids = [sudoku.read_row(row_L, *self._shape)[1] for row_L in valid_NL]
        share = 1 / len(grids) if grids else math.nan
        yield "sudoku_unseen", share * sum(grid not in self._seen for grid in grids)
        yield "sudoku_distinct", share * len(set(grids))
