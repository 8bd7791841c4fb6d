"""One token per character: the smallest vocabulary, good for names and text8-like corpora."""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence

from flm_jax import errors
from flm_jax.tokenizers import base

_SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
_FILE = "characters.json"
_UNKNOWN = 3
_UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class Characters:
    """[PAD], [BOS], [EOS], [UNK], then the sorted characters.

    Attributes:
      characters: one string, every known character once, in code-point order.
    """

    characters: str

    name = "characters"
    pad_id, bos_id, eos_id = 0, 1, 2

    @property
    def vocab_size(self) -> int:
        return len(_SPECIALS) + len(self.characters)

    @property
    def fingerprint(self) -> str:
        return base.sha256(self.name, self.characters)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {c: i for i, c in enumerate(self.characters, start=len(_SPECIALS))}

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids.get(c, _UNKNOWN) for c in text]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self._text(int(i)) for i in ids)

    def _text(self, token: int) -> str:
        if token < len(_SPECIALS):
            return _UNKNOWN_TEXT if token == _UNKNOWN else ""
        return self.characters[token - len(_SPECIALS)]

    def piece(self, token: int) -> str:
        return _SPECIALS[token] if token < len(_SPECIALS) else self._text(int(token))

    def save(self, folder: str | os.PathLike) -> None:
        meta = {"name": self.name, "fingerprint": self.fingerprint}
        base.save_files(folder, meta, {_FILE: json.dumps(self.characters).encode()})


@dataclasses.dataclass(frozen=True)
class CharactersRecipe:
    """A vocabulary of the characters that occur at least `min_count` times."""

    min_count: int = 1

    def build(self, documents: base.Documents, cache_dir: str = "") -> Characters:
        """Counts the characters of the training text.

        Raises:
          UserError: `min_count` is below 1, or no character is left.
        """
        del cache_dir  # counting is as fast as reading a cache
        if self.min_count < 1:
            raise errors.UserError(
                f"tokenizer min_count is {self.min_count}, but must be at least 1"
            )
        counts: collections.Counter[str] = collections.Counter()
        for text in documents():
            counts.update(text)
        kept = "".join(sorted(c for c, count in counts.items() if count >= self.min_count))
        if not kept:
            raise errors.UserError(
                f"no character occurs {self.min_count} times in the training text ({len(counts)} "
                "different characters); lower the tokenizer's min_count or give more text"
            )
        return Characters(kept)

    @staticmethod
    def from_files(folder: str | os.PathLike, meta: dict) -> Characters:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        return Characters(json.loads(base.read_file(folder, meta, _FILE)))
