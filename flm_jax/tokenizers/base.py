"""What a tokenizer promises, and the small folder format in which one is saved."""

import abc
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from flm_jax import errors
from flm_jax.contracts import Contract
from flm_jax.host import files as files_lib

META_FILE = "flm_tokenizer.json"

# A function that starts a fresh pass over the training text each time it is called.
Documents = Callable[[], Iterable[str]]
Meta = dict[str, Any]  # name, fingerprint, files (name to SHA-256), and what a kind adds


class Recipe(Contract, unfinished=True):
    """An entry of `TOKENIZERS`: a dataclass whose fields are the options a user may set."""

    @abc.abstractmethod
    def build(
        self, documents: Documents, cache_dir: str = "", fingerprint: str = ""
    ) -> "Tokenizer":
        """Makes the tokenizer; raises UserError when options or text do not allow it.

        Args:
          documents: called for each pass over the training text.
          cache_dir: where results that took long may be kept; "" for nowhere.
          fingerprint: stands for the text; "" where nobody knows it.
        """

    @classmethod
    @abc.abstractmethod
    def from_files(cls, folder: str | os.PathLike, meta: Meta) -> "Tokenizer":
        """Reads what `Tokenizer.save` wrote; raises UserError when it is damaged."""


class Tokenizer(Contract, unfinished=True):
    """Text to ids and back. Instances can be pickled and travel into data-loader processes.

    Attributes:
      name: of its recipe, in `TOKENIZERS` or "module:class".
      vocab_size: ids are below it.
      bos_id, eos_id, pad_id: special tokens; None where there is none.
    """

    name: ClassVar[str]
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    @property
    @abc.abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that decides what encode and decode return."""

    @property
    def specials(self) -> set[int]:
        """PAD, BOS and EOS, those that there are."""
        return {i for i in (self.bos_id, self.eos_id, self.pad_id) if i is not None}

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without BOS, EOS or any other special token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same as `encode` on every text, but fast."""
        return [self.encode(text) for text in texts]

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are omitted. Any id below `vocab_size` is fine."""

    def decode_official(self, ids: Iterable[int]) -> str:
        """The text as the official code decodes it, where it has such a tokenizer."""
        return self.decode(ids)

    @abc.abstractmethod
    def piece(self, token: int) -> str:
        """A readable form of one token, for pictures of single positions; `[BOS]` for specials."""

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike) -> None:
        """Writes everything that `tokenizers.load(folder)` needs."""


def sha256(*parts: bytes | str) -> str:
    """SHA-256 (hex) of the parts; each is preceded by its length, so no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def without_surrogates(text: str) -> str:
    """The text with "?" for lone surrogates: they are not UTF-8, and libraries refuse them."""
    return text.encode("utf-8", "replace").decode()


def save_files(folder: str | os.PathLike, meta: Meta, files: dict[str, bytes]) -> None:
    """Writes model files, then the meta file with their SHA-256.

    Args:
      folder: made if missing.
      meta: JSON-able; needs `name` (in `TOKENIZERS`) and `fingerprint`.
      files: file name -> content.

    Raises:
      UserError: the folder cannot be written.
    """
    folder = pathlib.Path(folder)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in files.items():
        files_lib.write_atomically(folder / name, data)
    text = json.dumps({**meta, "files": hashes}, indent=1, sort_keys=True)
    files_lib.write_atomically(folder / META_FILE, text.encode())


def read_meta(folder: str | os.PathLike) -> Meta:
    """The meta file of a saved tokenizer; raises UserError when missing or damaged."""
    path = pathlib.Path(folder) / META_FILE
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise errors.UserError(
            f"no tokenizer in {folder}: {META_FILE} is missing; "
            "give the folder that a tokenizer or a checkpoint was saved to"
        ) from None
    except OSError as error:
        raise errors.UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or not {"name", "fingerprint", "files"} <= meta.keys():
        raise errors.UserError(f"{path} is damaged (not the JSON that was saved); copy it again")
    return meta


def read_file(folder: str | os.PathLike, meta: Meta, name: str) -> bytes:
    """A model file named in `meta`; raises UserError when its SHA-256 is not the saved one."""
    path = pathlib.Path(folder) / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise errors.UserError(
            f"the tokenizer in {folder} is incomplete: cannot read {name} "
            f"({error.strerror or error}); copy the folder again"
        ) from error
    if hashlib.sha256(data).hexdigest() != meta["files"].get(name):
        raise errors.UserError(
            f"the tokenizer file {path} is damaged (its SHA-256 differs from the one saved in "
            f"{META_FILE}); copy the folder again"
        )
    return data
