"""Reading files of text: what can be wrong with them, and the pieces that they are read in."""

import contextlib
import functools
import gzip
import io
import lzma
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from flm_jax import errors

_CHUNK = 1 << 20
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
File = IO[bytes] | io.BufferedIOBase
Pieces = Iterator[tuple[int, bytes, int]]  # first byte, bytes, number of its first line


class TooLong(Exception):
    """A document has more bytes than it may; carries the line it begins in."""


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever can go wrong with a file into one sentence."""
    try:
        yield
    except (OSError, *DAMAGED) as error:
        if isinstance(error, (gzip.BadGzipFile, *DAMAGED)):
            what = f"{path} is damaged or not complete ({error}); download or copy it again"
        else:
            reason = getattr(error, "strerror", None) or error
            what = f"cannot read {path}: {reason}; correct the path"
        raise errors.UserError(what) from error


def cut(file: File, document: str, longest: int) -> Pieces:
    """A file in documents: "line", "paragraph", "file", or what stands between them.

    Never more than one document, and a little, is held.

    Raises TooLong for a document of more than ``longest`` bytes.
    """
    known = {"line": _lines, "paragraph": _paragraphs, "file": _whole}
    if document in known:
        return known[document](file, longest)
    return _separated(file, document.encode(), longest)


def _whole(file: File, longest: int) -> Pieces:
    data = file.read(longest + 1) if longest < 1 << 62 else file.read()
    if len(data) > longest:
        raise TooLong(1)
    if data:
        yield 0, data, 1


def _lines(file: File, longest: int) -> Pieces:
    start = 0
    # Never more than `longest` and a bit of a line is in memory.
    for number, line in enumerate(iter(functools.partial(file.readline, longest + 2), b""), 1):
        if len(line) > longest and len(line.rstrip(b"\r\n")) > longest:
            raise TooLong(number)
        yield start, line, number
        start += len(line)


def _paragraphs(file: File, longest: int) -> Pieces:
    held: list[bytes] = []
    size, first, first_line = 0, 0, 1
    for start, line, number in _lines(file, longest):
        if not line.strip():
            if held:
                yield first, b"".join(held), first_line
            held = []
            continue
        if not held:
            size, first, first_line = 0, start, number
        size += len(line)
        if size > longest:
            raise TooLong(first_line)
        held.append(line)
    if held:
        yield first, b"".join(held), first_line


def _separated(file: File, separator: bytes, longest: int) -> Pieces:
    """Pieces between separators; never holds more than one piece and one chunk."""
    start, line, searched = 0, 1, 0
    rest = bytearray()
    while chunk := file.read(_CHUNK):
        rest += chunk
        begin = 0
        while (end := rest.find(separator, max(begin, searched))) >= 0:
            if end - begin > longest:
                raise TooLong(line)
            piece = bytes(rest[begin:end])
            yield start + begin, piece, line
            line += piece.count(b"\n") + separator.count(b"\n")
            begin = end + len(separator)
        del rest[:begin]
        start += begin
        searched = max(0, len(rest) - len(separator) + 1)
        if searched > longest:
            raise TooLong(line)
    if len(rest) > longest:
        raise TooLong(line)
    if rest:
        yield start, bytes(rest), line
