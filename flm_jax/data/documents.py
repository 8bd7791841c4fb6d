"""Where the documents of text files lie, and reading them back: the stream below text_files."""

import array
import dataclasses
import gzip
import io
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from flm_jax import errors
from flm_jax.data import base, first_bytes, pieces

_BOM = b"\xef\xbb\xbf"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SURROGATES = re.compile("[\ud800-\udfff]")
_SPILL = 3 << 18  # numbers of places in memory before they go to disk
BAD_TEXT = ("stop", "replace", "skip")
FORMATS = ("auto", "text", "jsonl")
_JSON_LINES = (".jsonl", ".json", ".ndjson")

Place = tuple[int, int, int]  # number of the file, first byte in the (unzipped) file, bytes


def kind_of(path: pathlib.Path, format_: str = "auto") -> tuple[str, bool]:
    """("jsonl" or "txt", is it gzipped): the one of FORMATS that is asked for; "auto": by the name.

    Names that do not tell mean plain text; `first_bytes` looks whether that is so.
    """
    names = [suffix.lower() for suffix in path.suffixes[-2:]]
    zipped = names[-1:] == [".gz"]
    if format_ != "auto":
        return ("jsonl" if format_ == "jsonl" else "txt"), zipped
    last = "".join(names[:-1][-1:] if zipped else names[-1:])
    return ("jsonl" if last in _JSON_LINES else "txt"), zipped


