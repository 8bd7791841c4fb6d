"""A small probabilistic grammar of English with agreement across relative clauses.

Nothing in it can be read in two ways: every sentence has one derivation, the rules of which
multiply to its probability, and sums over sentences are sums over derivations, which dynamic
programming does exactly:

  mass      m_A(n) = sum of p over the derivations of n words from A
  p log p   e_A(n) = sum of p·log p over the same; for two parts of a rule, with p = p1·p2,
            e = e1*m2 + m1*e2 (convolutions over n), and a factor q turns (m, e) into
            (q·m, q·(e + m·log q))

Sentences longer than `max_words` are cut off and the rest is normalised by Z = sum of m_S(n). The
entropy is then log Z - (sum of e_S(n)) / Z.
"""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

from flm_jax import errors
from flm_jax.data.synthetic.language import Language

Rules = dict[str, tuple[tuple[float, str], ...]]

# Upper case: what the rules expand. S and P stand for singular and plural, I and T for verbs
# without and with an object, REL for a relative clause. Probabilities of one symbol sum to 1.
RULES: Rules = {
    "SENTENCE": ((0.5, "NOUN-S VERB-S"), (0.5, "NOUN-P VERB-P")),
    "NOUN-S": ((0.85, "CORE-S"), (0.15, "CORE-S that VERB-S")),
    "NOUN-P": ((0.85, "CORE-P"), (0.15, "CORE-P that VERB-P")),
    "CORE-S": ((0.7, "DET-S N-S"), (0.3, "DET-S ADJ N-S")),
    "CORE-P": ((0.7, "DET-P N-P"), (0.3, "DET-P ADJ N-P")),
    "VERB-S": ((0.35, "I-S"), (0.2, "I-S ADV"), (0.45, "T-S OBJECT")),
    "VERB-P": ((0.35, "I-P"), (0.2, "I-P ADV"), (0.45, "T-P OBJECT")),
    "OBJECT": ((0.6, "NOUN-S"), (0.4, "NOUN-P")),
    "DET-S": ((0.5, "the"), (0.3, "a"), (0.2, "every")),
    "DET-P": ((0.5, "the"), (0.3, "some"), (0.2, "two")),
    "ADJ": ((0.5, "small"), (0.3, "old"), (0.2, "clever")),
    "N-S": ((0.4, "dog"), (0.3, "cat"), (0.2, "bird"), (0.1, "child")),
    "N-P": ((0.4, "dogs"), (0.3, "cats"), (0.2, "birds"), (0.1, "children")),
    "I-S": ((0.5, "sleeps"), (0.3, "runs"), (0.2, "sings")),
    "I-P": ((0.5, "sleep"), (0.3, "run"), (0.2, "sing")),
    "T-S": ((0.5, "sees"), (0.3, "likes"), (0.2, "follows")),
    "T-P": ((0.5, "see"), (0.3, "like"), (0.2, "follow")),
    "ADV": ((0.6, "often"), (0.4, "alone")),
}
START = "SENTENCE"
_SHORTEST = 3  # the dog sleeps
_LONGEST = 40  # longer tables take seconds, and so long a sentence does not occur


@dataclasses.dataclass(frozen=True)
class Grammar(Language):
    """Sentences of 31 words, at most `max_words` long, singular and plural agreeing.

    Attributes:
      max_words: longer sentences have probability 0.
    """

    max_words: int = 13

    name = "grammar"
    tokenizer = "whitespace_words"

    def __post_init__(self):
        if not _SHORTEST <= self.max_words <= _LONGEST:
            raise errors.UserError(
                f"language 'grammar' with max_words={self.max_words} is impossible; use "
                f"{_SHORTEST} to {_LONGEST}"
            )

    @property
    def longest(self) -> int:
        return self.max_words

    @property
    def size(self) -> int:
        return sum(self._tables["counts"][START])

    @property
    def covered(self) -> float:
        """Z: the share of the grammar's sentences, by probability, that are short enough."""
        return float(self._tables["mass"][START].sum())

    @property
    def entropy(self) -> float:
        return math.log(self.covered) - float(self._tables["plogp"][START].sum()) / self.covered

    @functools.cached_property
    def _tables(self) -> dict[str, dict]:
        return _tables(self.max_words)

    def sample(self, generator: np.random.Generator, count: int) -> list[str]:
        texts: list[str] = []
        while len(texts) < count:  # a draw that is too long is drawn again: exact, and rare
            words = _draw(generator, self.max_words)
            if words is not None:
                texts.append(" ".join(words))
        return texts

    def log_prob(self, text: str) -> float:
        words = tuple(text.split(" "))
        if len(words) > self.max_words:
            return -math.inf
        probability = inside(words)
        return math.log(probability / self.covered) if probability else -math.inf

    def texts(self) -> Iterator[str]:
        for n in range(1, self.max_words + 1):
            for words in _derive((START,), n):
                yield " ".join(words)


