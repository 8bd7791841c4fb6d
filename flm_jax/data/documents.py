"""Where the documents of text files lie, and reading them back: the stream below text_files."""

import dataclasses
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from flm_jax import errors

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"

Place = tuple[int, int, int]  # number of the file, first byte in the (unzipped) file, bytes


def kind_of(path: pathlib.Path) -> tuple[str, bool]:
    """("jsonl" or "txt", is it gzipped) by the name; any other suffix is plain text."""
    names = [suffix.lower() for suffix in path.suffixes[-2:]]
    zipped = names[-1:] == [".gz"]
    kind = names[:-1][-1:] if zipped else names[-1:]
    return ("jsonl" if kind == [".jsonl"] else "txt"), zipped


def unreadable(path: pathlib.Path, error: Exception) -> str:
    """The sentence for a file that cannot be opened or unzipped."""
    if isinstance(error, (gzip.BadGzipFile, EOFError, zlib.error)):
        return f"{path} is not a complete gzip file ({error}); copy it again"
    return f"cannot read {path}: {getattr(error, 'strerror', None) or error}; correct the path"


class Reader:
    """Reads documents of files; one file is open at a time. Not for use in several threads."""

    def __init__(self, files: Sequence[pathlib.Path], document: str, json_key: str):
        self._files, self._document, self._json_key = tuple(files), document, json_key
        self._open: tuple[int, BinaryIO] | None = None

    def scan(self) -> Iterator[tuple[Place, str]]:
        """All documents in order with their places; blank ones are left out.

        Raises:
          UserError: a file that is unreadable, empty, not UTF-8 or bad JSON; with its line.
        """
        for number, path in enumerate(self._files):
            kind, _ = kind_of(path)
            empty = True
            for start, data, line in self._pieces(number, "line" if kind == "jsonl" else ""):
                empty = False
                text = self._text(path, data, line)
                if text:
                    yield (number, start, len(data)), text
            if empty:
                raise errors.UserError(f"{path} is empty; remove it or give a file with text")

    def read(self, place: Sequence[int]) -> str:
        """The document at a place that `scan` gave."""
        number, start, size = map(int, place)
        path = self._files[number]
        try:
            file = self._file(number)
            file.seek(start)
            data = file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise errors.UserError(unreadable(path, error)) from error
        if len(data) < size:
            raise errors.UserError(f"{path} became shorter while it was read; start again")
        return self._text(path, data, 0)

    def _file(self, number: int) -> BinaryIO:
        if self._open is None or self._open[0] != number:
            self.close()
            path = self._files[number]
            self._open = number, gzip.open(path) if kind_of(path)[1] else path.open("rb")
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def _pieces(self, number: int, document: str) -> Iterator[tuple[int, bytes, int]]:
        """(first byte, bytes, number of its first line) of each piece of a file."""
        document = document or self._document
        try:
            file = self._file(number)
            file.seek(0)
            if document == "file":
                data = file.read()
                pieces = iter([(0, data, 1)] if data else [])
            elif document == "line":
                pieces = _lines(file)
            elif document == "paragraph":
                pieces = _paragraphs(file)
            else:
                pieces = _separated(file, document.encode())
            yield from pieces
        except (OSError, EOFError, zlib.error) as error:
            raise errors.UserError(unreadable(self._files[number], error)) from error

    def _text(self, path: pathlib.Path, data: bytes, line: int) -> str:
        try:
            text = data.removeprefix(_BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            line += data.count(b"\n", 0, error.start)
            raise errors.UserError(
                f"{path} is not UTF-8: line {line} has the byte 0x{data[error.start]:02x} where "
                "none may be; save the file as UTF-8"
            ) from None
        if kind_of(path)[0] == "jsonl" and text.strip():
            text = self._from_json(path, text, line)
        return text.strip().replace("\r\n", "\n")

    def _from_json(self, path: pathlib.Path, text: str, line: int) -> str:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise errors.UserError(
                f"{path} line {line} is not JSON ({reason}); a .jsonl file has one object per line"
            ) from None
        if not isinstance(record, dict):
            raise errors.UserError(
                f"{path} line {line} is JSON but not an object; each line must look like "
                f'{{"{self._json_key}": "..."}}'
            )
        if not isinstance(record.get(self._json_key), str):
            keys = [key for key, value in record.items() if isinstance(value, str)]
            raise errors.UserError(
                f"{path} line {line} has no text under {self._json_key!r}; set options.json_key "
                f"to one of its keys with text: {', '.join(keys[:20]) or 'none'}"
            )
        value = record[self._json_key]
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise errors.UserError(
                f"{path} line {line} has half of a surrogate pair (\\ud800 ... \\udfff), which is "
                "not a character; write the whole pair"
            )
        return value


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    start = 0
    for number, line in enumerate(file, start=1):
        yield start, line, number
        start += len(line)


def _paragraphs(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    held: list[bytes] = []
    first, first_line = 0, 1
    for start, line, number in _lines(file):
        if not line.strip():
            if held:
                yield first, b"".join(held), first_line
            held = []
            continue
        if not held:
            first, first_line = start, number
        held.append(line)
    if held:
        yield first, b"".join(held), first_line


def _separated(file: BinaryIO, separator: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Pieces between separators; never holds more than one piece and one chunk."""
    start, line, searched = 0, 1, 0
    rest = bytearray()
    while chunk := file.read(_CHUNK):
        rest += chunk
        begin = 0
        while (end := rest.find(separator, max(begin, searched))) >= 0:
            piece = bytes(rest[begin:end])
            yield start + begin, piece, line
            line += piece.count(b"\n") + separator.count(b"\n")
            begin = end + len(separator)
        del rest[:begin]
        start += begin
        searched = max(0, len(rest) - len(separator) + 1)
    if rest:
        yield start, bytes(rest), line


@dataclasses.dataclass(frozen=True)
class Located(Sequence[str]):
    """Documents by index, read from their files when asked for.

    Attributes:
      reader: reads one.
      places_N3: int64, one `Place` per document.
    """

    reader: Reader
    places_N3: np.ndarray

    def __len__(self) -> int:
        return len(self.places_N3)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self.reader.read(place) for place in self.places_N3[index]]
        return self.reader.read(self.places_N3[index])