class Reader:
    """Reads documents of files; one file is open at a time. Not for use in several threads.

    Attributes:
      bad: documents in the newest `scan` that are not UTF-8 text or hold NUL.
      first_bad: file and line of the first one.
      missing: lines of JSON without a text in it, which cannot be repaired.
      first_missing: file and line of the first one.
      indented: documents whose indentation (a tab, two blanks or more) was omitted.
    """

    def __init__(
        self,
        files: Sequence[pathlib.Path],
        document: str,
        json_key: str,
        bad_text: str = "stop",
        longest: int = 0,
        format_: str = "auto",
        keep_indentation: bool = False,
    ):
        """For the arguments see `text_files.TextFiles`."""
        self._files, self._document, self._json_key = tuple(files), document, json_key
        self._kinds = {path: kind_of(path, format_) for path in self._files}
        self._guessed = format_ == "auto"
        self._bad_text, self._longest = bad_text, longest or 1 << 62
        self._keep_indentation = keep_indentation
        self._open: tuple[int, io.BufferedIOBase] | None = None
        self._reset()

    def _reset(self) -> None:
        self.bad, self.first_bad, self.missing, self.first_missing = 0, "", 0, ""
        self.indented = 0

    def check_kinds(self) -> None:
        """Looks at the first bytes of every file; see `first_bytes`.

        Raises:
          UserError: a file is unreadable, or not text, or another kind of text than its name says.
        """
        for number, path in enumerate(self._files):
            with pieces.reading(path):
                head = self._file(number).read(first_bytes.SIZE)
                self._file(number).seek(0)
            kind = self._kinds[path][0]
            if found := first_bytes.complaint(head, kind, self._guessed, self._document):
                raise errors.UserError(f"{path} {found}")

    def scan(self) -> Iterator[tuple[Place, str]]:
        """All documents in order with their places; blank ones are omitted.

        Raises:
          UserError: a file that is unreadable, empty, not UTF-8 or bad JSON, or a document that is
            too long; with its line.
        """
        self._reset()
        for number, path in enumerate(self._files):
            kind, _ = self._kinds[path]
            empty = True
            for start, data, line in self._pieces(number, "line" if kind == "jsonl" else ""):
                empty = False
                text, good = self._text(path, data, line)
                if text is None:
                    self.missing += 1
                    self.first_missing = self.first_missing or f"{path} line {line}"
                elif not good:
                    self.bad += 1
                    self.first_bad = self.first_bad or f"{path} line {line}"
                if text:
                    yield (number, start, len(data)), text
            if empty:
                raise errors.UserError(f"{path} is empty; remove it or give a file with text")

    def read(self, place: Sequence[int] | np.ndarray) -> str:
        """The document at a place that `scan` gave."""
        number, start, size = map(int, place)
        path = self._files[number]
        with pieces.reading(path):
            file = self._file(number)
            file.seek(start)
            data = file.read(size)
        if len(data) < size:
            raise errors.UserError(f"{path} became shorter while it was read; start again")
        return self._text(path, data, 0)[0] or ""

    def _file(self, number: int) -> io.BufferedIOBase:
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        self.close()
        path = self._files[number]
        file = gzip.open(path) if self._kinds[path][1] else path.open("rb")
        self._open = number, file
        return file

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def _pieces(self, number: int, document: str) -> pieces.Pieces:
        try:
            with pieces.reading(self._files[number]):
                file = self._file(number)
                file.seek(0)
                yield from pieces.cut(file, document or self._document, self._longest)
        except pieces.TooLong as error:
            raise errors.UserError(
                f"{self._files[number]} has a document of more than {self._longest:,} bytes from "
                f"line {error} on; cut the text finer with options.document, or raise "
                "options.longest_document if there is memory enough (some hundred times as much)"
            ) from None

    def _text(self, path: pathlib.Path, data: bytes, line: int) -> tuple[str | None, bool]:
        """(document, is it all text); "" if it is to be omitted, None if JSON has no text."""
        data, good = data.removeprefix(_BOM), True
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            at = line + data.count(b"\n", 0, error.start)
            self._refuse(
                f"{path} is not UTF-8: line {at} has the byte 0x{data[error.start]:02x} where "
                "none may be; save the file as UTF-8"
            )
            text, good = data.decode("utf-8", "replace"), False
        json_line = self._kinds[path][0] == "jsonl" and text.strip()
        if json_line and (good or self._bad_text != "skip"):
            found = self._from_json(path, text, line)
            if found is None:
                return None, True
            text = found
        if "\0" in text:
            at = line + text.count("\n", 0, text.index("\0"))
            self._refuse(
                f"{path} line {at} has a NUL byte, so it is perhaps no text (but UTF-16, or a "
                "binary file); save it as UTF-8 text"
            )
            text, good = text.replace("\0", _REPLACEMENT), False
        try:
            text.encode()
        except UnicodeEncodeError:
            self._refuse(
                f"{path} line {line} has half of a surrogate pair (\\ud800 ... \\udfff), which is "
                "not a character; write the whole pair"
            )
            text, good = _SURROGATES.sub(_REPLACEMENT, text), False
        if not good and self._bad_text == "skip":
            return "", False
        plain = text.strip().replace("\r\n", "\n")
        indentation = text[: len(text) - len(text.lstrip())].rpartition("\n")[2] if plain else ""
        if self._keep_indentation:
            return indentation + plain, good
        self.indented += "\t" in indentation or "  " in indentation
        return plain, good

    def _refuse(self, sentence: str) -> None:
        if self._bad_text == "stop":
            raise errors.UserError(f"{sentence}, or set options.bad_text to replace or skip")

    def _from_json(self, path: pathlib.Path, text: str, line: int) -> str | None:
        """The text of a line; None if there is none and such lines are omitted."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            problem = f"is not JSON ({reason}); a file of JSON lines has one object per line"
        else:
            if not isinstance(record, dict):
                example = f'{{"{self._json_key}": "..."}}'
                problem = f"is JSON but not an object; each line must look like {example}"
            elif isinstance(record.get(self._json_key), str):
                return record[self._json_key]
            else:
                keys = [key for key, value in record.items() if isinstance(value, str)]
                problem = (
                    f"has no text under {self._json_key!r}; set options.json_key to one of its "
                    f"keys with text: {', '.join(keys[:20]) or 'none'}"
                )
        if self._bad_text == "stop":
            raise errors.UserError(
                f"{path} line {line} {problem}; options.bad_text=skip leaves such lines out"
            )
        return None


class Places:
    """Gathers places; many of them are kept in a nameless file, so memory stays small."""

    def __init__(self):
        # Machine integers: a list of tuples takes four times the memory.
        self._recent = array.array("q")
        self._file: BinaryIO | None = None

    def add(self, place: Place) -> None:
        self._recent.extend(place)
        if len(self._recent) >= _SPILL:
            self._file = self._file or tempfile.TemporaryFile()
            self._recent.tofile(self._file)
            self._recent = array.array("q")

    def all_N3(self) -> np.ndarray:
        """int64, one place per row; a memory map if there are many. Ends the gathering."""
        if self._file is None:
            return np.array(self._recent, np.int64).reshape(-1, 3)
        self._recent.tofile(self._file)
        self._file.flush()
        return np.memmap(self._file, np.int64, "r").reshape(-1, 3)


@dataclasses.dataclass(frozen=True)
class Located(base.Lazy):
    """Documents by index, read from their files when asked for.

    Attributes:
      reader: reads one.
      places_N3: int64, one `Place` per document.
    """

    reader: Reader
    places_N3: np.ndarray

    def __len__(self) -> int:
        return len(self.places_N3)

    def document(self, number: int) -> str:
        return self.reader.read(self.places_N3[number])
