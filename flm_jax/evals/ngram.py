"""N-gram language models of token rows: judges that need no download.

    p(w | h) = share(h w) + rest(h) p(w | h')

h' is h without its oldest token. `fit` makes one with Witten-Bell smoothing (1991): with c for
counts and T(h) for the number of different successors of h,

    share(h w) = c(h w) / (c(h) + T(h))        rest(h) = T(h) / (c(h) + T(h))

The last step is the uniform distribution, so every token has a probability, and nothing is tuned.
Contexts do not reach over the start of a row: there they are shorter, and the first token of a row
is given. `kneser_ney.py` has other shares for the same counts.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from flm_jax.errors import UserError
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.base import sha256


@dataclasses.dataclass(frozen=True)
class Grams:
    """The different k-grams of one k, numbered by their place in `keys`.

    A key is the number of the gram without its last token, times the size of the vocabulary, plus
    the last token: it fits into 64 bits whatever k is. A single token is its own number.

    Attributes:
      size: of the vocabulary.
      keys: int64 (G,), sorted.
      counts: int64 (G,), how often each occurs, its last token behind the first one of a row.
    """

    size: int
    keys: np.ndarray
    counts: np.ndarray

    @property
    def contexts(self) -> np.ndarray:
        """The number of each gram without its last token; 0 for all single tokens."""
        return self.keys // self.size

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The number of each key; -1 for unknown ones."""
        if not len(self.keys):
            return np.full(keys.shape, -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


@dataclasses.dataclass(frozen=True)
class Level:
    """What k-grams say: `share` of each, and what each context has for the level below."""

    grams: Grams
    share: np.ndarray  # float64 (G,)
    rest: np.ndarray  # float64 (C,); 1 where a context has no successor


@dataclasses.dataclass(frozen=True)
class Ngram:
    """A fitted model.

    Attributes:
      name: for tables.
      tokenizer: of the rows; it says how many tokens there are.
      fingerprint: SHA-256 (hex) that stands for the kind of model, its tokenizer and text.
      levels: for k = 1, 2, ...
    """

    name: str
    tokenizer: Tokenizer
    fingerprint: str
    levels: tuple[Level, ...]

    @property
    def longest(self) -> int:
        return 0

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """-log p of every token but the first of its row given those before: float64 (N, L - 1)."""
        size = self.tokenizer.vocab_size
        tokens_NL = checked(tokens_NL, size)
        p_NM = np.full((len(tokens_NL), tokens_NL.shape[1] - 1), 1.0 / size)
        known = numbered([level.grams for level in self.levels], tokens_NL)
        for level, (contexts, grams) in zip(self.levels, known, strict=True):
            first = p_NM.shape[1] - contexts.shape[1]  # earlier ones have no context that long
            rest = _of(level.rest, contexts, unknown=1.0)
            p_NM[:, first:] = _of(level.share, grams, unknown=0.0) + rest * p_NM[:, first:]
        return -np.log(p_NM)


def fit(tokens_NL: np.ndarray, order: int, tokenizer: Tokenizer) -> Ngram:
    """The Witten-Bell model of int rows (N, L), L at least 2; UserError for an order below 1."""
    tokens_NL = checked(tokens_NL, tokenizer.vocab_size)
    levels, contexts = [], 1
    for grams in count(tokens_NL, order, tokenizer.vocab_size):
        of_context = np.bincount(grams.contexts, grams.counts, contexts)
        kinds = np.bincount(grams.contexts, grams.counts > 0, contexts)
        whole = np.maximum(of_context + kinds, 1)
        share = grams.counts / whole[grams.contexts]
        levels.append(Level(grams, share, np.where(kinds > 0, kinds / whole, 1.0)))
        contexts = len(grams.keys)
    name = f"a {order}-gram model"
    fingerprint = sha256(name, tokenizer.fingerprint, tokens_NL.tobytes())
    return Ngram(name, tokenizer, fingerprint, tuple(levels))


def count(tokens_NL: np.ndarray, order: int, size: int) -> list[Grams]:
    """The k-grams of rows (`checked`) for k = 1 to `order`; UserError for an order below 1."""
    if order < 1:
        raise UserError(f"an n-gram model of order {order} predicts nothing; give at least 1")
    singles = np.bincount(tokens_NL[:, 1:].ravel(), minlength=size)
    found = [Grams(size, np.arange(size), singles)]
    numbers = tokens_NL
    for k in range(2, order + 1):
        keys = numbers[:, :-1] * size + tokens_NL[:, k - 1 :]
        found.append(Grams(size, *np.unique(keys, return_counts=True)))
        numbers = found[-1].find(keys)
    return found


def numbered(
    grams: Sequence[Grams], tokens_NL: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each k the numbers of (context, k-gram) at each predicted token; -1 for unknown ones.

    Both are int (N, L - max(k - 1, 1)): the first tokens of a row have no context that long.
    """
    yield np.zeros_like(tokens_NL[:, 1:]), tokens_NL[:, 1:]
    numbers = tokens_NL
    for k, level in enumerate(grams[1:], start=2):
        contexts = numbers[:, :-1]
        numbers = level.find(contexts * level.size + tokens_NL[:, k - 1 :])
        yield contexts, numbers


def checked(tokens_NL: np.ndarray, vocab_size: int) -> np.ndarray:
    """The rows as int64; ValueError for another shape, or ids that are no tokens."""
    tokens_NL = np.asarray(tokens_NL).astype(np.int64)
    if tokens_NL.ndim != 2 or tokens_NL.shape[0] < 1 or tokens_NL.shape[1] < 2:
        raise ValueError(f"rows must have shape (N, L), N >= 1 and L >= 2: {tokens_NL.shape}")
    if tokens_NL.min() < 0 or tokens_NL.max() >= vocab_size:
        raise ValueError(f"token ids must be from 0 to {vocab_size - 1}")
    return tokens_NL


def _of(values: np.ndarray, numbers: np.ndarray, unknown: float) -> np.ndarray:
    if not len(values):
        return np.full(numbers.shape, unknown)
    return np.where(numbers >= 0, values[numbers], unknown)
