"""Sudoku as text: a puzzle is given, its only solution is to be written.

A document of the form "pairs" is PUZZLE=SOLUTION, a grid being its rows with line breaks between:
with the tokenizer "sudoku" and data.packing=exact a row is the published one,
`[BOS] puzzle [BOS] solution`, 2 * size * (size + 1) tokens: 180 for 9x9, 40 for 4x4. One of the
form "grids" is a solution alone: then clues are cells that are given when sampling.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax import errors
from flm_jax.data import base
from flm_jax.data.tasks import puzzles
from flm_jax.data.tasks.puzzles import Grid
from flm_jax.data.wrap import Tokens
from flm_jax.host import progress
from flm_jax.tokenizers.sudoku import BOS, ROW_END

CLUES = {9: {"easy": 40, "medium": 35, "hard": 30}, 4: {"easy": 10, "medium": 7, "hard": 4}}
FORMS = ("pairs", "grids")
HELD_OUT = 32  # of the 288 grids of size 4
BETWEEN = "="


class Sudoku(base.MemoryCorpus):
    """Puzzles with one solution. There is no test split.

    Of size 9 they are those of the public FMLM+ code, number for number: seeds `seed`, `seed` + 1,
    ..., shuffled, the last `valid` ones for validation. Of size 4 there are only 288 solutions: 32
    of them, drawn by the seed, occur in the validation split and nowhere else.
    """

    name = "sudoku"
    licence = "none needed: made by a program, contains nobody's text"
    splits = ("train", "valid")

    def __init__(
        self,
        size: int = 9,
        difficulty: str = "medium",
        train: int = 48_000,
        valid: int = 2_000,
        seed: int = 42,
        form: str = "pairs",
    ):
        """Nothing is drawn yet; 50,000 puzzles of size 9 take some minutes.

        Args:
          size: of the grid, 9 or 4.
          difficulty: easy, medium or hard: 40, 35, 30 clues of size 9, 10, 7, 4 of size 4 (more
            where no further digit can be removed).
          train: puzzles of this split.
          valid: puzzles of that one.
          seed: the published sets have 42; all difficulties of a seed have the same solutions.
          form: "pairs" (puzzle and solution) or "grids" (solutions alone).

        Raises:
          UserError: a value that is none of these.
        """
        for option, value, allowed in (
            ("size", size, puzzles.SIZES),
            ("difficulty", difficulty, tuple(CLUES[9])),
            ("form", form, FORMS),
        ):
            if value not in allowed:
                raise errors.UserError(
                    f"options.{option} is {value!r}, but of data set 'sudoku' it is "
                    f"{' or '.join(map(str, allowed))}"
                )
        for option, value, least in (("train", train, 1), ("valid", valid, 1), ("seed", seed, 0)):
            if value < least:
                raise errors.UserError(f"options.{option} is {value}, but must be at least {least}")
        self.size, self.form, self._seed = size, form, seed
        self._clues, self._counts = CLUES[size][difficulty], (train, valid)
        self.has_given = form == "pairs"
        self.kind = f"Sudoku {size}x{size}, {difficulty}, {form}, seed {seed}"

    def fingerprint(self, split: str) -> str:
        """Of what decides the puzzles: packed rows are found without drawing them again."""
        base.check_split(self, split)
        facts = (split, self.size, self.form, self._seed, self._clues, self._counts)
        return base.hash_texts(tuple(map(str, facts)))

    def parts(self, text: str) -> tuple[str, ...]:
        if self.form == "grids":
            return (text,)
        puzzle, between, solution = text.partition(BETWEEN)
        return puzzle + between, solution

    @functools.cached_property
    def pairs(self) -> Mapping[str, Sequence[tuple[Grid, Grid]]]:
        """(puzzle, solution) of every document of each split, in order."""
        return self._small() if self.size == 4 else self._published()

    def read(self) -> Mapping[str, Sequence[str]]:
        return {
            split: [self._text(puzzle, solution) for puzzle, solution in some]
            for split, some in self.pairs.items()
        }

    def __getstate__(self) -> dict:
        return {key: value for key, value in super().__getstate__().items() if key != "pairs"}

    def _text(self, puzzle: Grid, solution: Grid) -> str:
        written = grid_text(solution, self.size)
        if self.form == "grids":
            return written
        return grid_text(puzzle, self.size) + BETWEEN + written

    def _published(self) -> dict[str, list[tuple[Grid, Grid]]]:
        train, valid = self._counts
        total = train + valid
        drawn = puzzles.published(self._seed, total, self._clues)
        made = list(progress.bar(drawn, desc="drawing puzzles", total=total, delay=2))
        order = list(range(total))
        random.Random(self._seed).shuffle(order)
        pairs = [made[i] for i in order]
        return {"train": pairs[:train], "valid": pairs[train:]}

    def _small(self) -> dict[str, list[tuple[Grid, Grid]]]:
        generator = random.Random(self._seed)
        solutions = puzzles.all_solutions(4)
        generator.shuffle(solutions)
        sides = {"train": solutions[HELD_OUT:], "valid": solutions[:HELD_OUT]}
        return {
            split: [
                (puzzles.dig(generator, solution, self._clues, 4), solution)
                for solution in (sides[split][i % len(sides[split])] for i in range(count))
            ]
            for split, count in zip(self.splits, self._counts, strict=True)
        }


def grid_text(grid: Grid, size: int) -> str:
    """The rows of a grid, a line each; 0 for an empty cell."""
    digits = "".join(map(str, grid))
    return "\n".join(digits[i : i + size] for i in range(0, size * size, size))


@dataclasses.dataclass(frozen=True)
class Scores:
    """How puzzles were solved, a truth value per row, bool (N,).

    Attributes:
      legal: the row has a grid of digits behind the puzzle, and its row ends where they belong.
      valid: that grid has every digit once in every row, column and box.
      kept: it has all clues of the puzzle.
      right: valid and kept. A puzzle has one solution, so this is the published accuracy: all
        tokens equal those of the solution.
    """

    legal: np.ndarray
    valid: np.ndarray
    kept: np.ndarray
    right: np.ndarray


def read_row(row_L: Tokens, size: int, form: str = "pairs") -> tuple[Grid, Grid | None]:
    """(puzzle, solution) of the tokens of a row, BOS included.

    The puzzle is () for the form "grids". It has 0 and the solution is None where something else
    than a digit stands in a cell, or a row end elsewhere than it belongs.
    """
    width = size * (size + 1)  # BOS and grid
    row = [int(token) for token in row_L]
    halves = [row[:width], row[width:]] if form == "pairs" else [row]
    found = [_grid(half, size) for half in halves]
    if form == "grids":
        return (), found[0]
    return tuple(d if 1 <= d <= size else 0 for d in _cells(halves[0], size)), found[1]


def score(
    rows_NL: np.ndarray, puzzles_N: Sequence[Grid] | None, size: int, form: str = "pairs"
) -> Scores:
    """Scores completed rows, int (N, L).

    Args:
      puzzles_N: those that were asked, size * size digits each; None: those in the rows
        themselves, none for the form "grids".
    """
    values = []
    for number, row_L in enumerate(np.asarray(rows_NL)):
        own, solution = read_row(row_L, size, form)
        puzzle = own if puzzles_N is None else puzzles_N[number]
        valid = solution is not None and puzzles.is_solution(solution, size)
        kept = solution is not None and (not puzzle or puzzles.keeps(solution, puzzle))
        values.append((solution is not None, valid, kept, valid and kept))
    return Scores(*np.array(values, bool).reshape(-1, 4).T)


def clues_NL(puzzles_N: Sequence[Grid], size: int) -> np.ndarray:
    """Which tokens of rows of the form "grids" are given: clues, row ends and BOS; bool (N, L)."""
    given_NSS = np.array(puzzles_N).reshape(-1, size, size) > 0
    return np.pad(given_NSS, ((0, 0), (0, 0), (1, 0)), constant_values=True).reshape(
        len(puzzles_N), size * (size + 1)
    )


def row_length(size: int, form: str = "pairs") -> int:
    """Tokens of a row, BOS included: data.length."""
    return size * (size + 1) * (2 if form == "pairs" else 1)


def _cells(half: Sequence[int], size: int) -> list[int]:
    """The cells of BOS and a grid: all but BOS and row ends."""
    return [token for place, token in enumerate(half) if place % (size + 1)]


def _grid(half: Sequence[int], size: int) -> Grid | None:
    cells = tuple(_cells(half, size))
    bos, *ends = half[:: size + 1]
    good = all(1 <= digit <= size for digit in cells) and bos == BOS
    good = good and len(cells) == size * size and all(end == ROW_END for end in ends)
    return cells if good else None
