"""OpenWebText: pages that Reddit users linked to."""

import functools
import pathlib

from flm_jax import errors
from flm_jax.data import base as data_base
from flm_jax.data.published import base, columns, files, streams

_NAMES = ("Skylion007/openwebtext", "openwebtext")


class OpenWebText(base.Published):
    """The hub's data set; its last 100,000 documents are "valid", as in the official code.

    Read from Parquet or Arrow files (of the hub, of the `datasets` library's cache, or of
    `save_to_disk`), or from the original archives (.tar of .xz, .tar.xz, .xz) or their text files.
    """

    name = "openwebtext"
    kind = "English web pages, one document each"
    licence = "packaging CC0; the pages belong to their authors, research use"
    wanted = "the Parquet, Arrow or original .tar/.xz files of OpenWebText"
    address = (
        "the Hugging Face hub (hf download Skylion007/openwebtext --repo-type dataset, 13 GB; "
        "8,013,769 documents)"
    )
    hub_names = _NAMES
    distinct = False

    def __init__(self, path: str = "", valid_documents: int = 100_000):
        """See `Published`.

        Args:
          path: see there.
          valid_documents: how many documents at the end are validation text.
        """
        if valid_documents < 1:
            raise errors.UserError(
                f"options.valid_documents={valid_documents} must be at least 1; official: 100000"
            )
        super().__init__(path)
        self._valid = valid_documents
        self.splits = ("train", "valid")

    @functools.cached_property
    def _whole(self) -> streams.Streamed:
        return streams.Streamed(self._parts["train"], self.name)

    def _open(self, split: str) -> streams.Streamed:
        whole = self._whole
        border = len(whole) - self._valid
        if border < 1:
            raise errors.UserError(
                f"data set {self.name!r} has {len(whole)} documents here, too few for "
                f"{self._valid} of validation; give all files, or set options.valid_documents"
            )
        limits = (0, border) if split == "train" else (border, len(whole))
        return whole.window(f"{self.name} {split}", *limits)

    def fingerprint(self, split: str) -> str:
        data_base.check_split(self, split)
        found = (part.fingerprint() for part in self._parts["train"])
        return streams.combined(self.name, split, self._valid, *found)

    def recognise(self, place: pathlib.Path) -> base.Parts | None:
        if shards := columns.shards(place).get("train"):
            return {"train": shards}
        archives = base.below(place, ".tar", ".xz", ".tar.gz", ".tgz")
        if archives:
            streams.refuse_copies(archives)
            _refuse_both_layers(archives)
            return {"train": tuple(map(files.TarTexts, archives))}
        texts = base.below(place, ".txt") if place.is_dir() else []
        return {"train": (files.Folder(place),)} if texts else None


def _refuse_both_layers(archives: list[pathlib.Path]) -> None:
    """Raises UserError where an archive lies beside the .xz archives that were unpacked from it."""
    inner = [path for path in archives if path.name.endswith("_data.xz")]
    outer = [path for path in archives if path not in inner]
    if inner and outer:
        raise errors.UserError(
            f"{outer[0]} and {inner[0]}, which comes out of such an archive, would count the same "
            "pages twice; set options.path to a folder with one kind of them only"
        )
