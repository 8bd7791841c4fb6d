"""One token per word: for languages of few words, such as the synthetic ones."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from flm_jax.tokenizers import base
from flm_jax.tokenizers.listed import Listed, ListedRecipe


@dataclasses.dataclass(frozen=True)
class Words(Listed):
    """Pieces are what white space separates; text comes back with its spaces unified."""

    pieces: tuple[str, ...]

    name = "whitespace_words"
    file = "words.json"
    one = "word"
    separator = " "

    @property
    def fingerprint(self) -> str:
        return base.sha256(self.name, *self.pieces)

    @staticmethod
    def split(text: str) -> list[str]:
        return text.split()

    @staticmethod
    def gather(pieces: Iterable[str]) -> tuple[str, ...]:
        return tuple(pieces)


@dataclasses.dataclass(frozen=True)
class WordsRecipe(ListedRecipe):
    """A vocabulary of the words that occur at least `min_count` times."""

    made: ClassVar = Words
