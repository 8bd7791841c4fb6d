"""Sudoku grids and puzzles with one solution, drawn as the public code of FMLM+ draws them.

A grid is a tuple of size * size digits in row-major order, 0 for an empty cell. The random numbers
are those of Python's `random.Random`, so that a seed gives the published puzzle.
"""

import functools
import math
import random
from collections.abc import Iterator

Grid = tuple[int, ...]

SIZES = (4, 9)


@functools.cache
def units(size: int) -> tuple[tuple[int, int, int], ...]:
    """(row, column, box) of every cell, as numbers below 3 * size: what may hold a digit once."""
    side = math.isqrt(size)
    return tuple(
        (row, size + column, 2 * size + row // side * side + column // side)
        for row in range(size)
        for column in range(size)
    )


def is_solution(grid: Grid, size: int) -> bool:
    """Whether every row, column and box holds every digit from 1 to `size`."""
    if len(grid) != size * size or not all(1 <= digit <= size for digit in grid):
        return False
    return len({(u, d) for d, of in zip(grid, units(size), strict=True) for u in of}) == 3 * size**2


def keeps(grid: Grid, puzzle: Grid) -> bool:
    """Whether a grid has the puzzle's digit wherever that has one."""
    return all(clue in (0, digit) for digit, clue in zip(grid, puzzle, strict=True))


def random_solution(generator: random.Random, size: int) -> Grid:
    """A filled grid: cells in order, digits tried in a fresh random order at each."""
    cells, used = [0] * size**2, [0] * 3 * size  # `used`: a bit for each digit that a unit holds

    def fill(cell: int) -> bool:
        if cell == len(cells):
            return True
        digits = list(range(1, size + 1))
        generator.shuffle(digits)
        row, column, box = units(size)[cell]
        for digit in digits:
            bit = 1 << digit
            if not (used[row] | used[column] | used[box]) & bit:
                for unit in (row, column, box):
                    used[unit] |= bit
                cells[cell] = digit
                if fill(cell + 1):
                    return True
                for unit in (row, column, box):
                    used[unit] ^= bit
        return False

    assert fill(0)
    return tuple(cells)


def dig(generator: random.Random, solution: Grid, clues: int, size: int) -> Grid:
    """The puzzle that is left when digits are removed in random order while one solution remains.

    It stops at `clues` digits; it may have more, where no further one can be removed.
    """
    order = [(row, column) for row in range(size) for column in range(size)]
    generator.shuffle(order)
    cells = list(solution)
    left = len(cells) - clues
    for row, column in order:
        if left <= 0:
            break
        cell = row * size + column
        cells[cell] = 0
        if _others(cells, cell, solution[cell], size):
            cells[cell] = solution[cell]
        else:
            left -= 1
    return tuple(cells)


def _others(cells: list[int], cell: int, digit: int, size: int) -> bool:
    """Whether the puzzle has a solution with another digit in the cell, which is empty.

    Before the cell was emptied there was one solution, so this is whether there are several now.
    """
    used = [0] * 3 * size
    for value, of in zip(cells, units(size), strict=True):
        for unit in of:
            used[unit] |= 1 << value
    empty = [i for i, value in enumerate(cells) if not value and i != cell]
    row, column, box = units(size)[cell]
    for other in range(1, size + 1):
        bit = 1 << other
        if other != digit and not (used[row] | used[column] | used[box]) & bit:
            again = list(used)
            for unit in (row, column, box):
                again[unit] |= bit
            if _solvable(empty, again, size):
                return True
    return False


def _solvable(empty: list[int], used: list[int], size: int) -> bool:
    """Whether the empty cells can be filled; the cell with the fewest choices first."""
    if not empty:
        return True
    of, every = units(size), (2 << size) - 2
    best, fewest, choices = -1, size + 1, 0
    for cell in empty:
        row, column, box = of[cell]
        free = every & ~(used[row] | used[column] | used[box])
        count = free.bit_count()
        if count < fewest:
            best, fewest, choices = cell, count, free
            if count <= 1:
                break
    if not fewest:
        return False
    rest = [cell for cell in empty if cell != best]
    row, column, box = of[best]
    while choices:
        bit = choices & -choices
        choices ^= bit
        again = list(used)
        again[row] |= bit
        again[column] |= bit
        again[box] |= bit
        if _solvable(rest, again, size):
            return True
    return False


def puzzle(seed: int, clues: int) -> tuple[Grid, Grid]:
    """The published 9x9 puzzle of a seed, and its only solution."""
    generator = random.Random(seed)
    solution = random_solution(generator, 9)
    return dig(generator, solution, clues, 9), solution


def published(first_seed: int, count: int, clues: int) -> Iterator[tuple[Grid, Grid]]:
    """`count` pairs (puzzle, solution) of seeds from `first_seed` on, no solution twice."""
    seen: set[Grid] = set()
    seed = first_seed
    while len(seen) < count:
        made = puzzle(seed, clues)
        seed += 1
        if made[1] not in seen:
            seen.add(made[1])
            yield made


def all_solutions(size: int) -> list[Grid]:
    """Every filled grid, in lexicographic order: 288 of size 4. (Those of size 9 are 6.7e21.)"""
    found: list[Grid] = []

    def extend(cells: Grid) -> None:
        if len(cells) == size**2:
            found.append(cells)
            return
        mine = units(size)[len(cells)]
        held = zip(cells, units(size), strict=False)
        taken = {digit for digit, of in held if not set(mine).isdisjoint(of)}
        for digit in range(1, size + 1):
            if digit not in taken:
                extend((*cells, digit))

    extend(())
    return found
