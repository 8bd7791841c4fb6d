"""Documents in a fixed order out of files too large to hold: parts, and a sequence over them.

A part is one file, or one archive: something that is read from its beginning. `Streamed` makes a
sequence of the documents of several parts: counted once (the count is kept in the cache folder),
read forwards in one pass, by index from the nearest place that is known.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from flm_jax import errors, files, metrics
from flm_jax.data import base

_HASHED_FULLY = 64 << 20  # bytes; of larger files the ends, samples, the size and the date count
_SAMPLES, _SAMPLE = 32, 1 << 16
# In these a change of the content changes the end: it holds a checksum or an index of all of it.
_SELF_CHECKING = (".gz", ".tgz", ".zip", ".parquet")
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)


class Part(Protocol):
    """Some documents, read from the first to the last. Can be pickled."""

    def documents(self) -> Iterator[str]:
        """All documents in order.

        Raises UserError for a file that is damaged, unreadable or not UTF-8.
        """
        ...

    def fingerprint(self) -> str:
        """SHA-256 (hex) that changes when the documents change."""
        ...

    def count(self) -> int | None:
        """The number of documents where the file states it, else None."""
        ...


@dataclasses.dataclass
class Streamed(Sequence[str]):
    """The documents of parts, or those from `first` up to `stop` only, as a sequence.

    Iterating is one pass over the parts. Reading by index goes forwards from the newest document
    read; going backwards starts at the beginning of a part. Not for use in several threads.
    """

    parts: tuple[Part, ...]
    title: str
    first: int = 0
    stop: int | None = None

    def __post_init__(self):
        self._cursor: tuple[int, Iterator[str]] | None = None  # number of the next, iterator

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """Number of documents up to and with each part, int64 (parts)."""
        return np.cumsum([0, *_counts(self.parts, self.title)])[1:]

    def __len__(self) -> int:
        total = int(self._ends[-1]) if len(self._ends) else 0
        stop = total if self.stop is None else min(self.stop, total)
        return max(0, stop - self.first)

    def __iter__(self) -> Iterator[str]:
        if self.first == 0 and self.stop is None:
            for part in self.parts:
                yield from part.documents()
            return
        left = len(self)
        for text in self._from(self.first) if left else ():
            yield text
            left -= 1
            if not left:
                return

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        wanted = self.first + index
        if not self._is_ahead(wanted):
            self._cursor = wanted, self._from(wanted)
        number, texts = self._cursor
        for text in texts:
            number += 1
            if number > wanted:
                self._cursor = number, texts
                return text
        raise errors.UserError(f"{self.title} became shorter while it was read; start again")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cursor": None}

    def _is_ahead(self, wanted: int) -> bool:
        """Whether reading on from the newest document is the way to the wanted one."""
        number = None if self._cursor is None else self._cursor[0]
        return number == wanted or (
            number is not None and number < wanted and self._part(number) == self._part(wanted)
        )

    def _part(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, side="right"))

    def _from(self, number: int) -> Iterator[str]:
        """Documents from one on, skipping whole parts unread."""
        at = self._part(number)
        skip = number - (int(self._ends[at - 1]) if at else 0)
        for part in self.parts[at:]:
            for text in part.documents():
                if skip:
                    skip -= 1
                    continue
                yield text


def _counts(parts: Sequence[Part], title: str) -> list[int]:
    """Documents per part: stated, from the cache, or by reading it."""
    counts = []
    with metrics.bar(desc=f"counting documents of {title}", unit="doc", delay=2) as bar:
        for part in parts:
            stated = part.count()
            counts.append(_count(part, bar) if stated is None else stated)
    return counts


def _count(part: Part, bar) -> int:
    name = hashlib.sha256(f"{type(part).__name__} {part.fingerprint()}".encode()).hexdigest()
    path = base.cache_folder() / "counts" / f"{name}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(path.read_bytes())["documents"])
    count = 0
    for _ in part.documents():
        count += 1
        bar.update()
    with contextlib.suppress(errors.UserError):  # it is only a cache
        files.write_atomically(path, json.dumps({"documents": count}))
    return count


def file_hash(path: pathlib.Path) -> str:
    """SHA-256 (hex) of a file's content; of a large one, of its size, ends and samples.

    The date of a large file counts too, unless its end depends on all of it.
    """
    digest = hashlib.sha256()
    try:
        stat = path.stat()
        with path.open("rb") as file:
            if stat.st_size <= _HASHED_FULLY:
                return hashlib.file_digest(file, "sha256").hexdigest()
            date = "" if path.name.endswith(_SELF_CHECKING) else stat.st_mtime_ns
            digest.update(f"{stat.st_size} {date}".encode())
            for i in range(_SAMPLES):
                file.seek((stat.st_size - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise errors.UserError(sentence(path, error)) from error
    return digest.hexdigest()


def combined(*facts: object) -> str:
    """SHA-256 (hex) of facts."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever can go wrong with a file into one sentence."""
    try:
        yield
    except (OSError, *_DAMAGED) as error:
        raise errors.UserError(sentence(path, error)) from error


def sentence(path: pathlib.Path, error: Exception) -> str:
    """What is wrong with a file, and what to do."""
    if isinstance(error, (gzip.BadGzipFile, *_DAMAGED)):
        return f"{path} is damaged or not complete ({error}); download or copy it again"
    return f"cannot read {path}: {getattr(error, 'strerror', None) or error}; correct the path"


def text_of(data: bytes, path: pathlib.Path, where: str) -> str:
    """UTF-8 decoded; the UserError names `where` in the file the wrong byte is."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8: {where} has the byte 0x{data[error.start]:02x} where none may "
            "be; download or copy it again, or save it as UTF-8"
        ) from None
