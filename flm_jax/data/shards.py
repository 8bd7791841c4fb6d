"""Writing a folder of rows so that a kill at any time costs one shard at most.

While a folder is made it is called NAME.part. A shard is written as shard-00003.npy.tmp, forced to
disk, renamed, and then gets a note shard-00003.json that says where in the corpus it ends. Going on
means: keep the shards up to the first one without a good note, and read the corpus from there. When
all is done the notes go, the manifest comes, and the folder gets its name.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from flm_jax import errors
from flm_jax.data import rows as rows_lib
from flm_jax.host import files, locks, progress

SHARD_BYTES = 128 << 20


def dtype_of(vocab_size: int) -> np.dtype:
    """The type in which token ids are stored."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def found_or_made(
    root: pathlib.Path,
    name: str,
    facts: dict,
    make: Callable[[pathlib.Path], None],
    doing: str,
) -> tuple[rows_lib.Rows, bool]:
    """The rows with these facts in the folder `rows` of `root`: those that are there, or made now.

    Another process that makes them at the same time is waited for.

    Args:
      name: of their folder; a hash of the facts is added.
      make: puts them into a folder of that name.
      doing: what `make` does, for those who wait.

    Returns (rows, whether they had to be made). Raises OSError if the folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / "rows" / f"{name}-{key}"
    if folder.is_dir():
        return rows_lib.open_rows(folder, facts), False
    with lock(root / "locks" / folder.name, f"{doing} {folder}"):
        made = not folder.is_dir()
        if made:
            make(folder)
    return rows_lib.open_rows(folder, facts), made


class Writer:
    """The shards of one folder, in order; goes on with those that are there.

    Attributes:
      folder: where they are.
      place: where the newest finished shard ends, as it was given to `finish`; {} for none.
      room: rows that the open shard still takes.
      rows: rows in all shards, the open one included.
    """

    def __init__(self, folder: pathlib.Path, shard_rows: int, length: int, dtype: np.dtype):
        """Makes the folder if it is missing; raises OSError."""
        self.folder, self._shard_rows, self._length = folder, shard_rows, length
        self._dtype = np.dtype(dtype)
        folder.mkdir(parents=True, exist_ok=True)
        self._notes = list(self._good_notes())
        self._forget_the_rest()
        self.place = self._notes[-1]["place"] if self._notes else {}
        self.rows = sum(note["rows"] for note in self._notes)
        self._file: BinaryIO | None = None
        self._start()

    @property
    def room(self) -> int:
        return self._shard_rows - self._open_rows

    @property
    def open_rows(self) -> int:
        """Rows in the shard that is not finished yet."""
        return self._open_rows

    @property
    def finished(self) -> int:
        """Number of finished shards."""
        return len(self._notes)

    def _start(self) -> None:
        self._open_rows = 0
        self._digest = hashlib.sha256()

    def add(self, rows_NL: np.ndarray) -> None:
        """Appends at most `room` rows to the open shard."""
        data = np.ascontiguousarray(rows_NL, self._dtype).tobytes()
        self._opened().write(data)
        self._digest.update(data)
        self._open_rows += len(rows_NL)
        self.rows += len(rows_NL)

    def _opened(self) -> BinaryIO:
        """The file of the open shard."""
        if self._file is None:
            self._file = self._path(".npy.tmp").open("wb")
            self._file.write(rows_lib.header(self._shard_rows, self._length, self._dtype))
        return self._file

    def finish(self, place: dict[str, Any]) -> None:
        """Ends the open shard; `place` (JSON-able) is what is needed to go on behind it."""
        file = self._opened()
        if self._open_rows < self._shard_rows:  # the last one
            file.seek(0)
            file.write(rows_lib.header(self._open_rows, self._length, self._dtype))
        file.flush()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
        self.close()
        path = self._path(".npy")
        self._path(".npy.tmp").rename(path)
        note = {
            "file": path.name,
            "rows": self._open_rows,
            "bytes": size,
            "sha256": self._digest.hexdigest(),
            "place": place,
        }
        files.write_atomically(self._path(".json"), json.dumps(note))
        self._notes.append(note)
        self.place = place
        self._start()

    def close(self) -> None:
        """Gives up the open shard."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def shards(self) -> list[dict[str, Any]]:
        """Of each finished shard: file, rows, bytes, sha256."""
        return [{k: v for k, v in note.items() if k != "place"} for note in self._notes]

    def _path(self, suffix: str) -> pathlib.Path:
        return self.folder / f"shard-{len(self._notes):05d}{suffix}"

    def _good_notes(self) -> Iterator[dict]:
        for number in range(len(list(self.folder.glob("shard-*.json")))):
            try:
                note = json.loads((self.folder / f"shard-{number:05d}.json").read_bytes())
                path = self.folder / note["file"]
                if not rows_lib.has_rows(path, note["rows"], self._length, self._dtype):
                    return
            except (OSError, ValueError, KeyError, TypeError):
                return
            yield note

    def _forget_the_rest(self) -> None:
        kept = {note["file"].removesuffix(".npy") for note in self._notes}
        for path in self.folder.glob("shard-*"):
            if path.name.partition(".")[0] not in kept:
                path.unlink()


def publish(part: pathlib.Path, folder: pathlib.Path, manifest: dict) -> dict:
    """Turns the finished folder `part` into `folder`; returns the signed manifest."""
    signed = rows_lib.sign(manifest)
    text = json.dumps(signed, indent=1)
    files.write_atomically(part / rows_lib.MANIFEST, text)
    publish_again(part, folder)
    return signed


def publish_again(part: pathlib.Path, folder: pathlib.Path) -> bool:
    """The rest of `publish` after a kill in the middle of it; False if it had not begun."""
    if not (part / rows_lib.MANIFEST).exists():
        return False
    for note in part.glob("shard-*.json"):
        note.unlink()
    part.rename(folder)
    return True


def check_space(folder: pathlib.Path, needed: int) -> None:
    """Raises UserError unless the disk of `folder` has `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise errors.UserError(
            f"the rows need about {_size(needed)} more, but the disk of {folder.parent} has "
            f"{_size(free)} free; free some space (what is done is kept) or give another folder "
            "with --data_dir or data.cache_dir"
        )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


@contextlib.contextmanager
def lock(path: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps other processes out while the body runs; waits, and says so, while one is in.

    The system frees the lock of a process that dies. Raises OSError if `path` cannot be made.
    """
    advice = "let no two processes prepare the same text at one time"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not locks.take(file, advice):
            file.seek(0)
            other = file.read().strip() or "unknown"
            with progress.Waiting(f"waiting for process {other}, which is {what}", delay=0):
                locks.take(file, advice, wait=True)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
