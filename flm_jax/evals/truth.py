"""Samples of a synthetic language against the exact truth: no judge model, no reference text.

A token row counts as a document only if it is, strictly, `[BOS] document [EOS] [PAD] ... [PAD]`;
anything else is invalid, even if the text that people see looks right. With n valid samples, of
which c_x are the document x, and p the true probabilities:

  valid                  share of the rows that are documents of the language
  total variation        ½·Σ_x |c_x/n - p_x|: 0 = the right distribution, 1 = nothing in common
  its noise              what that is on average for n samples of the truth itself, in closed form:
                         E|c - n·p| = 2·(k+1)·C(n, k+1)·p^(k+1)·(1-p)^(n-k), k = floor(n·p)
  coverage               share of the documents of the language that occur
  log-likelihood         mean of log p_x over the valid samples; an invalid one would have -inf
  entropy                -Σ_x p_x·log p_x; samples of the truth have a log-likelihood of minus this

The formula for the noise is de Moivre's mean absolute deviation of a binomial. Total variation, its
noise and coverage are given for languages of up to `ENUMERABLE` documents (city_pairs, addition of
at most 2 digits, the default brackets); with far more documents than samples they say nothing, for
the truth itself has a total variation near 1.
"""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import logging

from flm_jax.data.synthetic import Documents, Language
from flm_jax.evals.base import Column, Evaluator

ENUMERABLE = 20_000  # documents

COLUMNS = (
    Column(
        "valid",
        "valid",
        "Share of samples that are documents of the language, checked exactly.",
        "higher",
        "share",
    ),
    Column(
        "total_variation",
        "distance to truth",
        "Total variation distance between the valid samples and the true distribution: 0 is "
        "perfect, 1 is nothing in common. Never 0 for few samples, see the next column.",
        "lower",
    ),
    Column(
        "total_variation_noise",
        "(noise)",
        "The distance that as many samples of the truth itself have on average.",
    ),
    Column(
        "coverage",
        "coverage",
        "Share of the documents of the language that occur among the samples.",
        "data",
        "share",
    ),
    Column(
        "distinct",
        "distinct",
        "Different documents among the valid samples, as a share of the valid samples.",
        "data",
        "share",
    ),
    Column(
        "log_likelihood",
        "log-likelihood",
        "Mean log probability of the valid samples under the truth, in nats. Above the truth's: "
        "only the likely documents are written. Below: unlikely ones too often.",
        "data",
        "nats",
    ),
    Column(
        "truth_entropy",
        "truth's entropy",
        "Entropy of the true distribution in nats, exact; minus this is the log-likelihood of "
        "samples of the truth.",
        None,
        "nats",
    ),
)


class Truth(Evaluator):
    """Evaluator for token rows of a model that was trained on a synthetic language.

    `train_documents` must know their `language`, as the documents of the data set "synthetic" do;
    with others every value is nan, because at the end of a training nothing should fail.
    """

    columns = COLUMNS
    corpus = "synthetic"

    def __init__(self, tokenizer, train_rows: np.ndarray, train_documents: Iterable[str]):
        del train_rows
        self._tokenizer = tokenizer
        self._language: Language | None = None
        if isinstance(train_documents, Documents):
            self._language = train_documents.language
        if self._language is None:
            logging.warning(
                "evaluator 'truth' knows nothing about this text; use it with the data set "
                "'synthetic', or remove it from evals"
            )

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values of `COLUMNS` for int rows (N, L)."""
        if self._language is None:
            values = {column.key: math.nan for column in COLUMNS}
        else:
            values = measure(self._language, documents(tokens_NL, self._tokenizer))
        yield from values.items()


def documents(tokens_NL: np.ndarray, tokenizer) -> list[str | None]:
    """The document of each row `[BOS] document [EOS] [PAD] ...`; None for rows of another form."""
    return [_document(row_L, tokenizer) for row_L in np.asarray(tokens_NL)]


def measure(language: Language, samples: Sequence[str | None]) -> dict[str, float]:
    """The values of `COLUMNS` for samples as text; None stands for a row that is not a document.

    nan where a value is undefined: without valid samples, or for a language that is too large.
    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("there are no samples to measure")
    counts = collections.Counter(sample for sample in samples if sample is not None)
    log_probs = {text: language.log_prob(text) for text in counts}
    counts = {text: count for text, count in counts.items() if log_probs[text] > -math.inf}
    valid = sum(counts.values())
    values = {column.key: math.nan for column in COLUMNS}
    values |= {"valid": valid / len(samples), "truth_entropy": language.entropy}
    if not valid:
        return values
    values["distinct"] = len(counts) / valid
    values["log_likelihood"] = sum(c * log_probs[text] for text, c in counts.items()) / valid
    if language.size <= ENUMERABLE:
        shares = np.array(list(counts.values())) / valid
        true = np.exp([log_probs[text] for text in counts])
        unseen = max(0.0, 1 - float(true.sum()))
        values["total_variation"] = 0.5 * (float(np.abs(shares - true).sum()) + unseen)
        values["total_variation_noise"] = expected_total_variation(*language.masses, valid)
        values["coverage"] = len(counts) / language.size
    return values


def expected_total_variation(
    probabilities_M: np.ndarray, multiplicities_M: np.ndarray, n: int
) -> float:
    """The mean total variation distance of n samples of a distribution to it, in closed form.

    Args:
      probabilities_M: the probabilities that occur.
      multiplicities_M: how many outcomes have each of them.
      n: samples, at least 1.
    """
    deviations = [_mean_deviation(n, float(p)) for p in probabilities_M]
    return 0.5 * float(np.dot(deviations, multiplicities_M)) / n


def product_of_marginals(train_rows: np.ndarray, n: int, seed: int) -> np.ndarray:
    """int32 rows (n, L) whose positions are independent, each with its marginal in training.

    What a model writes that gets every position right but sees no other position: the baseline
    for one-step samplers. Of K tuples of m words a share of K^(1-m) is valid: 0.4 % for 16 triples.
    """
    train_rows = np.asarray(train_rows)
    if train_rows.ndim != 2 or 0 in train_rows.shape:
        raise ValueError(f"training rows must have shape (R, L), both >= 1: {train_rows.shape}")
    count, length = train_rows.shape
    pick_NL = np.random.default_rng(seed).integers(count, size=(n, length))
    return train_rows[pick_NL, np.arange(length)].astype(np.int32)


def _document(row_L: np.ndarray, tokenizer) -> str | None:
    row = row_L.tolist()
    if row[0] != tokenizer.bos_id or tokenizer.eos_id not in row[1:]:
        return None
    end = row.index(tokenizer.eos_id, 1)
    inner, rest = row[1:end], row[end + 1 :]
    if any(token != tokenizer.pad_id for token in rest):
        return None
    if tokenizer.bos_id in inner or tokenizer.pad_id in inner:
        return None
    return tokenizer.decode(inner)


def _mean_deviation(n: int, p: float) -> float:
    """E|X - n·p| of X ~ Binomial(n, p)."""
    if not 0 < p < 1:
        return 0.0
    k = min(math.floor(n * p), n - 1)
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 2) - math.lgamma(n - k)
    log_tail = log_choose + (k + 1) * math.log(p) + (n - k) * math.log1p(-p)
    return 2 * (k + 1) * math.exp(log_tail)
