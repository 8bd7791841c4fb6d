"""What tokenizers that list every piece of the text have in common: characters, words."""

import abc
import collections
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence
from typing import ClassVar

from flm_jax import errors
from flm_jax.tokenizers import base

_SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
_UNKNOWN = 3
_UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class Listed(base.Tokenizer, unfinished=True):
    """[PAD], [BOS], [EOS], [UNK], then the sorted pieces; a subclass says what a piece is.

    A piece of the text that is spelled "[BOS]" is a piece like any other.

    Attributes:
      pieces: every known piece once, in code-point order.
    """

    pieces: Sequence[str]

    file: ClassVar[str]
    one: ClassVar[str]  # what a piece is called in messages
    separator: ClassVar[str]  # between pieces in decoded text
    pad_id, bos_id, eos_id = 0, 1, 2

    @staticmethod
    @abc.abstractmethod
    def split(text: str) -> Iterable[str]:
        """The pieces of a text."""

    @staticmethod
    @abc.abstractmethod
    def gather(pieces: Iterable[str]) -> Sequence[str]:
        """Pieces as they are kept, hashed and saved."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab_size", len(_SPECIALS) + len(self.pieces))

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces, start=len(_SPECIALS))}

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids.get(piece, _UNKNOWN) for piece in self.split(text)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return self.separator.join(self._text(int(i)) for i in ids if int(i) >= _UNKNOWN)

    def _text(self, token: int) -> str:
        return _UNKNOWN_TEXT if token == _UNKNOWN else self.pieces[token - len(_SPECIALS)]

    def piece(self, token: int) -> str:
        token = int(token)
        piece = _SPECIALS[token] if token < len(_SPECIALS) else self._text(token)
        return piece if token < _UNKNOWN else self.separator + piece

    def save(self, folder: str | os.PathLike) -> None:
        meta = {"name": self.name, "fingerprint": self.fingerprint}
        base.save_files(folder, meta, {self.file: json.dumps(self.pieces).encode()})


@dataclasses.dataclass(frozen=True)
class ListedRecipe(base.Recipe, unfinished=True):
    """A vocabulary of the pieces that occur at least `min_count` times."""

    min_count: int = 1

    made: ClassVar[type[Listed]]

    def build(
        self, documents: base.Documents, cache_dir: str = "", fingerprint: str = ""
    ) -> Listed:
        """Counts the pieces of the training text.

        Raises:
          UserError: `min_count` is below 1, or no piece is left.
        """
        del cache_dir  # counting is as fast as reading a cache
        if self.min_count < 1:
            raise errors.UserError(
                f"tokenizer min_count is {self.min_count}, but must be at least 1"
            )
        counts: collections.Counter[str] = collections.Counter()
        for text in documents():
            counts.update(self.made.split(text))
        kept = sorted(piece for piece, count in counts.items() if count >= self.min_count)
        if not kept:
            raise errors.UserError(
                f"no {self.made.one} occurs {self.min_count} times in the training text "
                f"({len(counts)} different {self.made.one}s); lower the tokenizer's min_count or "
                "give more text"
            )
        return self.made(self.made.gather(kept))

    @classmethod
    def from_files(cls, folder: str | os.PathLike, meta: base.Meta) -> Listed:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        found = json.loads(base.read_file(folder, meta, cls.made.file))
        return cls.made(cls.made.gather(found))
