"""The evaluator of Sudoku rows on rows whose shares are known by construction."""

import math

import numpy as np
import pytest

from flm_jax import data
from flm_jax.data.tasks.sudoku import Sudoku
from flm_jax.evals.sudoku import COLUMNS, SudokuRows
from flm_jax.tokenizers.sudoku import SudokuTokens


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    corpus = Sudoku(size=4, difficulty="easy", train=256, valid=32)
    folder = tmp_path_factory.mktemp("rows")
    return {
        split: data.pack(corpus, SudokuTokens(), split, 40, folder, packing="exact")[:]
        for split in corpus.splits
    }


def test_shares(rows):
    evaluator = SudokuRows(SudokuTokens(), rows["train"])
    values = dict(evaluator(rows["valid"]))
    assert list(values) == [column.key for column in COLUMNS]
    assert set(values.values()) == {1.0}
    assert dict(evaluator(rows["train"]))["sudoku_unseen"] == 0
    half = rows["valid"].copy()
    half[::2, 21:] = half[1::2, 21:]  # valid grids, but of other puzzles; each of 16 grids twice
    values = dict(evaluator(half))
    assert values["sudoku_valid"] == values["sudoku_legal"] == 1 and values["sudoku_right"] == 0.5
    assert values["sudoku_distinct"] == 0.5
    mixed = np.concatenate([rows["train"][:24], rows["valid"][:8]])
    assert dict(evaluator(mixed))["sudoku_unseen"] == 0.25


def test_noise_is_no_sudoku(rows):
    noise = np.random.default_rng(0).integers(0, 12, rows["valid"].shape)
    values = dict(SudokuRows(SudokuTokens(), rows["train"])(noise))
    assert values["sudoku_legal"] == values["sudoku_right"] == 0
    assert math.isnan(values["sudoku_unseen"])


def test_other_rows_have_no_values(rows, caplog):
    found = dict(SudokuRows(SudokuTokens(), rows["train"][:, :30])(rows["valid"]))
    assert list(found) == [column.key for column in COLUMNS] and all(
        map(math.isnan, found.values())
    )
    assert "knows nothing about these rows" in caplog.text
