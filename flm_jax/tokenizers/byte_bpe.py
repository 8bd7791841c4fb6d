"""Byte-level BPE trained on the training text: GPT-2's kind of pieces, in any number."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterable, Sequence

from flm_jax import errors
from flm_jax.host import files, folders
from flm_jax.tokenizers import base, library

_FILE = "byte_bpe.json"
_SPECIALS = ("[PAD]", "[BOS]", "[EOS]")
_SMALLEST_VOCABULARY = len(_SPECIALS) + 256


class ByteBpe(library.LibraryTokenizer):
    """[PAD], [BOS], [EOS], the 256 bytes, then merges: decode(encode(text)) == text for any text.

    "[BOS]" written out in a text is text like any other.
    """

    name = "byte_bpe"
    pad_id, bos_id, eos_id = 0, 1, 2

    def __init__(self, tokens: Sequence[str], merges: Sequence[Sequence[str]], source: str = ""):
        """Takes the tokens in the order of their ids, bytes spelled as in GPT-2, and the merges.

        Raises:
          UserError: they are not those of such a tokenizer.
        """
        self._tokens, self._merges = list(tokens), [(left, right) for left, right in merges]
        known = set(self._tokens)
        whole = all(left in known and left + right in known for left, right in self._merges)
        if tuple(self._tokens[: len(_SPECIALS)]) != _SPECIALS or not whole:
            raise errors.UserError(
                f"{source or 'the vocabulary'} is not one of a byte_bpe tokenizer; copy it again"
            )
        self.vocab_size = len(self._tokens)

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        # No special tokens here: the specials have no merges, so no text gives them.
        vocab = {token: i for i, token in enumerate(self._tokens)}
        tokenizer = Tokenizer(models.BPE(vocab, self._merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _files(self) -> dict[str, bytes]:
        return {_FILE: json.dumps({"tokens": self._tokens, "merges": self._merges}).encode()}

    def decode(self, ids: Iterable[int]) -> str:
        kept = [int(i) for i in ids if int(i) >= len(_SPECIALS)]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def piece(self, token: int) -> str:
        token = int(token)
        return _SPECIALS[token] if token < len(_SPECIALS) else self.decode([token])


@dataclasses.dataclass(frozen=True)
class ByteBpeRecipe(base.Recipe):
    """Trains a vocabulary, or takes it from the cache.

    Attributes:
      vocab_size: number of ids, [PAD], [BOS], [EOS] and 256 bytes included.
      min_count: how often two neighbours must occur to be merged.
    """

    vocab_size: int = 8192
    min_count: int = 2

    def build(
        self, documents: base.Documents, cache_dir: str = "", fingerprint: str = ""
    ) -> ByteBpe:
        """Trained vocabularies are kept in the folder `byte_bpe` of `cache_dir`; "" for no cache.

        Raises:
          UserError: bad option, or a vocabulary size that the text cannot give.
        """
        if self.vocab_size < _SMALLEST_VOCABULARY:
            raise errors.UserError(
                f"tokenizer vocab_size is {self.vocab_size}, but {', '.join(_SPECIALS)} and 256 "
                f"bytes need at least {_SMALLEST_VOCABULARY}"
            )
        if self.min_count < 1:
            raise errors.UserError(
                f"tokenizer min_count is {self.min_count}, but must be at least 1"
            )
        if not cache_dir or not fingerprint:
            return self._train(documents)
        key = base.sha256("1", fingerprint, repr(dataclasses.asdict(self)))
        path = folders.expanded(cache_dir) / "byte_bpe" / f"{key[:32]}.json"
        try:
            return _parse(path.read_bytes(), str(path))
        except (OSError, errors.UserError):  # not there, or damaged: make it again
            made = self._train(documents)
        files.write_atomically(path, made._files()[_FILE])
        return made

    @classmethod
    def from_files(cls, folder: str | os.PathLike, meta: base.Meta) -> ByteBpe:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        return _parse(base.read_file(folder, meta, _FILE), f"{folder}/{_FILE}")

    def _train(self, documents: base.Documents) -> ByteBpe:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        print(
            f"training a byte-level BPE with {self.vocab_size} ids "
            "(seconds for a small corpus, minutes for a large one) ...",
            file=sys.stderr,
        )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            min_frequency=self.min_count,
            special_tokens=list(_SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(base.without_surrogates, documents()), trainer)
        model = json.loads(tokenizer.to_str())["model"]
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if len(tokens) < self.vocab_size:
            raise errors.UserError(
                f"tokenizer vocab_size is {self.vocab_size}, but this training text gives at most "
                f"{len(tokens)} pieces with min_count={self.min_count}; set vocab_size to "
                f"{len(tokens)} or less, or give more text"
            )
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return ByteBpe(tokens, merges)


def _parse(content: bytes, source: str) -> ByteBpe:
    try:
        found = json.loads(content)
        return ByteBpe(found["tokens"], found["merges"], source)
    except (ValueError, KeyError, TypeError):
        raise errors.UserError(f"{source} is not a byte_bpe vocabulary; copy it again") from None
