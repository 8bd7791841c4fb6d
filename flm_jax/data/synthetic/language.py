"""What a language of known truth promises; and the uniform ones, which have it in closed form."""

import abc
import functools
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

# Value -> probability, or expected share where a document has several values.
Law: TypeAlias = Mapping[Hashable, float]


class Language(abc.ABC):
    """A probability distribution over documents that can be computed, not only drawn from.

    Every sample of a model is then judged exactly: no judge model, no reference text.

    Attributes:
      name: in `LANGUAGES`.
      longest: tokens of the longest document, without BOS and EOS.
      tokenizer: the tokenizer in whose tokens `longest` counts.
      size: how many different documents there are (an exact integer of any size).
      entropy: of a document, in nats, exact.
      held_out_share: probability of the documents that training never sees.
      laws: what samples of a language too large to be counted are compared in: the exact law of
        each of the `features` of a document, by name; empty where documents can be counted.
      given_until: the part of a document up to and with this can be given, and tells the rest; ""
        where there is no such part.
    """

    name: str
    tokenizer: str
    held_out_share: float = 0.0
    given_until: str = ""

    @functools.cached_property
    def laws(self) -> Mapping[str, Law]:
        return {}

    def features(self, text: str) -> Iterator[tuple[str, Hashable]]:
        """(name, value) of every feature of a document; a feature may have several values."""
        return iter(())

    def is_held_out(self, text: str) -> bool:
        """Whether a document of the language is one that training never sees."""
        return False

    def split(self, generator: np.random.Generator, count: int, held_out: bool) -> list[str]:
        """Documents for a split: of training, or held out; the same unless some are kept back."""
        return self.sample(generator, count)

    @property
    @abc.abstractmethod
    def longest(self) -> int: ...

    @property
    @abc.abstractmethod
    def size(self) -> int: ...

    @property
    @abc.abstractmethod
    def entropy(self) -> float: ...

    @abc.abstractmethod
    def sample(self, generator: np.random.Generator, count: int) -> list[str]:
        """`count` independent documents."""

    @abc.abstractmethod
    def log_prob(self, text: str) -> float:
        """Natural logarithm of the probability of a document; -inf if the language lacks it."""

    @abc.abstractmethod
    def texts(self) -> Iterator[str]:
        """All documents, each once; for languages of small `size`."""

    def contains(self, text: str) -> bool:
        """Whether the text is a document of the language."""
        return self.log_prob(text) > -math.inf

    @functools.cached_property
    def masses(self) -> tuple[np.ndarray, np.ndarray]:
        """(probabilities (M,), how many documents have each (M,)), float64, by enumeration."""
        probabilities = np.exp([self.log_prob(text) for text in self.texts()])
        return probabilities, np.ones(len(probabilities))


class Uniform(Language):
    """A language whose documents are all equally likely; subclasses say which there are."""

    @property
    def entropy(self) -> float:
        return math.log(self.size)

    @abc.abstractmethod
    def contains(self, text: str) -> bool: ...

    def log_prob(self, text: str) -> float:
        return -self.entropy if self.contains(text) else -math.inf

    @functools.cached_property
    def masses(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([1 / self.size]), np.array([float(self.size)])
