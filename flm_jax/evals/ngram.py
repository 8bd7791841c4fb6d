"""An n-gram language model with Witten-Bell smoothing, fitted on token rows: a judge of its own.

    p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h))

h' is h without its oldest token, c counts occurrences, T(h) the different successors of h; the last
step is the uniform distribution, so every token has a probability. Nothing is tuned (Witten and
Bell, 1991). Contexts do not reach over the start of a row: there they are shorter, and the first
token of a row is given.
"""

import dataclasses

import numpy as np

from flm_jax.errors import UserError
from flm_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Counts of the k-grams of one k; their keys are numbers to the base of the vocabulary size."""

    grams: np.ndarray  # int64, sorted
    of_gram: np.ndarray
    contexts: np.ndarray  # int64, sorted
    of_context: np.ndarray
    successors: np.ndarray  # different tokens after each context


@dataclasses.dataclass(frozen=True)
class Ngram:
    """A fitted model; `fit` makes one.

    Attributes:
      order: tokens of the longest n-gram, the predicted one included.
      tokenizer: of the rows; it says how many tokens there are.
    """

    order: int
    tokenizer: Tokenizer
    _counts: tuple[_Counts, ...]

    @property
    def name(self) -> str:
        return f"a {self.order}-gram model"

    @property
    def longest(self) -> int:
        return 0

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """-log p of every token but the first of its row given those before: float64 (N, L - 1)."""
        size = self.tokenizer.vocab_size
        tokens_NL = _checked(tokens_NL, size)
        p_NM = np.full((len(tokens_NL), tokens_NL.shape[1] - 1), 1.0 / size)
        for k, counts in enumerate(self._counts, start=1):
            first = max(k - 2, 0)  # of M: earlier positions have no context of k - 1 tokens
            keys = _keys(tokens_NL, k, size)
            c = _look_up(keys, counts.grams, counts.of_gram)
            context = keys // size
            total = _look_up(context, counts.contexts, counts.of_context)
            kinds = _look_up(context, counts.contexts, counts.successors)
            shorter = p_NM[:, first:]
            with np.errstate(invalid="ignore"):
                smoothed = (c + kinds * shorter) / (total + kinds)
            p_NM[:, first:] = np.where(total > 0, smoothed, shorter)
        return -np.log(p_NM)


def fit(tokens_NL: np.ndarray, order: int, tokenizer: Tokenizer) -> Ngram:
    """The model of int rows (N, L), L at least 2.

    Raises UserError if n-grams of that order cannot be numbered in 64 bits.
    """
    vocab_size = tokenizer.vocab_size
    if order < 1 or float(vocab_size) ** order > np.iinfo(np.int64).max:
        raise UserError(
            f"an n-gram model of order {order} over {vocab_size} tokens has too many n-grams to "
            "number; give an order of at least 1, and a smaller one for large vocabularies"
        )
    tokens_NL = _checked(tokens_NL, vocab_size)
    counts = (_count(tokens_NL, k, vocab_size) for k in range(1, order + 1))
    return Ngram(order, tokenizer, tuple(counts))


def _count(tokens_NL: np.ndarray, k: int, vocab_size: int) -> _Counts:
    keys = _keys(tokens_NL, k, vocab_size).ravel()
    grams, of_gram = np.unique(keys, return_counts=True)
    contexts, first, successors = np.unique(
        grams // vocab_size, return_index=True, return_counts=True
    )
    of_context = np.add.reduceat(of_gram, first) if len(grams) else of_gram
    return _Counts(grams, of_gram, contexts, of_context, successors)


def _keys(tokens_NL: np.ndarray, k: int, vocab_size: int) -> np.ndarray:
    """The k-gram that ends at each predicted token with k - 1 tokens before it, as one number."""
    ends = range(max(k - 1, 1), tokens_NL.shape[1])  # the first token is given, not predicted
    keys = np.zeros((len(tokens_NL), len(ends)), np.int64)
    for back in range(k - 1, -1, -1):
        keys = keys * vocab_size + tokens_NL[:, ends.start - back : ends.stop - back]
    return keys


def _look_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The value of each key, 0 for unknown ones."""
    if not len(known):
        return np.zeros(keys.shape, np.int64)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], 0)


def _checked(tokens_NL: np.ndarray, vocab_size: int) -> np.ndarray:
    tokens_NL = np.asarray(tokens_NL).astype(np.int64)
    if tokens_NL.ndim != 2 or tokens_NL.shape[0] < 1 or tokens_NL.shape[1] < 2:
        raise ValueError(f"rows must have shape (N, L), N >= 1 and L >= 2: {tokens_NL.shape}")
    if tokens_NL.min() < 0 or tokens_NL.max() >= vocab_size:
        raise ValueError(f"token ids must be from 0 to {vocab_size - 1}")
    return tokens_NL