def inside(words: tuple[str, ...], rules: Rules = RULES, start: str = START) -> float:
    """The sum of the probabilities of all derivations of the words, before any cut-off.

    A chart: what a symbol, or the tail of a rule, gives on words i to j is computed once.
    """

    @functools.cache
    def tail(symbols: tuple[str, ...], i: int, j: int) -> float:
        first, rest = symbols[0], symbols[1:]
        if not rest:
            return symbol(first, i, j)
        if first not in rules:  # a word takes one place
            return tail(rest, i + 1, j) if words[i] == first else 0.0
        return sum(
            head * tail(rest, k, j)
            for k in range(i + 1, j - len(rest) + 1)
            if (head := symbol(first, i, k))
        )

    @functools.cache
    def symbol(name: str, i: int, j: int) -> float:
        if name not in rules:
            return float(j - i == 1 and words[i] == name)
        return sum(
            q * tail(parts, i, j)
            for q, right in rules[name]
            if len(parts := tuple(right.split())) <= j - i
        )

    return symbol(start, 0, len(words))


def _draw(generator: np.random.Generator, longest: int) -> list[str] | None:
    """The words of a derivation drawn by its rules; None as soon as it must become too long."""
    words: list[str] = []
    pending = [START]
    while pending:
        if len(words) + len(pending) > longest:
            return None
        symbol = pending.pop()
        if symbol in RULES:
            bounds, rights = _choices(symbol)
            pending += reversed(rights[bisect.bisect_right(bounds, generator.random())])
        else:
            words.append(symbol)
    return words


@functools.cache
def _choices(symbol: str) -> tuple[list[float], list[list[str]]]:
    """(upper bounds of all right-hand sides but the last, the right-hand sides)."""
    bounds = list(itertools.accumulate(q for q, _ in RULES[symbol]))[:-1]
    return bounds, [right.split() for _, right in RULES[symbol]]


@functools.lru_cache(maxsize=8)
def _tables(longest: int) -> dict[str, dict]:
    """Per symbol and number of words: the mass, p log p (float64) and the number of sentences.

    Filled by length: a symbol on n words needs other symbols on n words only through rules of one
    part, which are not circular, so passes are repeated until nothing changes.
    """
    zero = np.zeros(longest + 1)
    mass = {symbol: zero for symbol in RULES}
    plogp = {symbol: zero for symbol in RULES}
    counts = {symbol: [0] * (longest + 1) for symbol in RULES}
    while True:
        before = counts
        found = {symbol: _expand(symbol, mass, plogp, counts) for symbol in RULES}
        mass = {symbol: values[0] for symbol, values in found.items()}
        plogp = {symbol: values[1] for symbol, values in found.items()}
        counts = {symbol: values[2] for symbol, values in found.items()}
        if counts == before:
            return {"mass": mass, "plogp": plogp, "counts": counts}


def _expand(symbol: str, mass: dict, plogp: dict, counts: dict) -> tuple:
    """One pass for one symbol: (mass, p log p, counts) from those of the parts of its rules."""
    size = len(counts[symbol])
    total_m, total_e, total_c = np.zeros(size), np.zeros(size), [0] * size
    word = np.eye(1, size, 1)[0]  # one word, probability 1
    for q, right in RULES[symbol]:
        m, e, c = np.eye(1, size, 0)[0], np.zeros(size), [1] + [0] * (size - 1)
        for part in right.split():
            part_m, part_e = mass.get(part, word), plogp.get(part, np.zeros(size))
            part_c = counts.get(part, [0, 1] + [0] * (size - 2))
            e = (np.convolve(e, part_m) + np.convolve(m, part_e))[:size]
            m = np.convolve(m, part_m)[:size]
            c = [sum(c[k] * part_c[n - k] for k in range(n + 1)) for n in range(size)]
        total_m, total_e = total_m + q * m, total_e + q * (e + m * math.log(q))
        total_c = [a + b for a, b in zip(total_c, c, strict=True)]
    return total_m, total_e, total_c


def _derive(symbols: tuple[str, ...], n: int) -> Iterator[tuple[str, ...]]:
    """The words of every derivation of exactly n words from the symbols."""
    if not symbols or n < len(symbols):
        if not symbols and n == 0:
            yield ()
        return
    first, rest = symbols[0], symbols[1:]
    if first not in RULES:
        for words in _derive(rest, n - 1):
            yield (first, *words)
        return
    for _, right in RULES[first]:
        yield from _derive((*right.split(), *rest), n)
