"""A recorded set on disk: manifest.json and the files of its cases, read with suspicion."""

import dataclasses
import functools
import json
import os
import pathlib
import zipfile
import zlib
from typing import Any

import numpy as np

from flm_jax.errors import UserError

MANIFEST = "manifest.json"
# What numpy raises for a file that is cut, overwritten or not an archive at all.
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


Entry = dict[str, Any]  # what the manifest says of a case, as JSON


class GoldenError(Exception):
    """A case that cannot be run as recorded; the message is the reason that is printed."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One recorded run: its entry in the manifest, the file it names, the set it belongs to."""

    entry: Entry
    directory: pathlib.Path
    index: dict[str, Entry] = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        return self.entry["case"]

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def stem(self) -> str:
        return self.name.split("/", 1)[-1]

    @property
    def path(self) -> pathlib.Path:
        return self.directory / self.entry["file"]

    @property
    def config(self) -> dict[str, Any]:
        return self.entry.get("config", {})

    def option(self, name: str) -> Any:
        """A value of the case's configuration; GoldenError if the manifest does not say it."""
        if name not in self.config:
            raise GoldenError(f"the manifest does not say {name!r} of this case")
        return self.config[name]

    def other(self, name: str) -> "Case":
        """Another case of the same set."""
        if name not in self.index:
            raise GoldenError(f"the set has no case {name!r}, which this one needs")
        return Case(self.index[name], self.directory, self.index)

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array of the file, checked against the manifest's inventory."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise GoldenError(f"the file {self.entry['file']} is missing") from None
        except DAMAGE as error:
            raise GoldenError(f"the file {self.entry['file']} is damaged ({error})") from None
        for name, (dtype, shape) in self.entry.get("arrays", {}).items():
            if name not in arrays:
                raise GoldenError(f"the array {name!r} is missing")
            found = arrays[name].dtype.name, list(arrays[name].shape)
            if found != (dtype, list(shape)):
                raise GoldenError(
                    f"the array {name!r} is {found}, the manifest says {dtype, shape}"
                )
        return arrays

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise GoldenError(f"the array {name!r} is missing")
        return self.arrays[name]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays below a prefix such as "param/", by the rest of their names."""
        found = {n.removeprefix(prefix): a for n, a in self.arrays.items() if n.startswith(prefix)}
        if not found:
            raise GoldenError(f"there are no arrays {prefix}...")
        return found

    def json(self) -> Any:
        """The content of a JSON file."""
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise GoldenError(f"the file {self.entry['file']} is missing") from None
        except (OSError, ValueError) as error:
            raise GoldenError(f"the file {self.entry['file']} is damaged ({error})") from None


def read(directory: str | os.PathLike) -> list[Case]:
    """The cases of a recorded set, in the manifest's order.

    Raises UserError if there is no manifest, or none that lists cases.
    """
    directory = pathlib.Path(directory).expanduser()
    path = directory / MANIFEST
    if not path.is_file():
        raise UserError(f"{directory} has no {MANIFEST}; give the folder of a recorded set")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["cases"]
        index = {entry["case"]: entry for entry in entries}
        for entry in entries:
            pathlib.PurePath(entry["file"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} lists no cases ({error}); take the whole set again") from error
    return [Case(entry, directory, index) for entry in entries]
