"""Packed rows on disk: a folder of numbered .npy shards and a manifest, read by index.

shards.py writes such folders, packing.py decides what is in them.
"""

import dataclasses
import functools
import hashlib
import io
import json
import operator
import pathlib
from collections.abc import Iterator

import numpy as np

from flm_jax import errors
from flm_jax.host import progress

FORMAT_VERSION = 2  # of the folder; 1 was a single file without shards
MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
_CHECKED_FULLY = 256 << 20  # bytes; hashing more at each start would take too long
_BLOCK = 1 << 24  # bytes read at one time for a hash


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of L tokens on disk, memory-mapped at first use; picklable, so workers can have it.

    Attributes:
      path: the folder; its shards are .npy files, uint16 or int32, (rows, L), or (rows, L + 1)
        where rows have a given part: the last column says how many tokens that is.
      manifest: what is written beside them: corpus, split, fingerprints, rows, length, tokens,
        documents, and of each shard its file, rows, bytes and sha256.
    """

    path: pathlib.Path
    manifest: dict = dataclasses.field(hash=False)

    @property
    def length(self) -> int:
        return self.manifest["length"]

    @property
    def has_given(self) -> bool:
        """Whether rows begin with a given part, which is never predicted."""
        return self.manifest.get("given", False)

    @property
    def columns(self) -> int:
        return self.length + self.has_given

    @property
    def tokens(self) -> int:
        """Tokens in all rows, BOS and EOS included."""
        return len(self) * self.length

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) that stands for the tokens in order."""
        return self.manifest["sha256"]

    @functools.cached_property
    def _maps(self) -> list[np.ndarray | None]:
        return [None] * len(self.manifest["shards"])

    def _shard(self, number: int) -> np.ndarray:
        found = self._maps[number]
        if found is None:
            path = self.path / self.manifest["shards"][number]["file"]
            try:
                # A plain array over the map: indexing a numpy memmap costs more than the reading.
                found = np.asarray(np.load(path, mmap_mode="r"))
            except (OSError, ValueError) as error:
                raise errors.UserError(_damaged(path, f"cannot be read ({error})")) from None
            self._maps[number] = found
        return found

    def __getstate__(self) -> dict:
        return {"path": self.path, "manifest": self.manifest}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return self.manifest["rows"]

    def __getitem__(self, index) -> np.ndarray:
        """int32 copy: one row (L) for an integer, rows (n, L) for a slice or an index array."""
        try:
            row = operator.index(index)
        except TypeError:
            return self._gather(index)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        shard, place = divmod(row % len(self), self.manifest["shard_rows"])
        return self._shard(shard)[place, : self.length].astype(np.int32)

    def batch(self, index) -> dict[str, np.ndarray]:
        """`{"tokens": int32 (n, L)}` for a slice or an index array.

        Where rows have a given part, "given" is with it: bool (n, L), True where a token is given.
        """
        return self.split(self.stored(index))

    def split(self, stored_NC: np.ndarray) -> dict[str, np.ndarray]:
        """The same of rows as `stored` returns them."""
        found = {"tokens": stored_NC[:, : self.length]}
        if self.has_given:
            found["given"] = np.arange(self.length) < stored_NC[:, self.length :]
        return found

    def _gather(self, index) -> np.ndarray:
        return self.stored(index)[..., : self.length]

    def stored(self, index) -> np.ndarray:
        """int32 (n, columns) for a slice or an index array: rows as they are on disk."""
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            wanted_N = np.arange(chosen.start, chosen.stop, chosen.step)
        else:
            wanted_N = np.asarray(index)
            wanted_N = np.where(wanted_N < 0, wanted_N + len(self), wanted_N)
            if wanted_N.size and not (0 <= wanted_N.min() and wanted_N.max() < len(self)):
                raise IndexError(f"rows {wanted_N.min()} ... {wanted_N.max()} of {len(self)}")
        shard_N, place_N = np.divmod(wanted_N, self.manifest["shard_rows"])
        out_NC = np.empty((*wanted_N.shape, self.columns), np.int32)
        for shard in np.unique(shard_N):
            here = shard_N == shard
            out_NC[here] = self._shard(shard)[place_N[here]]
        return out_NC


def open_rows(folder: pathlib.Path, facts: dict | None = None) -> Rows:
    """The rows of a finished folder.

    Sizes and headers of all shards are checked, and the hashes of the tokens unless they are many.

    Args:
      facts: what the manifest must say.

    Raises:
      UserError: the folder is not one of rows, or damaged; it names the file and what to do.
    """
    rows = Rows(folder, _manifest(folder))
    for key, value in (facts or {}).items():
        if rows.manifest.get(key) != value:
            raise errors.UserError(
                f"{folder / MANIFEST} says {key} {rows.manifest.get(key)!r} where {value!r} "
                f"belongs; delete the folder {folder} to prepare it again"
            )
    for shard in rows.manifest["shards"]:
        _check_size(folder / shard["file"], shard, rows)
    if sum(shard["bytes"] for shard in rows.manifest["shards"]) <= _CHECKED_FULLY:
        verify(rows)
    return rows


