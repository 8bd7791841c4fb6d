"""Tasks to be solved: what is given, and how whole rows are checked, exactly.

`task` makes one of the data a model was trained on. Whoever completes rows need not know which.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from flm_jax.data import Data
from flm_jax.data.synthetic import Synthetic
from flm_jax.data.tasks import gsm8k, sudoku
from flm_jax.data.tasks.questions import Questions
from flm_jax.errors import UserError
from flm_jax.evals import program_answers, truth
from flm_jax.evals.base import Column
from flm_jax.evals.sudoku import COLUMNS as SUDOKU
from flm_jax.tokenizers import Tokenizer

RIGHT = Column("right", "right", "Share of the answers that are right.", "higher", "share")
_ANSWERED = Column(
    "answered", "answered", "Share of the programs that return a number.", None, "share"
)
Check = Callable[[np.ndarray], Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows to be completed.

    Attributes:
      tokens_NL, given_NL: int32 and bool; tokens count where they are given.
      columns: of what `check` returns.
      check: completed rows int (N, L), in this order -> shares by name.
      left_out: tasks that do not fit into a row, so that they were not asked.
    """

    tokens_NL: np.ndarray
    given_NL: np.ndarray
    columns: tuple[Column, ...]
    check: Check
    left_out: int = 0


def task(data: Data, count: int, problems: str = "") -> Task:
    """The first ``count`` held-out tasks of the data set of a model.

    Args:
      problems: file or folder of GSM8K; "" looks where data sets are looked for. For models of
        questions and programs.

    Raises UserError for a data set without a given part, and one whose answers nobody can check.
    """
    corpus = data.corpus
    if isinstance(corpus, Questions):
        return _questions(data.tokenizer, data.rows["train"].length, corpus, count, problems)
    if problems:
        raise UserError(
            f"--problems={problems} is for models of questions and programs, but this one was "
            f"trained on data set {corpus.name!r}; leave it out"
        )
    if isinstance(corpus, sudoku.Sudoku):
        return _sudoku(data, corpus, count)
    if isinstance(corpus, Synthetic) and corpus.has_given:
        return _language(data, corpus, count)
    raise UserError(
        f"the rows of data set {corpus.name!r} ask nothing that can be checked; this works for "
        "sudoku, tinygsm, and synthetic with options.given=True"
    )


def _sudoku(data: Data, corpus: sudoku.Sudoku, count: int) -> Task:
    batch = data.rows["valid"].batch(slice(0, count))
    asked = puzzles_N = None
    if corpus.form == "grids":
        puzzles_N = [puzzle for puzzle, _ in corpus.pairs["valid"][:count]]
        asked = sudoku.clues_NL(puzzles_N, corpus.size)

    def check(tokens_NL: np.ndarray) -> dict[str, float]:
        scores = sudoku.score(tokens_NL, puzzles_N, corpus.size, corpus.form)
        return {column.key: float(vars(scores)[_part(column)].mean()) for column in columns}

    columns = tuple(c for c in SUDOKU if _part(c) in ("right", "valid", "kept"))
    given_NL = batch["given"] if asked is None else asked
    return Task(batch["tokens"], given_NL, columns, check)


def _part(column: Column) -> str:
    return column.key.removeprefix("sudoku_")


def _language(data: Data, corpus: Synthetic, count: int) -> Task:
    batch = data.rows["valid"].batch(slice(0, count))

    def check(tokens_NL: np.ndarray) -> dict[str, float]:
        texts = truth.documents(tokens_NL, data.tokenizer)
        right = [text is not None and corpus.language.contains(text) for text in texts]
        return {RIGHT.key: float(np.mean(right))}

    return Task(batch["tokens"], batch["given"], (RIGHT,), check)


def _questions(
    tokenizer: Tokenizer, length: int, corpus: Questions, count: int, problems: str
) -> Task:
    test = list(gsm8k.Gsm8k(problems).pairs("test"))[:count]
    asked, references = zip(*test, strict=True)
    made = gsm8k.prompts(asked, tokenizer, length, corpus.separator)

    def check(tokens_NL: np.ndarray) -> dict[str, float]:
        texts = [program_text(row_L, tokenizer) for row_L in tokens_NL]
        verdicts = program_answers.score(texts, [references[i] for i in made.kept_N])
        return {
            RIGHT.key: float(np.mean([verdict.right for verdict in verdicts])),
            _ANSWERED.key: float(np.mean([verdict.answer is not None for verdict in verdicts])),
        }

    left_out = len(asked) - len(made.kept_N)
    return Task(made.tokens_NL, made.given_NL, (RIGHT, _ANSWERED), check, left_out)


def program_text(row_L: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of a row, special tokens written out as the scoring of programs knows them."""
    parts: list[str] = []
    held: list[int] = []
    for token in [*map(int, row_L), None]:
        if token is not None and token not in tokenizer.specials:
            held.append(token)
            continue
        parts.append(tokenizer.decode(held))
        held = []
        if token is not None:
            parts.append("[PAD]" if token == tokenizer.pad_id else program_answers.END)
    return "".join(parts)
