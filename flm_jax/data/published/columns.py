"""Parts that are Parquet or Arrow files, and those of the `datasets` library; all optional."""

import contextlib
import dataclasses
import importlib
import pathlib
import re
from collections.abc import Iterable, Iterator

from flm_jax import errors
from flm_jax.data import paths
from flm_jax.data.published import streams

_ROWS_AT_ONCE = 1000
_SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}
# train-00000-of-00004-1a2b.parquet, x-train.arrow, data-00000-of-00002.arrow, 0000.parquet
_NAME = re.compile(
    r"^(?:.*[-.])?(?:(train|validation|valid|test|data)(?:-(\d{5})-of-(\d{5}))?(?:-\w+)?|(\d{4}))"
    r"\.(?:parquet|arrow)$"
)


def library(name: str, extra: str, why: str):
    """Imports an optional library, or raises UserError saying how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise errors.UserError(
            f"{why} needs the library {name.partition('.')[0]}, which is not installed; run: "
            f"pip install flm_jax[{extra}]"
        ) from None


@dataclasses.dataclass(frozen=True)
class Parquet:
    """The texts of one column of a .parquet file; the document of an empty cell is ""."""

    path: pathlib.Path
    column: str = "text"

    def documents(self) -> Iterator[str]:
        with reading(self.path), self._open() as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[self.column]):
                yield from cells(batch.column(0).to_pylist(), self.path, self.column)

    def _open(self):
        parquet = library("pyarrow.parquet", "parquet", f"reading {self.path}")
        file = parquet.ParquetFile(self.path)
        _check_column(self.path, self.column, file.schema_arrow)
        return file

    def fingerprint(self) -> str:
        return streams.combined("columns", self.column, streams.file_hash(self.path))

    def count(self) -> int:
        with reading(self.path), self._open() as file:
            return file.metadata.num_rows


@dataclasses.dataclass(frozen=True)
class Arrow:
    """The same for an .arrow file, as the `datasets` library keeps them (a stream or a file)."""

    path: pathlib.Path
    column: str = "text"

    def documents(self) -> Iterator[str]:
        for batch in self._batches():
            for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
                texts = batch.column(self.column).slice(start, _ROWS_AT_ONCE)
                yield from cells(texts.to_pylist(), self.path, self.column)

    def _batches(self) -> Iterator:
        arrow = library("pyarrow", "parquet", f"reading {self.path}")
        with reading(self.path), arrow.memory_map(str(self.path)) as file:
            if file.read(6) == b"ARROW1":
                whole = arrow.ipc.open_file(file)
                _check_column(self.path, self.column, whole.schema)
                yield from map(whole.get_batch, range(whole.num_record_batches))
            else:
                file.seek(0)
                stream = arrow.ipc.open_stream(file)
                _check_column(self.path, self.column, stream.schema)
                yield from stream

    def fingerprint(self) -> str:
        return streams.combined("columns", self.column, streams.file_hash(self.path))

    def count(self) -> int:
        return sum(batch.num_rows for batch in self._batches())


def cells(values: Iterable, place: pathlib.Path | str, column: str) -> Iterator[str]:
    """The texts of a column, "" for an empty cell; raises UserError for what is not text."""
    for value in values:
        text = "" if value is None else value
        if not isinstance(text, str):
            raise errors.UserError(
                f"{place} has {text!r:.40} in column {column!r}, which is not text; set "
                "options.text_key to a column of texts"
            )
        streams.check_length(len(text), place, f"a cell of column {column!r}")
        yield text


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """`pieces.reading`, for the errors of pyarrow as well."""
    arrow = library("pyarrow", "parquet", f"reading {path}")
    try:
        yield
    except (OSError, arrow.ArrowException) as error:
        raise errors.UserError(
            f"{path} is damaged or not complete ({errors.first_line(error)}); download or copy it "
            "again"
        ) from error


def _check_column(path: pathlib.Path, column: str, schema) -> None:
    if column not in schema.names:
        raise errors.UserError(
            f"{path} has no column {column!r}; set options.text_key to one of its columns: "
            f"{', '.join(schema.names)}"
        )


def shards(place: pathlib.Path, column: str = "text") -> dict[str, tuple[Parquet | Arrow, ...]]:
    """The Parquet and Arrow files of each split in a folder at any depth, as the hub names them.

    The split is in the name of the file or of its folder; files of neither kind of name are all
    "train". What the `datasets` library caches of its own work is omitted.

    Raises UserError if a numbered file is missing, or there twice.
    """
    found: dict[str, dict[int, pathlib.Path]] = {}
    totals: dict[str, int] = {}
    files = [place] if place.is_file() else paths.visible(place)
    files = [p for p in files if p.suffix in (".parquet", ".arrow")]
    files = [p for p in files if not p.name.startswith(("cache-", "tmp"))]
    for number, path in enumerate(files):
        match = _NAME.match(path.name)
        split, own, total, plain = match.groups() if match else (None,) * 4
        split = _SPLITS.get(split or "") or _SPLITS.get(path.parent.name) or "train"
        if written := own or plain:
            number = int(written)
        elif match:
            number = 0
        if number in found.setdefault(split, {}):
            raise errors.UserError(
                f"{found[split][number]} and {path} are the same part of the split {split!r}; give "
                "the folder of one of them as options.path, or remove one"
            )
        found[split][number] = path
        totals[split] = max(totals.get(split, 0), int(total or 0))
    for split, total in totals.items():
        missing = sorted(set(range(total)) - found[split].keys()) if place.is_dir() else []
        if missing:
            folder = next(iter(found[split].values())).parent
            raise errors.UserError(
                f"{folder} lacks {len(missing)} of the {total} files of the split {split!r}, the "
                f"first is number {missing[0]}; download the rest"
            )
    return {
        split: tuple(_part(path, column) for _, path in sorted(paths.items()))
        for split, paths in found.items()
    }


def _part(path: pathlib.Path, column: str) -> Parquet | Arrow:
    return Parquet(path, column) if path.suffix == ".parquet" else Arrow(path, column)
