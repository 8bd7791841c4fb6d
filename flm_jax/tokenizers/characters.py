"""One token per character: the smallest vocabulary, good for names and text8-like corpora."""

import dataclasses
from collections.abc import Iterable
from typing import ClassVar

from flm_jax.tokenizers import base
from flm_jax.tokenizers.listed import Listed, ListedRecipe


@dataclasses.dataclass(frozen=True)
class Characters(Listed):
    """Pieces are the characters of one string."""

    pieces: str

    name = "characters"
    file = "characters.json"
    one = "character"
    separator = ""

    @property
    def fingerprint(self) -> str:
        return base.sha256(self.name, self.pieces)

    @staticmethod
    def split(text: str) -> str:
        return text

    @staticmethod
    def gather(pieces: Iterable[str]) -> str:
        return "".join(pieces)


@dataclasses.dataclass(frozen=True)
class CharactersRecipe(ListedRecipe):
    """A vocabulary of the characters that occur at least `min_count` times."""

    made: ClassVar = Characters
