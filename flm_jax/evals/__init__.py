"""Evaluators: token rows in, named numbers out. A new one is one file here and one entry below."""

from flm_jax.evals.base import Evaluator
from flm_jax.evals.baselines import markov, unigram
from flm_jax.evals.copying import Copying
from flm_jax.evals.diversity import Diversity
from flm_jax.evals.repetition import Repetition
from flm_jax.evals.sudoku import SudokuRows
from flm_jax.evals.text_statistics import TextStatistics
from flm_jax.evals.truth import Truth

EVALS: dict[str, type[Evaluator]] = {
    "text_statistics": TextStatistics,
    "truth": Truth,
    "diversity": Diversity,
    "copying": Copying,
    "repetition": Repetition,
    "sudoku": SudokuRows,
}
BASELINES = {"unigram": unigram, "markov": markov}
