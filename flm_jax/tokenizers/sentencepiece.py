"""SentencePiece: trained on the training split, or an existing .model file."""

import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import logging

from flm_jax import errors
from flm_jax.host import files, folders
from flm_jax.tokenizers import base

_FILE = "sentencepiece.model"
# The trainer drops sentences of more than 4192 bytes; 1000 characters never reach that.
_LONGEST_SENTENCE = 1000
_SMALLEST_VOCABULARY = 5  # four specials and one character
# What the library writes for a space; a text's own one would come back as a space, too. So models
# trained here see another character instead, one that Unicode reserves for uses like this.
_SPACE, _STAND_IN = "\N{LOWER ONE EIGHTH BLOCK}", "\ufdd0"


class SentencePiece(base.Tokenizer):
    """A SentencePiece model; PAD, BOS, EOS, UNK have the model's ids (0, 1, 2, 3 if trained here).

    Models trained here keep the text as it is (no normalisation, newlines and runs of spaces are
    tokens), so decode(encode(text)) == text when every character is known. A model without a piece
    for U+2581 (read from a file, trained before November 2026, or on text that has it not, or less
    often than `character_coverage` asks for) reads it as a space; a warning says so.
    """

    name = "sentencepiece"

    def __init__(self, model: bytes, source: str = "the SentencePiece model"):
        """Takes the bytes of a .model file; `source` names it in messages.

        Raises:
          UserError: not a SentencePiece model, or one without BOS or EOS.
        """
        self._model = bytes(model)
        try:
            processor = self._processor
        except RuntimeError:
            raise errors.UserError(
                f"{source} is not a SentencePiece model; give the .model file that the "
                "SentencePiece trainer wrote (not the .vocab file)"
            ) from None
        self.vocab_size = processor.vocab_size()
        self.bos_id, self.eos_id = processor.bos_id(), processor.eos_id()
        self._keeps_mark = processor.piece_to_id(_STAND_IN) != processor.unk_id()
        self._source, self._told = source, False
        self.pad_id = None if processor.pad_id() < 0 else processor.pad_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise errors.UserError(
                f"{source} has no BOS or no EOS piece, but packed rows need both; "
                "train it with bos_id and eos_id set"
            )

    @property
    def model(self) -> bytes:
        """The .model file."""
        return self._model

    @property
    def stand_in(self) -> str:
        """The character that the model sees for U+2581; "" where that is read as a space."""
        return _STAND_IN if self._keeps_mark else ""

    @functools.cached_property
    def _processor(self):
        import sentencepiece

        if not self._model:
            raise RuntimeError("no bytes")
        processor = sentencepiece.SentencePieceProcessor()
        processor.LoadFromSerializedProto(self._model)
        return processor

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_processor"}

    @property
    def fingerprint(self) -> str:
        return base.sha256(self.name, self._model)

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(self._readable(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode([self._readable(text) for text in texts], num_threads=-1)

    def decode(self, ids: Iterable[int]) -> str:
        text = self._processor.decode([int(i) for i in ids])
        return text.replace(_STAND_IN, _SPACE) if self._keeps_mark else text

    def _readable(self, text: str) -> str:
        text = base.without_surrogates(text)
        if _SPACE not in text:
            return text
        if self._keeps_mark:
            return text.replace(_SPACE, _STAND_IN)
        if not self._told:
            self._told = True
            logging.warning(
                "the text has the character U+2581 (%s), which %s reads as a space; take "
                "tokenizer byte_bpe or characters to keep it",
                _SPACE,
                self._source,
            )
        return text

    def piece(self, token: int) -> str:
        token = int(token)
        specials = {self.pad_id: "[PAD]", self.bos_id: "[BOS]", self.eos_id: "[EOS]"}
        if token in specials:
            return specials[token]
        if self._processor.is_unknown(token):
            return "[UNK]"
        piece = self._processor.id_to_piece(token).replace(_SPACE, " ")
        return piece.replace(_STAND_IN, _SPACE) if self._keeps_mark else piece

    def save(self, folder: str | os.PathLike) -> None:
        meta = {"name": self.name, "fingerprint": self.fingerprint}
        base.save_files(folder, meta, {_FILE: self._model})


@dataclasses.dataclass(frozen=True)
class SentencePieceRecipe(base.Recipe):
    """Trains a model, takes it from the cache, or reads `model_path`.

    Attributes:
      vocab_size: number of ids, specials included.
      model_type: "unigram" or "bpe".
      byte_fallback: spend 256 ids on bytes, so that no character is unknown.
      character_coverage: share of the text's characters that get an id of their own.
      model_path: an existing .model file; the other options then do not apply.
    """

    vocab_size: int = 1024
    model_type: str = "unigram"
    byte_fallback: bool = False
    character_coverage: float = 0.9999
    model_path: str = ""

    def build(
        self, documents: base.Documents, cache_dir: str = "", fingerprint: str = ""
    ) -> SentencePiece:
        """Trained models are kept in the folder `sentencepiece` of `cache_dir`; "" for no cache.

        Raises:
          UserError: bad option, unreadable model, or a vocabulary size that the text cannot give.
        """
        if self.model_path:
            return _read(folders.expanded(self.model_path))
        self._check()
        options = dataclasses.asdict(self)
        del options["model_path"]
        if not cache_dir:
            return SentencePiece(_train(documents, options))
        text = _text_fingerprint(documents, fingerprint)
        key = base.sha256("1", text, repr(sorted(options.items())))
        path = folders.expanded(cache_dir) / "sentencepiece" / f"{key[:32]}.model"
        try:
            return SentencePiece(path.read_bytes())
        except (OSError, errors.UserError):  # not there, or damaged: make it again
            model = _train(documents, options)
        files.write_atomically(path, model)
        return SentencePiece(model)

    @classmethod
    def from_files(cls, folder: str | os.PathLike, meta: base.Meta) -> SentencePiece:
        """Reads what `save` wrote; raises UserError when it is damaged."""
        return SentencePiece(base.read_file(folder, meta, _FILE), source=f"{folder}/{_FILE}")

    def _check(self) -> None:
        if self.vocab_size < _SMALLEST_VOCABULARY:
            raise errors.UserError(
                f"tokenizer vocab_size is {self.vocab_size}, but PAD, BOS, EOS, UNK and the "
                f"characters of the text need at least {_SMALLEST_VOCABULARY}"
            )
        if self.model_type not in ("unigram", "bpe"):
            raise errors.UserError(
                f"tokenizer model_type is {self.model_type!r}, but must be 'unigram' or 'bpe'"
            )
        if not 0.98 <= self.character_coverage <= 1.0:
            raise errors.UserError(
                f"tokenizer character_coverage is {self.character_coverage}, "
                "but must lie in 0.98 ... 1.0"
            )


def _read(path: pathlib.Path) -> SentencePiece:
    try:
        return SentencePiece(path.read_bytes(), source=str(path))
    except OSError as error:
        raise errors.UserError(
            f"cannot read the SentencePiece model {path}: {error.strerror or error}; "
            "correct the tokenizer's model_path or leave it out to train a model"
        ) from error


def _text_fingerprint(documents: base.Documents, known: str) -> str:
    """The fingerprint if it is known; else the hash of the text itself."""
    if known:
        return known
    digest = hashlib.sha256()
    for text in documents():
        digest.update(bytes.fromhex(base.sha256(base.without_surrogates(text))))
    return digest.hexdigest()


def _sentences(documents: Iterable[str]) -> Iterator[str]:
    """The text in pieces that the trainer accepts, cut at a space where there is one."""
    for text in documents:
        text, start = base.without_surrogates(text).replace(_SPACE, _STAND_IN), 0
        while len(text) - start > _LONGEST_SENTENCE:
            end = text.rfind(" ", start + 1, start + _LONGEST_SENTENCE)
            end = end if end > 0 else start + _LONGEST_SENTENCE
            yield text[start:end]
            start = end + 1 if text[end] == " " else end
        if start < len(text):
            yield text[start:]


def _train(documents: base.Documents, options: dict) -> bytes:
    """Bytes of a new model; the same text and options give the same bytes."""
    import sentencepiece

    print(
        f"training a SentencePiece model with {options['vocab_size']} pieces "
        "(seconds for a small corpus, minutes for a large one) ...",
        file=sys.stderr,
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(documents()),
            model_writer=model,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            num_threads=16,  # part of the result: sums are split by thread, so never the core count
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise _explained(str(error), options) from error
    return model.getvalue()


def _explained(message: str, options: dict) -> errors.UserError:
    """The trainer's complaint as a sentence with a remedy."""
    size = options["vocab_size"]
    if match := re.search(r"too high .*<= (\d+)", message):
        return errors.UserError(
            f"tokenizer vocab_size is {size}, but this training text gives at most "
            f"{match[1]} pieces; set vocab_size to {match[1]} or less, or give more text"
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return errors.UserError(
            f"tokenizer vocab_size is {size}, but the special tokens and characters of this "
            f"training text alone need {match[1]}; set vocab_size to {match[1]} or more"
        )
    if "sentences_.empty()" in message:
        return errors.UserError("the tokenizer's training text is empty; give documents with text")
    return errors.UserError(f"SentencePiece cannot train with {options}: {message}")
