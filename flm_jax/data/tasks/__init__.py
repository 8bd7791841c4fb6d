"""Tasks with exact answers: a given part, and an open part that can be checked.

puzzles.py    Sudoku grids and puzzles; sudoku.py makes a corpus of them
questions.py  questions with answers, in files; tinygsm.py and gsm8k.py are the published ones
"""

from flm_jax.data.base import Corpus
from flm_jax.data.tasks.gsm8k import Gsm8k
from flm_jax.data.tasks.sudoku import Sudoku
from flm_jax.data.tasks.tinygsm import TinyGsm

TASKS: dict[str, type[Corpus]] = {"sudoku": Sudoku, "tinygsm": TinyGsm, "gsm8k": Gsm8k}

__all__ = ["TASKS"]
