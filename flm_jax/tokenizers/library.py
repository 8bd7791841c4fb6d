"""What tokenizers of the library `tokenizers` have in common."""

import abc
import functools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flm_jax.tokenizers import base

if TYPE_CHECKING:
    import tokenizers


class LibraryTokenizer(base.Tokenizer, unfinished=True):
    """Encodes with the library's own object, which is made at first use and not pickled."""

    @functools.cached_property
    @abc.abstractmethod
    def _tokenizer(self) -> "tokenizers.Tokenizer":
        """The object of the library."""

    @abc.abstractmethod
    def _files(self) -> dict[str, bytes]:
        """What is saved: file name -> content."""

    def _facts(self) -> dict[str, Any]:
        """What else decides the ids, JSON-able."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_tokenizer"}

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return base.sha256(self.name, *self._files().values())

    def encode(self, text: str) -> list[int]:
        text = base.without_surrogates(text)
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [base.without_surrogates(text) for text in texts]
        rows = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [row.ids for row in rows]

    def save(self, folder: str | os.PathLike) -> None:
        meta = {"name": self.name, "fingerprint": self.fingerprint}
        base.save_files(folder, meta | self._facts(), self._files())
