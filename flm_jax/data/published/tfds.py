"""Data sets that TensorFlow Datasets has prepared on this machine, read without TensorFlow."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from flm_jax import errors
from flm_jax.data.pieces import reading
from flm_jax.data.published import base, columns, streams
from flm_jax.host import folders

_SPLITS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Split:
    """The texts of a split of a prepared folder (one with dataset_info.json)."""

    folder: pathlib.Path
    split: str
    key: str

    def _source(self):
        tfds = columns.library("tensorflow_datasets", "tfds", f"reading {self.folder}")
        try:
            builder = tfds.builder_from_directory(str(self.folder))
            return builder.as_data_source(split=self.split)
        except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
            reason = errors.first_line(error)
            raise errors.UserError(
                f"TFDS cannot read {self.folder} without TensorFlow ({reason}); prepare it with "
                "file_format='array_record'"
            ) from error

    def documents(self) -> Iterator[str]:
        for example in self._source():
            if self.key not in example:
                raise errors.UserError(
                    f"{self.folder} has no feature {self.key!r}; set options.text_key to one of "
                    f"its features: {', '.join(example)}"
                )
            value = example[self.key]
            where = f"feature {self.key!r}"
            yield value if isinstance(value, str) else streams.text_of(value, self.folder, where)

    def fingerprint(self) -> str:
        with reading(self.folder):
            paths = sorted(p for p in self.folder.iterdir() if p.is_file())
            facts = [(p.name, p.stat().st_size) for p in paths]
        info = streams.file_hash(self.folder / "dataset_info.json")
        return streams.combined("tfds", self.split, self.key, info, *facts)

    def count(self) -> int:
        return len(self._source())


def prepared(place: pathlib.Path, key: str, name: str = "") -> dict[str, tuple[Split, ...]] | None:
    """The splits of a prepared folder, or of the only or newest version below `place`.

    Args:
      key: the feature with the text.
      name: of the data set; "" for any.
    """
    if not place.is_dir():
        return None
    found = [place] if (place / "dataset_info.json").is_file() else []
    found = found or [p.parent for p in sorted(place.glob("*/dataset_info.json"))]
    found = found or [p.parent for p in sorted(place.glob("*/*/dataset_info.json"))]
    found = [p for p in found if not name or _name(p) == name]
    if not found or not (found[-1] / "features.json").is_file():
        return None
    names = {p.name.partition("-")[2].partition(".")[0] for p in found[-1].glob("*-of-*")}
    parts = {_SPLITS[n]: (Split(found[-1], n, key),) for n in sorted(names) if n in _SPLITS}
    return parts or None


def _name(folder: pathlib.Path) -> str:
    """The name in dataset_info.json; "" if it is damaged."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return str(json.loads((folder / "dataset_info.json").read_bytes()).get("name", ""))
    return ""


def usual_folders(name: str) -> Iterator[pathlib.Path]:
    """Where TFDS keeps a data set, if it is installed."""
    if importlib.util.find_spec("tensorflow_datasets"):
        home = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        yield folders.expanded(home) / name


class Tfds(base.Published):
    """Any text data set of TFDS that lies prepared (as ArrayRecord or Parquet) on this machine."""

    name = "tfds"
    kind = "a data set of TensorFlow Datasets"
    licence = "as the data set states"
    wanted = "a data set that TFDS prepared with file_format='array_record'"
    address = "tfds.builder(NAME, file_format='array_record').download_and_prepare()"
    distinct = False

    def __init__(self, dataset: str, data_dir: str = "", text_key: str = "text"):
        """Finds the prepared folder.

        Args:
          dataset: its TFDS name, such as lm1b or wiki40b/en.
          data_dir: the folder of all data sets; "" = $TFDS_DATA_DIR or ~/tensorflow_datasets.
          text_key: the feature with the text.

        Raises:
          UserError: it is not there, or the library tensorflow_datasets is not installed.
        """
        columns.library("tensorflow_datasets", "tfds", f"data set {dataset!r}")
        self._dataset, self._key = dataset, text_key
        home = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        self._home = folders.expanded(home)
        super().__init__()
        self.name = f"tfds-{dataset.replace('/', '-').replace(':', '-')}"

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        return prepared(place, self._key)

    def _places(self) -> Sequence[pathlib.Path]:
        return [self._home / self._dataset.replace(":", "/")]

    def _nowhere(self, download: bool) -> str:
        (place,) = self._places()
        return (
            f"there is no prepared data set {self._dataset!r} in {place}; prepare it with "
            f"python -c \"import tensorflow_datasets as tfds; tfds.builder('{self._dataset}', "
            "file_format='array_record').download_and_prepare()\", or set options.data_dir"
        )
