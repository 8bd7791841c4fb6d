"""What published corpora have in common: where their files are looked for, downloads, splits."""

import abc
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flm_jax import errors
from flm_jax.data import base, paths
from flm_jax.data.published import streams
from flm_jax.host import folders, progress
from flm_jax.host.download import Download, fetch

FOLDER_VARIABLE = "FLM_JAX_DATA"
_RULES = "1"  # raise it when the same files and options would give other documents

Parts = Mapping[str, tuple[streams.Part, ...]]  # by split; a split without parts is omitted


class Published(base.Corpus, unfinished=True):
    """A corpus whose files are found in one of several layouts and read as a stream.

    Subclasses fill in the attributes and `recognise`.

    Attributes:
      wanted: the files in words, for the message when there are none.
      address: where people get them, for the same message.
      hub_names: names of the data set on the Hugging Face hub, whose cache is searched.
      downloads: files that may be fetched; empty where licence or size speak against it.
      distinct: whether the names of the files tell the corpus, so that they need no folder of their
        own in $FLM_JAX_DATA.
    """

    name = ""
    kind = ""
    licence = ""
    wanted = ""
    address = ""
    hub_names: tuple[str, ...] = ()
    downloads: tuple[Download, ...] = ()
    distinct = True
    splits: tuple[str, ...] = base.SPLITS

    def __init__(self, path: str = "", download: bool = False):
        """Finds the files; reads no text yet.

        Args:
          path: the file, archive or folder; "" looks in $FLM_JAX_DATA, in the cache folder and in
            the Hugging Face cache.
          download: fetch the files into the cache folder if they are nowhere.

        Raises:
          UserError: the files are not found, cannot be fetched, or are of another kind.
        """
        self._parts = self._find(path, download)
        self._sources: dict[str, streams.Streamed] = {}
        self.splits = tuple(split for split in base.SPLITS if self._parts.get(split))

    @abc.abstractmethod
    def recognise(self, place: pathlib.Path) -> Parts | None:
        """The parts of each split if `place` (a file or a folder that exists) holds the corpus."""

    def source(self, split: str) -> Sequence[str]:
        base.check_split(self, split)
        if split not in self._sources:
            self._sources[split] = self._open(split)
        return self._sources[split]

    def _open(self, split: str) -> streams.Streamed:
        return streams.Streamed(self._parts[split], f"{self.name} {split}")

    def fingerprint(self, split: str) -> str:
        base.check_split(self, split)
        found = (part.fingerprint() for part in self._parts[split])
        return streams.combined(_RULES, self.name, split, *found)

    def describe(self) -> dict:
        """See `Corpus.describe`; one pass over all files."""
        return base.description(
            self,
            {split: _count(self.source(split), f"{self.name} {split}") for split in self.splits},
        )

    def _find(self, path: str, download: bool) -> Parts:
        if path:
            place = folders.expanded(path)
            if not place.exists():
                raise errors.UserError(
                    f"there is no file or folder {place}; correct options.path of data set "
                    f"{self.name!r}, which wants {self.wanted}"
                )
            if found := self.recognise(place):
                return found
            raise errors.UserError(
                f"{place} does not hold {self.wanted}; correct options.path of data set "
                f"{self.name!r}, or get the files from {self.address}"
            )
        for place in self._places():
            if place.exists() and (found := self.recognise(place)):
                return found
        if download and self.downloads:
            for file in self.downloads:
                fetch(file, self._download_folder())
            if found := self.recognise(self._download_folder()):
                return found
        raise errors.UserError(self._nowhere(download))

    def _download_folder(self) -> pathlib.Path:
        return base.cache_folder() / "downloads" / self.name

    def _places(self) -> Iterable[pathlib.Path]:
        """Where files may lie, in the order of preference."""
        if own := os.environ.get(FOLDER_VARIABLE):
            yield folders.expanded(own) / self.name
            if self.distinct:
                yield folders.expanded(own)
        yield self._download_folder()
        yield from hub_folders(self.hub_names)

    def _nowhere(self, download: bool) -> str:
        own = os.environ.get(FOLDER_VARIABLE)
        places = [f"{own}/{self.name}" if own else f"${FOLDER_VARIABLE} (not set)"]
        if own and self.distinct:
            places.append(own)
        places.append(str(self._download_folder()))
        if self.hub_names:
            places.append(f"the Hugging Face cache ({', '.join(self.hub_names)})")
        remedies = ["give it with --config.data.options.path=..."]
        if self.downloads and not download:
            remedies.append("fetch it with --config.data.options.download=True")
        if download and not self.downloads:
            remedies.insert(0, "it is not fetched automatically")
        return (
            f"data set {self.name!r} wants {self.wanted}, but none is in {', '.join(places)}; get "
            f"it from {self.address}, then {' or '.join(remedies)}"
        )


def hub_folders(names: Sequence[str]) -> Iterator[pathlib.Path]:
    """Folders of the Hugging Face caches that may hold these data sets: downloads, then Arrow."""
    hub = folders.hugging_face("HF_HUB_CACHE", "hub")
    made = folders.hugging_face("HF_DATASETS_CACHE", "datasets")
    for name in names:
        if hub is not None:
            snapshots = hub / f"datasets--{name.replace('/', '--')}" / "snapshots"
            yield from sorted(snapshots.glob("*"))
        if made is not None:
            yield made / name.replace("/", "___").lower()
            yield made / name.replace("/", "___")


def below(place: pathlib.Path, *endings: str) -> list[pathlib.Path]:
    """Files with one of the endings in a folder at any depth, by name; or `place` if it is one."""
    if place.is_file():
        return [place] if place.name.endswith(endings) else []
    return [path for path in paths.visible(place) if path.name.endswith(endings)]


def first_of(place: pathlib.Path, *names: str) -> pathlib.Path | None:
    """The first of these files in a folder, plain or with .gz; or `place` if it is one of them."""
    wanted = [name + zipped for name in names for zipped in ("", ".gz")]
    if place.is_file():
        return place if place.name in wanted else None
    return next((place / name for name in wanted if (place / name).is_file()), None)


def _count(texts: Sequence[str], title: str) -> tuple[int, int]:
    """(documents, characters)."""
    documents = characters = 0
    with progress.bar(desc=f"counting {title}", unit="doc", delay=2) as bar:
        for text in texts:
            documents += 1
            characters += len(text)
            bar.update()
    return documents, characters