def prepared_below(folder: pathlib.Path) -> list[Rows]:
    """The rows in a folder: its own, or those of the folders in it or in its folder `rows`.

    Raises:
      UserError: there are none, or damaged ones.
    """
    if (folder / MANIFEST).exists():
        return [open_rows(folder)]
    places = [folder, folder / "rows"]
    found = [path.parent for place in places for path in sorted(place.glob(f"*/{MANIFEST}"))]
    whole = [path for path in found if not path.name.endswith(".part")]
    if not whole:
        unfinished = next((p for place in places for p in sorted(place.glob("*.part"))), None)
        what = "holds no prepared rows" if folder.is_dir() else "is not a folder"
        if unfinished or folder.name.endswith(".part"):
            what = f"holds only unfinished rows ({(unfinished or folder).name})"
        raise errors.UserError(
            f"{folder} {what}; give a folder that flm prepare made, or let it finish"
        )
    return [open_rows(path) for path in whole]


def verify(rows: Rows) -> None:
    """Hashes all shards; raises UserError naming the first one that is not as it was written."""
    shards = rows.manifest["shards"]
    total = sum(shard["bytes"] for shard in shards)
    with progress.bar(total=total, unit="B", unit_scale=True, desc="checking", delay=2) as bar:
        for shard in shards:
            path = rows.path / shard["file"]
            _check_size(path, shard, rows)
            if _token_hash(path, bar) != shard["sha256"]:
                raise errors.UserError(_damaged(path, "does not have the SHA-256 it was made with"))


def sign(manifest: dict) -> dict:
    """The manifest with its own SHA-256, so that a change by hand is noticed."""
    facts = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    text = json.dumps(facts, sort_keys=True)
    return facts | {"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}


def combined(hashes: list[str]) -> str:
    """One hash for the tokens of all shards; of a single shard its own."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def header(rows: int, length: int, dtype: np.dtype) -> bytes:
    """A .npy header; numpy leaves room for the first axis to grow, so its size never changes."""
    made = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        made, {"descr": descr, "fortran_order": False, "shape": (rows, length)}
    )
    return made.getvalue()


def has_rows(path: pathlib.Path, count: int, length: int, dtype: np.dtype) -> bool:
    """Whether a shard has the header and the size of so many rows; raises OSError."""
    expected = header(count, length, dtype)
    with path.open("rb") as file:
        start = file.read(len(expected))
    size = len(expected) + count * length * dtype.itemsize
    return start == expected and path.stat().st_size == size


def _manifest(folder: pathlib.Path) -> dict:
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise errors.UserError(
            f"{path} is missing, so {folder} holds no prepared rows; give a folder that "
            "flm prepare made, or delete this one to prepare it again"
        ) from None
    except OSError as error:
        raise errors.UserError(
            f"cannot read {path}: {error.strerror or error}; make it readable"
        ) from error
    try:
        manifest = json.loads(content)
        whole = sign(manifest) == manifest
    except (ValueError, AttributeError):
        manifest, whole = {}, False
    if not whole:
        raise errors.UserError(_damaged(path, "was changed after it was written"))
    if manifest.get("format_version") != FORMAT_VERSION:
        raise errors.UserError(
            f"{path} has format {manifest.get('format_version')}, but this version of flm_jax "
            f"reads format {FORMAT_VERSION}; delete the folder {folder} to prepare it again"
        )
    return manifest


def _check_size(path: pathlib.Path, shard: dict, rows: Rows) -> None:
    try:
        right = has_rows(path, shard["rows"], rows.columns, np.dtype(rows.manifest["dtype"]))
    except FileNotFoundError:
        raise errors.UserError(_damaged(path, "is missing")) from None
    except OSError as error:
        raise errors.UserError(_damaged(path, f"cannot be read ({error.strerror})")) from None
    if not right:
        size = path.stat().st_size
        what = "has another header" if size == shard["bytes"] else f"has {size:,} bytes"
        wanted = "than it was made with" if size == shard["bytes"] else f"of {shard['bytes']:,}"
        raise errors.UserError(_damaged(path, f"{what} {wanted}"))


def _token_hash(path: pathlib.Path, bar) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            for data in _read(file):
                digest.update(data)
                bar.update(len(data))
    except (OSError, ValueError) as error:
        raise errors.UserError(_damaged(path, f"cannot be read ({error})")) from None
    return digest.hexdigest()


def _read(file) -> Iterator[bytes]:
    while data := file.read(_BLOCK):
        yield data


def _damaged(path: pathlib.Path, what: str) -> str:
    return (
        f"{path} {what}; copy it again from where it was made, or delete the folder {path.parent} "
        "to prepare it again"
    )
