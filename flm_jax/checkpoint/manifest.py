"""Size and SHA-256 of every file of a step: written before the commit, checked before a restore."""

import collections.abc
import hashlib
import json
import os
import pathlib

import tqdm

MANIFEST = "MANIFEST.json"


class Damaged(Exception):
    """A step that cannot be trusted; the message names the file and what is wrong with it."""


def write(folder: pathlib.Path) -> None:
    """Records size and SHA-256 of all files in the item folders of one step, atomically."""
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _sha256(path)]
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    temporary = folder / (MANIFEST + ".tmp")
    with temporary.open("w") as file:
        json.dump({"version": 1, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def read(folder: pathlib.Path) -> dict[str, tuple[int, str]] | None:
    """Path to (size, SHA-256) of the files of one step; None without a manifest.

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
    wanted = [
        (folder / name, size, digest)
        for name, (size, digest) in listed.items()
        if items is None or name.partition("/")[0] in items
    ]
    for path, size, _ in wanted:  # cheap, and finds a truncated file before any hashing
        if not path.is_file():
            raise Damaged(f"{path.relative_to(folder)} is missing")
        if path.stat().st_size != size:
            raise Damaged(
                f"{path.relative_to(folder)} has {path.stat().st_size} bytes, should have {size}"
            )
    total = sum(size for _, size, _ in wanted)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="verify", delay=2) as bar:
        for path, size, digest in wanted:
            if _sha256(path) != digest:
                raise Damaged(f"{path.relative_to(folder)} has changed since it was written")
            bar.update(size)
    return True


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
