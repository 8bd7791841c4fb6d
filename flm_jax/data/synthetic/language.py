"""What a language of known truth promises; and the uniform ones, which have it in closed form."""

import abc
import functools
import math
from collections.abc import Iterator

import numpy as np


class Language(abc.ABC):
    """A probability distribution over documents that can be computed, not only drawn from.

    Every sample of a model is then judged exactly: no judge model, no reference text.

    Attributes:
      name: in `LANGUAGES`.
      given_until: the part of a document up to and with this can be given, and tells the rest; ""
        where there is no such part.
      longest: tokens of the longest document, without BOS and EOS.
      tokenizer: the tokenizer in whose tokens `longest` counts.
      size: how many different documents there are (an exact integer of any size).
      entropy: of a document, in nats, exact.
    """

    given_until: str = ""
    name: str
    tokenizer: str

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
