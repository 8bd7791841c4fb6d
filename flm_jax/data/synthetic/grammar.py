"""A small probabilistic grammar of English with agreement across relative clauses.

Nothing in it can be read in two ways, so that probabilities, the number of sentences and the
entropy are exact sums over derivations (`derivations.py`). Sentences longer than `max_words` are
cut off.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np

from flm_jax import errors
from flm_jax.data.synthetic.derivations import Derivations, Rules, Tables
from flm_jax.data.synthetic.language import Language, Law

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
    derivations: ClassVar[Derivations] = Derivations(RULES, "SENTENCE")

    def __post_init__(self):
        if not _SHORTEST <= self.max_words <= _LONGEST:
            raise errors.UserError(
                f"language {self.name!r} with max_words={self.max_words} is impossible; use "
                f"{_SHORTEST} to {_LONGEST}"
            )

    @property
    def longest(self) -> int:
        return self.max_words

    @property
    def size(self) -> int:
        return sum(self._tables.counts)

    @property
    def covered(self) -> float:
        """Z: the share of the grammar's sentences, by probability, that are short enough."""
        return float(self._tables.mass.sum())

    @property
    def entropy(self) -> float:
        log_q_R = np.log([q for _, q, _ in self.derivations.flat])
        return math.log(self.covered) - float(self._mean_uses_R @ log_q_R)

    @functools.cached_property
    def _tables(self) -> Tables:
        return _tables(self.derivations, self.max_words)

    @property
    def _mean_uses_R(self) -> np.ndarray:
        """How often each rule is applied in a sentence, on average."""
        return self._tables.uses.sum(axis=0) / self.covered

    def sample(self, generator: np.random.Generator, count: int) -> list[str]:
        texts: list[str] = []
        while len(texts) < count:  # a draw that is too long is drawn again: exact, and rare
            words = self.derivations.draw(generator, self.max_words)
            if words is not None:
                texts.append(" ".join(words))
        return texts

    def log_prob(self, text: str) -> float:
        words = tuple(text.split(" "))
        if len(words) > self.max_words:
            return -math.inf
        probability = self.derivations.inside(words)
        return math.log(probability / self.covered) if probability else -math.inf

    def texts(self) -> Iterator[str]:
        for n in range(1, self.max_words + 1):
            for words in self.derivations.sentences(n):
                yield " ".join(words)

    @functools.cached_property
    def laws(self) -> Mapping[str, Law]:
        """Of the number of words, and of the words themselves wherever they stand."""
        expected = dict.fromkeys(self.derivations.words, 0.0)
        for (*_, parts), uses in zip(self.derivations.flat, self._mean_uses_R, strict=True):
            for word in expected.keys() & parts:
                expected[word] += float(uses) * parts.count(word)
        total = sum(expected.values())
        return {
            "number of words": dict(enumerate(self._tables.mass / self.covered)),
            "words": {word: uses / total for word, uses in expected.items()},
        }

    def features(self, text: str) -> Iterator[tuple[str, str | int]]:
        words = text.split(" ")
        yield "number of words", len(words)
        for word in words:
            yield "words", word


@functools.lru_cache(maxsize=8)
def _tables(derivations: Derivations, longest: int) -> Tables:
    return derivations.tables(longest)
