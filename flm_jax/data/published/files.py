"""Parts that are text files, alone or in archives: lines, separated stories, whole files."""

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import pathlib
import re
import tarfile
import zipfile
from collections.abc import Iterator
from typing import IO

from flm_jax import errors
from flm_jax.data import paths, pieces
from flm_jax.data.pieces import reading
from flm_jax.data.published import streams

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_TAR_END = 1024  # bytes, all zero
_BLANK_LINES = re.compile("\n\n\n+")


@contextlib.contextmanager
def opened(path: pathlib.Path, member: str = "") -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed by its name, or of a member of a .zip or .tgz archive."""
    with reading(path):
        if not member:
            with _OPENERS.get(path.suffix, open)(path, "rb") as file:
                yield file
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                yield file
        else:
            with tarfile.open(path) as archive:
                yield _extracted(archive, member)


def _extracted(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    if file is None:
        raise tarfile.ExtractError(f"{member} is not a file")
    return file


def members(path: pathlib.Path) -> list[str]:
    """Names of the files in a .zip or tar archive, by its index or one pass; [] if it is neither.

    Raises UserError for an archive that is damaged.
    """
    with reading(path):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                return archive.namelist()
        if path.name.endswith((".tgz", ".tar.gz", ".tar")):
            with tarfile.open(path) as archive:
                return [entry.name for entry in archive if entry.isfile()]
    return []


@contextlib.contextmanager
def streamed_tar(path: pathlib.Path) -> Iterator[tarfile.TarFile]:
    """A tar archive to be read from its beginning to its end, compressed or not.

    Raises UserError if it is damaged; also if it just stops, which the library takes for its end.
    """
    with reading(path):
        if path.suffix == ".tar":
            with path.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _TAR_END))
                if file.read() != bytes(_TAR_END):
                    raise EOFError("the end is missing")
        with tarfile.open(path, "r|*") as archive:
            yield archive


@dataclasses.dataclass(frozen=True)
class Lines:
    """A document per line.

    Attributes:
      path: a text file, compressed or not, or an archive.
      member: the file in the archive; "" if `path` is the file itself.
      strip: take off white space at both ends, and leave out what is then empty. Without it lines
        are as they are, end of line included, and a blank one is the document "".
    """

    path: pathlib.Path
    member: str = ""
    strip: bool = True

    def documents(self) -> Iterator[str]:
        with opened(self.path, self.member) as file:
            for text in _decoded(file, "line", self.path, f"{self.member or 'it'}: line"):
                if not self.strip:
                    yield text if text.strip() else ""
                elif text := text.strip():
                    yield text

    def fingerprint(self) -> str:
        facts = type(self).__name__, self.member, self.strip
        return streams.combined(*facts, streams.file_hash(self.path))

    def count(self) -> int | None:
        return None


def _decoded(file: IO[bytes], document: str, path: pathlib.Path, where: str) -> Iterator[str]:
    """The pieces of a file (`pieces.cut`), UTF-8 decoded; messages count them behind ``where``."""
    number = 0
    try:
        for _, data, _ in pieces.cut(file, document, streams.LONGEST):
            number += 1
            yield streams.text_of(data, path, f"{where} {number}")
    except pieces.TooLong:
        streams.check_length(streams.LONGEST + 1, path, f"{where} {number + 1}")


@dataclasses.dataclass(frozen=True)
class Separated:
    """Documents between separators, stripped, empty ones omitted."""

    path: pathlib.Path
    separator: str

    def documents(self) -> Iterator[str]:
        with opened(self.path) as file:
            for text in _decoded(file, self.separator, self.path, "document"):
                if text := text.strip():
                    yield text

    def fingerprint(self) -> str:
        return streams.combined("Separated", self.separator, streams.file_hash(self.path))

    def count(self) -> int | None:
        return None


@dataclasses.dataclass(frozen=True)
class TarLines:
    """Stripped lines of those files of a tar archive whose name matches, in the archive's order.

    The archive is streamed: nothing is unpacked to disk.
    """

    path: pathlib.Path
    pattern: str

    def documents(self) -> Iterator[str]:
        wanted, found = re.compile(self.pattern), False
        with streamed_tar(self.path) as archive:
            for entry in archive:
                if not (entry.isfile() and wanted.search(entry.name)):
                    continue
                found = True
                file = _extracted(archive, entry)
                for text in _decoded(file, "line", self.path, f"{entry.name}: line"):
                    if text := text.strip():
                        yield text
        if not found:
            raise errors.UserError(
                f"{self.path} holds no file whose name matches {self.pattern}; it is another "
                "archive than the published one, download that"
            )

    def fingerprint(self) -> str:
        return streams.combined("TarLines", self.pattern, streams.file_hash(self.path))

    def count(self) -> int | None:
        return None


@dataclasses.dataclass(frozen=True)
class TarTexts:
    """Text files in a tar archive (any compression), and in .xz tar archives inside it.

    As in the OpenWebText archives: a document per file, runs of blank lines made one, stripped.
    """

    path: pathlib.Path

    def documents(self) -> Iterator[str]:
        found = False
        with streamed_tar(self.path) as archive:
            for text in _texts(archive, self.path):
                found = True
                yield text
        if not found:
            raise errors.UserError(
                f"{self.path} holds no .txt file and no .xz archive of such; give the archives of "
                "OpenWebText"
            )

    def fingerprint(self) -> str:
        return streams.combined("TarTexts", streams.file_hash(self.path))

    def count(self) -> int | None:
        return None


def _texts(archive: tarfile.TarFile, path: pathlib.Path) -> Iterator[str]:
    for entry in archive:
        if not entry.isfile():
            continue
        file = _extracted(archive, entry)
        if entry.name.endswith(".txt"):
            text = streams.text_of(file.read(streams.LONGEST + 1), path, entry.name)
            yield _BLANK_LINES.sub("\n\n", text).strip()
        elif entry.name.endswith(".xz"):
            with lzma.open(file) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as inner:
                yield from _texts(inner, path)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The .txt files of a folder at any depth, by name, a document each, cleaned like TarTexts."""

    path: pathlib.Path

    def documents(self) -> Iterator[str]:
        for path in self._files():
            with reading(path):
                streams.check_length(path.stat().st_size, path, "it")
                text = streams.text_of(path.read_bytes(), path, "it")
            yield _BLANK_LINES.sub("\n\n", text).strip()

    def _files(self) -> list[pathlib.Path]:
        return [p for p in paths.visible(self.path) if p.name.endswith(".txt")]

    def fingerprint(self) -> str:
        with reading(self.path):
            facts = [(str(p.relative_to(self.path)), p.stat().st_size) for p in self._files()]
        return streams.combined("Folder", *facts)

    def count(self) -> int:
        return len(self._files())
