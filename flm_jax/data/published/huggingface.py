"""Local data sets of the Hugging Face `datasets` library, and the files that it makes."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from flm_jax import errors
from flm_jax.data.published import base, columns, streams

_SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}
_SAVED = ("dataset_dict.json", "state.json")


class HuggingFace(base.Published):
    """A folder of a data set: made by `save_to_disk`, or anything that `load_dataset` can read.

    Parquet and Arrow files with the hub's names need pyarrow only; other files (CSV, JSON, ...) and
    subsets need the library `datasets`. Nothing is downloaded.
    """

    name = "huggingface"
    kind = "a local data set of the Hugging Face hub"
    licence = "as the data set states"
    wanted = "a data set of the `datasets` library"
    address = "hf download NAME --repo-type dataset --local-dir FOLDER"
    distinct = False

    def __init__(self, path: str, subset: str = "", text_key: str = "text"):
        """Finds the files.

        Args:
          path: the folder.
          subset: a subfolder, or a configuration that the library knows.
          text_key: the column with the text.

        Raises:
          UserError: no such folder or subset, nothing readable in it, no library to read it.
        """
        self._subset, self._key = subset, text_key
        super().__init__(path)

    def fingerprint(self, split: str) -> str:
        return streams.combined(self._subset, self._key, super().fingerprint(split))

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        if self._subset and (place / self._subset).is_dir():
            place, subset = place / self._subset, ""
        else:
            subset = self._subset
        found = {} if subset else columns.shards(place, self._key)
        return found or _loaded(place, subset, self._key)


def _loaded(place: pathlib.Path, subset: str, key: str) -> base.Parts | None:
    library = columns.library("datasets", "huggingface", f"reading {place}")
    try:
        if any((place / name).is_file() for name in _SAVED):
            made = library.load_from_disk(str(place))
        else:
            made = library.load_dataset(str(place), subset or None)
    except Exception as error:  # the library raises what it likes for a folder that it cannot read
        raise errors.UserError(
            f"the library datasets cannot read {place} ({errors.first_line(error)}); correct "
            "options.path or options.subset"
        ) from error
    tables = made if isinstance(made, dict) else {"train": made}
    for table in tables.values():
        if key not in table.column_names:
            raise errors.UserError(
                f"{place} has no column {key!r}; set options.text_key to one of its columns: "
                f"{', '.join(table.column_names)}"
            )
    return {
        _SPLITS[name]: (Column(table, key),) for name, table in tables.items() if name in _SPLITS
    }


class Table(Protocol):
    """What is used of a `datasets.Dataset`."""

    _fingerprint: str

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Mapping[str, Sequence[Any]]: ...


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a `datasets.Dataset`; an empty cell is ""."""

    table: Table
    key: str

    def documents(self) -> Iterator[str]:
        for start in range(0, len(self.table), 1000):
            some = self.table[start : start + 1000][self.key]
            yield from columns.cells(some, "the data set", self.key)

    def fingerprint(self) -> str:
        return streams.combined("Column", self.key, self.table._fingerprint)

    def count(self) -> int:
        return len(self.table)
