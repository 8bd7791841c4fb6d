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
the truth itself has a total variation near 1. Larger languages are compared in features of their
documents (`Language.laws`) whose distribution is known exactly:

  distance of features   mean over the features of ½·Σ_v |f_v - p_v|, f the frequencies of values
                         among the valid samples: addition3 the digits of the operands and the
                         number of carries; brackets32 depth, empty pairs, pairs in the first
                         bracket, kinds; the grammars the number of words and the words
  the truth's            the same for as many fresh samples of the truth itself
  never trained on       share of the valid samples that training never saw: addition3 keeps a tenth
                         of the operand pairs back, so 10 % for who adds and 0 % for who recalls
"""

import collections
import functools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from flm_jax.data.synthetic import Documents, Language
from flm_jax.data.synthetic.language import Law
from flm_jax.evals.base import Column, Evaluator

ENUMERABLE = 20_000  # documents
_FRESH = 1 << 30  # seed of fresh samples of the truth: none that a data set is drawn with

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
        "feature_distance",
        "distance of features",
        "Total variation distance between the valid samples and the truth, mean over features of a "
        "text (see flm_jax/evals/truth.py): for languages too large for the distance of texts.",
        "lower",
    ),
    Column(
        "feature_distance_truth",
        "(truth's)",
        "The distance of features that as many fresh samples of the truth itself have.",
    ),
    Column(
        "held_out",
        "never trained on",
        "Share of the valid samples that were kept back from training. As many as in the truth "
        "(10 % for addition3): the model has learned the rule. None: it recalls what it saw.",
        "data",
        "share",
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
            self.columns = columns_for(self._language)
        if self._language is None:
            logging.warning(
                "evaluator 'truth' knows nothing about this text; use it with the data set "
                "'synthetic', or remove it from evals"
            )

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values of `columns` for int rows (N, L)."""
        if self._language is None:
            values = {column.key: math.nan for column in self.columns}
        else:
            values = measure(self._language, documents(tokens_NL, self._tokenizer))
        yield from values.items()


def columns_for(language: Language) -> tuple[Column, ...]:
    """Those of `COLUMNS` that samples of a language can have values for."""
    absent: set[str] = set()
    if language.size > ENUMERABLE:
        absent |= {"total_variation", "total_variation_noise", "coverage"}
    if language.size <= ENUMERABLE or not language.laws:
        absent |= {"feature_distance", "feature_distance_truth"}
    if not language.held_out_share:
        absent.add("held_out")
    return tuple(column for column in COLUMNS if column.key not in absent)


def documents(tokens_NL: np.ndarray, tokenizer) -> list[str | None]:
    """The document of each row `[BOS] document [EOS] [PAD] ...`; None for rows of another form."""
    return [_document(row_L, tokenizer) for row_L in np.asarray(tokens_NL)]


def measure(language: Language, samples: Sequence[str | None]) -> dict[str, float]:
    """The values of `columns_for` for samples as text; None: a row that is not a document.

    Without valid samples most are nan. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("there are no samples to measure")
    counts = collections.Counter(sample for sample in samples if sample is not None)
    log_probs = {text: language.log_prob(text) for text in counts}
    counts = {text: count for text, count in counts.items() if log_probs[text] > -math.inf}
    valid = sum(counts.values())
    values = {column.key: math.nan for column in columns_for(language)}
    values |= {"valid": valid / len(samples), "truth_entropy": language.entropy}
    if not valid:
        return values
    values["distinct"] = len(counts) / valid
    values["log_likelihood"] = sum(c * log_probs[text] for text, c in counts.items()) / valid
    if "total_variation" in values:
        shares = np.array(list(counts.values())) / valid
        true = np.exp([log_probs[text] for text in counts])
        unseen = max(0.0, 1 - float(true.sum()))
        values["total_variation"] = 0.5 * (float(np.abs(shares - true).sum()) + unseen)
        values["total_variation_noise"] = expected_total_variation(*language.masses, valid)
        values["coverage"] = len(counts) / language.size
    if "feature_distance" in values:
        values["feature_distance"] = feature_distance(language, counts)
        values["feature_distance_truth"] = _of_fresh_truth(language, valid)
    if "held_out" in values:
        kept_back = sum(count for text, count in counts.items() if language.is_held_out(text))
        values["held_out"] = kept_back / valid
    return values


def feature_distance(language: Language, counts: Mapping[str, int]) -> float:
    """Total variation distance to the truth, mean over the features of documents.

    Args:
      language: one with `laws`.
      counts: documents of the language, and how often each was written; at least one.
    """
    found: dict[str, collections.Counter[Hashable]] = {
        name: collections.Counter() for name in language.laws
    }
    for text, count in counts.items():
        for name, value in language.features(text):
            found[name][value] += count
    return float(np.mean([_distance(found[name], law) for name, law in language.laws.items()]))


def _distance(found: collections.Counter[Hashable], law: Law) -> float:
    total = found.total()
    return 0.5 * sum(abs(found[value] / total - p) for value, p in law.items())


@functools.lru_cache(maxsize=64)
def _of_fresh_truth(language: Language, n: int) -> float:
    """The distance of features of n fresh samples of the truth."""
    fresh = language.sample(np.random.default_rng([_FRESH, n]), n)
    return feature_distance(language, collections.Counter(fresh))


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
