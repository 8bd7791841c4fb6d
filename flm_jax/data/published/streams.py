"""Documents in a fixed order out of files too large to hold: parts, and a sequence over them.

A part is one file, or one archive: something that is read from its beginning. `Streamed` makes a
sequence of the documents of several parts: counted once (the count is kept in the cache folder),
read forwards in one pass, by index from the nearest place that is known.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from flm_jax import errors
from flm_jax.data import base
from flm_jax.data.pieces import reading
from flm_jax.host import files, progress

_HASHED_FULLY = 16 << 20  # bytes; of larger files samples, the size and the date count
_SAMPLES, _SAMPLE = 32, 1 << 16
# A change of the content changes the end of these: it holds a checksum or an index of all of it.
_SELF_CHECKING = (".gz", ".tgz", ".xz", ".zip", ".parquet")
_SAVED_EVERY = 30.0  # seconds, while documents are counted
_RULES = "1"  # raise it when the same files would give other documents
LONGEST = 12_000_000  # bytes of a document; tokenizing takes some hundred times as much memory


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
class Streamed(base.Lazy):
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

    def window(self, title: str, first: int, stop: int) -> "Streamed":
        """Some of the documents; they are not counted again."""
        part = Streamed(self.parts, title, first, stop)
        part.__dict__["_ends"] = self._ends
        return part

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

    def document(self, number: int) -> str:
        wanted = self.first + number
        cursor = self._cursor
        if cursor is None or not self._is_ahead(cursor[0], wanted):
            self._cursor = cursor = wanted, self._from(wanted)
        number, texts = cursor
        for text in texts:
            number += 1
            if number > wanted:
                self._cursor = number, texts
                return text
        raise errors.UserError(f"{self.title} became shorter while it was read; start again")

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_cursor": None}

    def _is_ahead(self, number: int, wanted: int) -> bool:
        """Whether reading on from a document is the way to the wanted one."""
        return number == wanted or (number < wanted and self._part(number) == self._part(wanted))

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
    """Documents per part: stated, from the cache, or by reading it, which may take minutes."""
    stated = [count for part in parts if (count := part.count()) is not None]
    if len(stated) == len(parts):
        return stated
    keys = [part.fingerprint() for part in parts]
    path = base.cache_folder() / "counts" / f"{combined(_RULES, keys)}.json"
    known: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = {str(key): int(count) for key, count in json.loads(path.read_bytes()).items()}
    saved = time.monotonic()
    with progress.bar(desc=f"counting documents of {title}", unit="doc", delay=2) as bar:
        for key, part in zip(keys, parts, strict=True):
            if key in known:
                continue
            known[key] = 0
            for _ in part.documents():
                known[key] += 1
                bar.update()
            if time.monotonic() - saved > _SAVED_EVERY:
                _save(path, known)
                saved = time.monotonic()
    _save(path, known)
    return [known[key] for key in keys]


def _save(path: pathlib.Path, known: dict[str, int]) -> None:
    with contextlib.suppress(errors.UserError):  # it is only a cache
        files.write_atomically(path, json.dumps(known))


def refuse_copies(paths: Sequence[pathlib.Path]) -> None:
    """Raises UserError if two files are the same text: the same bytes, or one of them zipped."""
    known: dict[object, pathlib.Path] = {}
    sizes = []
    for path in paths:
        with reading(path):
            sizes.append(path.stat().st_size)
    for path, size in zip(paths, sizes, strict=True):
        keys: list[object] = [path.with_name(path.name.removesuffix(".gz"))]
        if sizes.count(size) > 1:  # so few files are read
            keys.append(file_hash(path, dated=False))
        for key in keys:
            other = known.setdefault(key, path)
            if other != path:
                raise errors.UserError(
                    f"{other} and {path} are the same text, which would count twice; remove one of "
                    "them"
                )


def file_hash(path: pathlib.Path, dated: bool = True) -> str:
    """SHA-256 (hex) that changes when a file does; reads little of a large one.

    Of a large file the size, samples and the date count (the date only if `dated`); of a compressed
    one the size and both ends, so that a copy on another machine has the same hash.
    """
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        stat = path.stat()
        packed = path.name.endswith(_SELF_CHECKING)
        if stat.st_size <= (2 * _SAMPLE if packed else _HASHED_FULLY):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{stat.st_size} {'' if packed or not dated else stat.st_mtime_ns}".encode())
        last = 1 if packed else _SAMPLES - 1
        for i in range(last + 1):
            file.seek((stat.st_size - _SAMPLE) * i // last)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def combined(*facts: object) -> str:
    """SHA-256 (hex) of facts."""
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def text_of(data: bytes, path: pathlib.Path, where: str) -> str:
    """UTF-8 decoded; the UserError names `where` in the file a wrong byte or too long a text is."""
    check_length(len(data), path, where)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{path} is not UTF-8: {where} has the byte 0x{data[error.start]:02x} where none may "
            "be; download or copy it again, or save it as UTF-8"
        ) from None


def check_length(size: int, path: pathlib.Path | str, where: str) -> None:
    """Raises UserError for a document that is too long to be one."""
    if size > LONGEST:
        raise errors.UserError(
            f"{path} is perhaps damaged: {where} has more than {LONGEST:,} bytes, too many for one "
            "document; download it again, or write its text to .txt files in shorter documents and "
            "read these with data.name=text_files"
        )
