"""Size and hash of every file of a step: written with the commit, checked before a restore.

The hash is the SHA-256 of a local file's bytes; of an object in a bucket, the checksum that the
store computed when it received the bytes (`bucket.py` says why), with the name of its kind before.
"""

import base64
import collections.abc
import hashlib
import json
import os
import pathlib
from typing import BinaryIO

import tqdm
from absl import logging

from flm_jax.errors import UserError

MANIFEST = "MANIFEST.json"
CRC32C = "crc32c:"  # before the base64 of the four bytes, most significant first
MD5 = "md5:"  # before hexadecimal digits
ETAG = "etag:"  # before what a service alone can compute
_BLOCK = 1 << 22


class Damaged(Exception):
    """A step that cannot be trusted; the message names the file and what is wrong with it."""


def write(folder: pathlib.Path) -> None:
    """Records size and SHA-256 of all files in the item folders of one step, atomically."""
    files = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, _hash_at(path))
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    temporary = folder / (MANIFEST + ".tmp")
    with temporary.open("w") as file:
        file.write(text(files))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def text(files: collections.abc.Mapping[str, tuple[int, str | None]]) -> str:
    """The content of a manifest; ``files`` is path to (size, hash)."""
    listed = {name: list(files[name]) for name in sorted(files)}
    return json.dumps({"version": 1, "files": listed}, indent=1)


def read(folder: pathlib.Path) -> dict[str, tuple[int, str]] | None:
    """Path to (size, hash) of the files of one step; None without a manifest.

    Raises Damaged if it cannot be read.
    """
    try:
        listed = json.loads((folder / MANIFEST).read_bytes())["files"]
        return {name: (int(size), str(digest)) for name, (size, digest) in listed.items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None


def verify(folder: pathlib.Path, items: collections.abc.Collection[str] | None = None) -> bool:
    """Compares one step with its manifest; False if it has none.

    Args:
      items: look only at these item folders; None = at all.

    Raises Damaged that names the first bad file.
    """
    listed = read(folder)
    if listed is None:
        return False

    def size_of(name: str) -> int | None:
        path = folder / name
        return path.stat().st_size if path.is_file() else None

    compare(listed, items, size_of, lambda name, kind: _hash_at(folder / name, kind))
    return True


def compare(
    listed: collections.abc.Mapping[str, tuple[int, str]],
    items: collections.abc.Collection[str] | None,
    size_of: collections.abc.Callable[[str], int | None],
    digest_of: collections.abc.Callable[[str, str], str | None],
) -> None:
    """Raises Damaged unless the files of ``items`` (None = all) are as they are listed.

    Args:
      size_of: the size of a file; None = it is missing.
      digest_of: the hash of a file, of the kind that is listed (`CRC32C`, ..., "" for SHA-256);
        None = it cannot be known in this place.
    """
    wanted = {
        name: facts
        for name, facts in listed.items()
        if items is None or name.partition("/")[0] in items
    }
    for name, (size, _) in wanted.items():  # cheap, and finds a truncated file before any hashing
        found = size_of(name)
        if found is None:
            raise Damaged(f"{name} is missing")
        if found != size:
            raise Damaged(f"{name} has {found} bytes, should have {size}")
    total = sum(size for size, _ in wanted.values())
    unknown = 0
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="verify", delay=2) as bar:
        for name, (size, digest) in wanted.items():
            found = digest_of(name, kind_of(digest))
            unknown += found is None
            if found not in (None, digest):
                raise Damaged(f"{name} has changed since it was written")
            bar.update(size)
    if unknown:
        logging.warning(
            "%d of %d files are verified by their sizes alone: their hashes are those of the "
            "bucket that they were copied from",
            unknown,
            len(wanted),
        )


def kind_of(digest: str) -> str:
    """`CRC32C`, `MD5` or `ETAG`; "" for a SHA-256."""
    return next((kind for kind in (CRC32C, MD5, ETAG) if digest.startswith(kind)), "")


def hash_of(file: BinaryIO, kind: str = "") -> str | None:
    """The hash of a file's bytes; None if it is of a kind that bytes alone do not make."""
    if kind == ETAG:
        return None
    if kind == CRC32C:
        total = _crc32c()
        while block := file.read(_BLOCK):
            total.update(block)
        return CRC32C + base64.b64encode(total.digest()).decode()
    total = hashlib.md5(usedforsecurity=False) if kind == MD5 else hashlib.sha256()
    while block := file.read(_BLOCK):
        total.update(block)
    return kind + total.hexdigest()


def _hash_at(path: pathlib.Path, kind: str = "") -> str | None:
    with path.open("rb") as file:
        return hash_of(file, kind)


def _crc32c():
    try:
        import google_crc32c
    except ImportError as error:
        raise UserError(
            "a checkpoint that was copied from a bucket is verified with the library "
            "google-crc32c, which is not installed; run pip install 'flm_jax[gcs]'"
        ) from error
    return google_crc32c.Checksum()
