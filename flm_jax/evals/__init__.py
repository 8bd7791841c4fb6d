"""Evaluators: token rows in, named numbers out. A new one is one file here and one row below."""

from flm_jax.evals.base import Evaluator
from flm_jax.evals.text_statistics import TextStatistics
from flm_jax.evals.truth import Truth
from flm_jax.evals.yardsticks import markov, unigram

EVALS: dict[str, type[Evaluator]] = {"text_statistics": TextStatistics, "truth": Truth}
YARDSTICKS = {"unigram": unigram, "markov": markov}
