"""Words that occur only together, as in New York and San Diego: the smallest joint structure.

Every word is equally frequent, so a model that gets each position right on its own, without looking
at the others, writes "New Diego": a mixture is valid with probability K^(1-n) only.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from flm_jax import errors
from flm_jax.data.synthetic.language import Uniform

_SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprst" for vowel in "aeiou"]
_WORDS = len(_SYLLABLES) ** 2
_STRIDE = 1009  # coprime to _WORDS, so that neighbouring numbers give words that look different


@dataclasses.dataclass(frozen=True)
class CityPairs(Uniform):
    """A document is one of K tuples of n words, drawn uniformly; no word is in two tuples.

    Attributes:
      tuples: K.
      words: n, words per tuple.
    """

    tuples: int = 16
    words: int = 3

    name = "city_pairs"
    tokenizer = "whitespace_words"

    def __post_init__(self):
        if self.tuples < 1 or self.words < 1 or self.tuples * self.words > _WORDS:
            raise errors.UserError(
                f"language 'city_pairs' with tuples={self.tuples} and words={self.words} is "
                f"impossible; both must be at least 1 and their product at most {_WORDS}"
            )

    @property
    def longest(self) -> int:
        return self.words

    @property
    def size(self) -> int:
        return self.tuples

    @functools.cached_property
    def _documents(self) -> dict[str, None]:
        n = self.words
        return dict.fromkeys(
            " ".join(_word(i * n + j) for j in range(n)) for i in range(self.tuples)
        )

    def sample(self, generator: np.random.Generator, count: int) -> list[str]:
        documents = list(self._documents)
        return [documents[i] for i in generator.integers(len(documents), size=count)]

    def contains(self, text: str) -> bool:
        return text in self._documents

    def texts(self) -> Iterator[str]:
        return iter(self._documents)


def _word(number: int) -> str:
    """Word number `number`: two syllables; different for all numbers below _WORDS."""
    first, second = divmod(number * _STRIDE % _WORDS, len(_SYLLABLES))
    return _SYLLABLES[first] + _SYLLABLES[second]
