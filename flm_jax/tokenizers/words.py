"""One token per word: for languages of few words, such as the synthetic ones."""

import collections
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Sequence

from flm_jax import errors
from flm_jax.tokenizers import base

_SPECIALS = ("[PAD]", "[BOS]", "[EOS]", "[UNK]")
_FILE = "words.json"
_UNKNOWN = 3
_UNKNOWN_TEXT = "\N{REPLACEMENT CHARACTER}"


@dataclasses.dataclass(frozen=True)
class Words:
    """[PAD], [BOS], [EOS], [UNK], then the sorted words.

    Words are what white space separates; decoding puts one space between them, so text comes back
    with its spaces unified. A word of the text that is spelled "[BOS]" is a word like any other.

    Attributes:
      words: every known word once, in code-point order.
    """

    words: tuple[str, ...]

    name = "whitespace_words"
    pad_id, bos_id, eos_id = 0, 1, 2

    @property
    def vocab_size(self) -> int:
        return len(_SPECIALS) + len(self.words)

    @property
    def fingerprint(self) -> str:
        return base.sha256(self.name, *self.words)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words, start=len(_SPECIALS))}

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids.get(word, _UNKNOWN) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self._text(int(i)) for i in ids if int(i) >= _UNKNOWN)

    def _text(self, token: int) -> str:
        return _UNKNOWN_TEXT if token == _UNKNOWN else self.words[token - len(_SPECIALS)]

    def piece(self, token: int) -> str:
        token = int(token)
        return _SPECIALS[token] if token < len(_SPECIALS) else self._text(token)

    def save(self, folder: str | os.PathLike) -> None:
        meta = {"name": self.name, "fingerprint": self.fingerprint}
        base.save_files(folder, meta, {_FILE: json.dumps(self.words).encode()})


@dataclasses.dataclass(frozen=True)
class WordsRecipe:
    """A vocabulary of the words that occur at least `min_count` times."""

    min_count: int = 1

    def build(self, documents: base.Documents, cache_dir: str = "") -> Words:
        """Counts the words of the training text.

        Raises:
          UserError: `min_count` is below 1, or no word is left.
        """
        del cache_dir  # counting is as fast as reading a cache
        if self.min_count < 1:
            raise errors.UserError(
                f"tokenizer min_count is {self.min_count}, but must be at least 1"
            )
        counts: collections.Counter[str] = collections.Counter()
        for text in documents():
            counts.update(text.split())
        kept = sorted(word for word, count in counts.items() if count >= self.min_count)
        if not kept:
            raise errors.UserError(
                f"no word occurs {self.min_count} times in the training text ({len(counts)} "
                "different words); lower the tokenizer's min_count or give more text"
            )
        return Words(tuple(kept))

    @staticmethod
    def from_files(folder: str | os.PathLike, meta: dict) -> Words:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        return Words(tuple(json.loads(base.read_file(folder, meta, _FILE))))
