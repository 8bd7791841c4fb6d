"""Tasks made of data: what is given, and checks that say right of what is right by construction."""

import numpy as np
import pytest

from flm_jax import data
from flm_jax.data.tasks import sudoku
from flm_jax.errors import UserError
from flm_jax.evals import tasks
from flm_jax.tokenizers.characters import Characters
from flm_jax.tokenizers.sudoku import SudokuTokens

LETTERS = Characters("".join(map(chr, [10, *range(32, 127)])))


def loaded(folder, tokenizer, packing, length, name, **options) -> data.Data:
    section = {"name": name, "options": options, "packing": packing, "length": length}
    section |= {"cache_dir": str(folder)}
    return data.load_data(section, {}, tokenizer=tokenizer)


SMALL = {"size": 4, "difficulty": "easy", "train": 64, "valid": 32}


@pytest.mark.parametrize("form", sudoku.FORMS)
def test_sudoku(tmp_path, form):
    length = sudoku.row_length(4, form)
    found = loaded(tmp_path, SudokuTokens(), "exact", length, "sudoku", form=form, **SMALL)
    asked = tasks.task(found, 20)
    assert asked.tokens_NL.shape == (20, length) and [c.title for c in asked.columns][0] == "right"
    assert set(asked.check(asked.tokens_NL).values()) == {1.0}
    open_N = (~asked.given_NL).sum(axis=1)
    assert (open_N == 19).all() if form == "pairs" else (open_N == 6).all()  # of 16, 10 clues
    # Solutions of the neighbours: valid, but with other clues.
    other = np.where(asked.given_NL, asked.tokens_NL, np.roll(asked.tokens_NL, 1, axis=0))
    assert asked.check(other)["sudoku_right"] < 1
    wrong = asked.tokens_NL.copy()
    wrong[:5, -1] = wrong[:5, -2]
    assert asked.check(wrong)["sudoku_right"] == 0.75


def test_a_language(tmp_path):
    options = {"language": "addition", "given": True, "documents": 40, "held_out": 40}
    found = loaded(tmp_path, LETTERS, "one_per_row", 8, "synthetic", **options)
    asked = tasks.task(found, 10)
    assert asked.check(asked.tokens_NL) == {"right": 1.0}
    wrong = asked.tokens_NL.copy()
    wrong[:4, 5] = LETTERS.encode("7")[0]  # a sum of seventy and more
    assert asked.check(wrong) == {"right": 0.6}


def test_programs(tmp_path):
    for name, lines in {
        "train.jsonl": '{"question": "Q?", "code": "def f(): pass"}\n' * 3,
        "test.jsonl": '{"question": "Q?", "answer": "#### 4"}\n'
        '{"question": "%s", "answer": "#### 5"}\n'
        % ("long" * 20)
        + '{"question": "R?", "answer": "#### 6"}\n',
    }.items():
        (tmp_path / name).write_text(lines)
    train = {"path": str(tmp_path / "train.jsonl"), "valid_share": 0}
    section = {"name": "tinygsm", "options": train, "packing": "one_per_row", "length": 96}
    section |= {"cache_dir": str(tmp_path)}
    found = data.load_data(section, {}, tokenizer=LETTERS, splits=["train"])
    asked = tasks.task(found, 99, str(tmp_path))
    assert asked.left_out == 1 and asked.given_NL.sum(axis=1).tolist() == [5, 5]
    rows = asked.tokens_NL.copy()
    for row, end in zip(rows, ("4", "'5 of it'"), strict=True):
        written = LETTERS.encode(f"def simple_math_problem():\n return {end}")
        row[5 : 5 + len(written)] = written
        row[5 + len(written)] = LETTERS.eos_id
    assert asked.check(rows) == {"right": 0.5, "answered": 1.0}
    text = tasks.program_text(rows[0], LETTERS)
    assert text.startswith("<|endoftext|>Q?\\ndef simple") and text.endswith("[PAD][PAD]")


def test_data_that_asks_nothing(tmp_path):
    plain = loaded(tmp_path, LETTERS, "one_per_row", 8, "synthetic", language="addition")
    with pytest.raises(UserError, match="data set 'synthetic' ask nothing that can be checked"):
        tasks.task(plain, 4)
    puzzles = loaded(tmp_path, SudokuTokens(), "exact", 40, "sudoku", **SMALL)
    with pytest.raises(UserError, match="--problems=x is for models of questions and programs"):
        tasks.task(puzzles, 4, "x")
