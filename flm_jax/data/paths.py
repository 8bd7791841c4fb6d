"""From a path, folder, glob or a list of these to files, and a word about what is omitted."""

import functools
import glob
import os
import pathlib
from collections.abc import Sequence

from absl import logging

from flm_jax import errors

TEXT = (".txt", ".jsonl", ".ndjson")
JSON = (".json",)
_SHOWN = 3  # names of what is omitted, for each reason


def zipped_too(suffixes: Sequence[str]) -> tuple[str, ...]:
    return (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))


def find(given: str | Sequence[str]) -> tuple[pathlib.Path, ...]:
    """Files for a path, folder, glob, or several of them, sorted within each, no file twice.

    A link to a file is that file. Of a folder the files with an ending of TEXT are taken, or those
    of JSON if there are no others (beside text they rather describe it), upper-case endings too.
    What is hidden, dangling, or not a regular file is never read. A warning counts what is omitted.

    Args:
      given: commas separate entries when the whole text is neither a file nor a pattern with files.

    Raises:
      UserError: an entry finds nothing, or a pipe or device.
    """
    entries = [given] if isinstance(given, (str, pathlib.PurePath)) else list(given)
    entries = [str(entry) for entry in entries]
    if not entries or not all(entry.strip(", ") for entry in entries):
        raise errors.UserError(
            f"the path {given!r} names no file, or has an empty entry; correct it in data.options"
        )
    if len(entries) == 1 and "," in entries[0] and not _means_one(entries[0]):
        entries = [entry.strip() for entry in entries[0].split(",") if entry.strip()]
        hint = f" ({len(entries)} entries, for commas separate them: {given})"
    else:
        hint = ""
    once: dict[pathlib.Path, pathlib.Path] = {}
    for entry in entries:
        for path in _expand(entry, hint):
            once.setdefault(path.resolve(), path)
    return tuple(once.values())


def visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """The regular files of a folder at any depth, sorted, without what is hidden in it."""
    found = (path for path in folder.rglob("*") if path.is_file())
    parts = ((path, path.relative_to(folder).parts) for path in found)
    return sorted(path for path, names in parts if not any(n.startswith(".") for n in names))


class _LeftOut:
    """What an entry does not take: names by reason."""

    def __init__(self):
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str | os.PathLike) -> None:
        self._names.setdefault(reason, []).append(str(name))

    def __str__(self) -> str:
        parts = []
        for reason, names in self._names.items():
            more = ", ..." if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {reason} ({', '.join(sorted(names)[:_SHOWN])}{more})")
        return ", ".join(parts)


def _means_one(entry: str) -> bool:
    whole = os.path.expanduser(entry)
    return os.path.exists(whole) or glob.has_magic(entry) and bool(_matches(entry))


def _expand(entry: str, hint: str) -> list[pathlib.Path]:
    path, left = pathlib.Path(entry).expanduser(), _LeftOut()
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        files = _inside(path, left)
        if not files:
            other = f"; left out: {left}" if str(left) else ""
            raise errors.UserError(
                f"the folder {path} holds no {', '.join(zipped_too((*TEXT, *JSON)))} files{other}; "
                "give a folder with such files, or a glob such as 'FOLDER/*.text'"
            )
    elif os.path.lexists(path):
        raise errors.UserError(
            f"{path} is a {_irregular(path)}, not a regular file; text is read more than once, so "
            "write it to a file first"
        )
    elif glob.has_magic(entry):
        found = _matches(entry)
        files = [path for path in found if path.is_file()]
        for path in (path for path in found if not path.is_file()):
            if not (path.is_dir() and "**" in entry):  # "**" looks into folders
                left.add(_irregular(path), path.name)
        for path in _in_another_case(entry, found):
            left.add("with an ending in another case", path.name)
        if not files:
            other = f" but left out: {left}" if str(left) else ""
            raise errors.UserError(
                f"no file matches {entry}{hint}{other}; correct the pattern in data.options"
            )
    else:
        raise errors.UserError(f"there is no file {path}{hint}; correct the path in data.options")
    if str(left):
        _tell(f"{entry}: {len(files)} files are taken; left out: {left}")
    return files


@functools.cache
def _tell(sentence: str) -> None:
    """A warning, once: a run may build its corpus more than once."""
    logging.warning("%s", sentence)


def _inside(folder: pathlib.Path, left: _LeftOut) -> list[pathlib.Path]:
    """Files with text in a folder at any depth, sorted."""
    text: list[pathlib.Path] = []
    json: list[pathlib.Path] = []
    walk = os.walk(folder, onerror=lambda error: left.add("unreadable", str(error.filename)))
    for place, folders, names in walk:
        here = pathlib.Path(place)
        for name in [name for name in folders if name.startswith(".")]:
            folders.remove(name)
            left.add("hidden", (here / name).relative_to(folder))
        for name in [name for name in folders if (here / name).is_symlink()]:
            left.add("link to a folder", (here / name).relative_to(folder))
        for name in names:
            path, low = here / name, name.lower()
            shown = path.relative_to(folder)
            if name.startswith("."):
                left.add("hidden", shown)
            elif not low.endswith(zipped_too((*TEXT, *JSON))):
                left.add("with another ending", shown)
            elif not path.is_file():
                left.add(_irregular(path), shown)
            else:
                (json if low.endswith(zipped_too(JSON)) else text).append(path)
    if text:
        for path in json:
            left.add("with another ending", path.relative_to(folder))
    return sorted(text or json)


def _matches(entry: str) -> list[pathlib.Path]:
    """What a pattern matches, folders and dangling links too, sorted by text.

    The part of it that exists as it is written counts as that, whatever marks are in it.
    """
    path = pathlib.Path(entry).expanduser()
    base = path.parent
    while not os.path.isdir(base):
        base = base.parent
    found = glob.glob(str(path.relative_to(base)), root_dir=base, recursive=True)
    return [pathlib.Path(text) for text in sorted({str(base / name) for name in found})]


def _in_another_case(entry: str, found: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Files that a pattern would match if the case of its ending did not count."""
    ending = next((end for end in zipped_too((*TEXT, *JSON))[::-1] if entry.endswith(end)), "")
    any_case = "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in ending)
    known = set(found)
    others = _matches(entry.removesuffix(ending) + any_case) if ending else []
    return [path for path in others if path not in known and path.is_file()]


def _irregular(path: pathlib.Path) -> str:
    if path.is_dir():
        return "folder"
    return "dangling link" if not path.exists() else "pipe, socket or device"
