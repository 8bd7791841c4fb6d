"""What a corpus promises, the derived split, and where things are cached."""

import abc
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

from flm_jax import errors
from flm_jax.contracts import Contract
from flm_jax.host import folders

SPLITS = ("train", "valid", "test")


class Corpus(Contract, unfinished=True):
    """Documents of text in splits; `DATASETS` names classes of these.

    The keyword arguments of the constructor are the options a user may set under `data.options`.
    Pickled without the documents: tokenizing processes get a copy to call `parts` on.

    Attributes:
      has_given: whether documents begin with a given part, such as a question or a puzzle, which is
        never predicted; see `parts`.
    """

    name: str
    kind: str
    licence: str
    splits: tuple[str, ...]
    has_given: bool = False

    @abc.abstractmethod
    def source(self, split: str) -> Sequence[str]:
        """The documents of a split in a fixed order; reading them one after another is fast."""

    def detokenize(self, text: str) -> str:
        """A document as it goes into the tokenizer; undoes pre-tokenised punctuation."""
        return text

    def parts(self, text: str) -> tuple[str, ...]:
        """A document in the pieces that are tokenised one by one, `detokenize` applied.

        Where `has_given`, all but the last are given, as is the BOS before them.
        """
        return (self.detokenize(text),)

    @abc.abstractmethod
    def fingerprint(self, split: str) -> str:
        """SHA-256 (hex) that changes when the documents of the split change."""

    @abc.abstractmethod
    def describe(self) -> dict:
        """`name`, `kind`, `licence` (one line each), `documents` and `characters` per split."""


class MemoryCorpus(Corpus, unfinished=True):
    """A corpus small enough to be held in memory, read at first use.

    Subclasses fill in `name`, `kind`, `licence` and `read`.
    """

    name = ""
    kind = ""
    licence = ""
    splits: tuple[str, ...] = SPLITS

    @abc.abstractmethod
    def read(self) -> Mapping[str, Sequence[str]]:
        """Split -> documents; called once."""

    @functools.cached_property
    def _documents(self) -> Mapping[str, Sequence[str]]:
        return {split: tuple(texts) for split, texts in self.read().items()}

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_documents"}

    def source(self, split: str) -> Sequence[str]:
        check_split(self, split)
        return self._documents[split]

    def fingerprint(self, split: str) -> str:
        return hash_texts(self.source(split))

    def describe(self) -> dict:
        texts = {split: self.source(split) for split in self.splits}
        counts = {split: (len(own), sum(map(len, own))) for split, own in texts.items()}
        return description(self, counts)


class Lazy(Sequence[str]):
    """Documents that are read one by one, when they are asked for."""

    @abc.abstractmethod
    def document(self, number: int) -> str:
        """The one of that number, below the length."""

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.document(number) for number in range(len(self))[index]]
        return self.document(range(len(self))[index])


@functools.lru_cache(maxsize=8)
def hash_texts(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def description(corpus: Corpus, counts: Mapping[str, tuple[int, int | None]]) -> dict:
    """The dict that `describe` returns, of (documents, characters) by split; None: not counted."""
    return {
        "name": corpus.name,
        "kind": corpus.kind,
        "licence": corpus.licence,
        "documents": {split: count[0] for split, count in counts.items()},
        "characters": {split: count[1] for split, count in counts.items()},
    }


def check_split(corpus: Corpus, split: str) -> None:
    """Raises UserError unless the corpus has the split."""
    if split not in corpus.splits:
        raise errors.UserError(
            f"data set {corpus.name!r} has no split {split!r}; it has {', '.join(corpus.splits)}"
        )


def split_of(key: str | bytes) -> str:
    """ "valid" and "test" for one twentieth of all keys each, else "train".

    A pure function of the key (SHA-256), so a document never changes sides when others come or go,
    and copies of a document are always on the same side.
    """
    data = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    bucket = int.from_bytes(hashlib.sha256(data).digest()[:8], "little") % 20
    return {0: "valid", 1: "test"}.get(bucket, "train")


def split_by_hash(items: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Deals (key, document) pairs into train, valid, test by `split_of(key)`, order kept."""
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for key, document in items:
        splits[split_of(key)].append(document)
    return splits


def cache_folder(cache_dir: str | os.PathLike = "") -> pathlib.Path:
    """`cache_dir`, else $FLM_JAX_CACHE, else flm_jax in $XDG_CACHE_HOME or ~/.cache."""
    return folders.cache(cache_dir)
