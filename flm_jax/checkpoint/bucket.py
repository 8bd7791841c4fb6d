"""Checkpoints that orbax writes directly to a bucket, without a local copy.

    gs://BUCKET/FOLDER/1200/params/... meta/    orbax items, as in a local folder; or s3://...
    gs://BUCKET/FOLDER/1200/commit_success.txt  orbax's own mark
    gs://BUCKET/FOLDER/1200/MANIFEST.json       size and checksum of every object, written last

A bucket has no rename, so a step counts when its manifest is there, which is after orbax's mark.

Arrays go through tensorstore's driver, small files through fsspec (`stores.py`). The manifest holds
the checksum that the store computes of the bytes it receives, and not a SHA-256 that we compute:
objects are never changed in place, whatever replaces one gets a checksum of its own, so one listing
sees all damage that a service like this can show. Reading everything back would send each
checkpoint once more over the network after a save and, before a restore, once more to each process.
What the checksum cannot see is left to TLS: the way from here to the store and back.
"""

import asyncio
import collections.abc
import os
import pathlib
from typing import Any

from flm_jax.checkpoint import manifest
from flm_jax.checkpoint.address import Address
from flm_jax.checkpoint.arrays import import_orbax, literal
from flm_jax.checkpoint.folder import ASIDE, ASIDE_KEPT


class Bucket(Address):
    """Where `Checkpoints` puts its steps: gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

    Args:
      before_commit: the first process calls it when a step is written, before its manifest is; an
        exception fails the save.
    """

    def __init__(self, url: str, before_commit: collections.abc.Callable[[], None] | None = None):
        super().__init__(url)
        self._before_commit = before_commit

    @property
    def path(self) -> pathlib.Path:
        """What orbax and its readers take for a folder."""
        self._store.file_system(self.url)  # so that etils gets it with our settings
        return literal(self.url)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        with self.reaching("read"):
            there = self._numbered()
            return [n for n in there if self._fs.exists(self._at(n, manifest.MANIFEST))]

    def verify(self, step: int, items: collections.abc.Collection[str]) -> bool:
        """Compares items of a step with its manifest (raises Damaged); always True.

        Hashes are compared with a listing. Those of another kind, in a step that some
        tool has copied here, are computed from the bytes.
        """
        with self.reaching("read"):
            listed = manifest.read(self.path / str(step))
            if listed is None:
                raise manifest.Damaged(f"{manifest.MANIFEST} is missing")
            there = self._objects(step)

            def size_of(name: str) -> int | None:
                return there[name][0] if name in there else None

            def digest_of(name: str, kind: str) -> str | None:
                stored, wanted = there[name][1], listed[name][1]
                if manifest.kind_of(stored) == kind:
                    return stored
                if stored == wanted.replace(manifest.MD5, manifest.ETAG):
                    return wanted
                with self._fs.open(self._at(step, name), "rb") as file:
                    return manifest.hash_of(file, kind)

            manifest.compare(listed, items, size_of, digest_of)
        return True

    def before_saving(self) -> None:
        """Removes steps without a manifest: what a killed save left behind.

        orbax would delete everything here that has no commit mark.
        """
        for step in self._numbered():
            if not self._fs.exists(self._at(step, manifest.MANIFEST)):
                self._remove(self._at(step))

    def options(
        self,
        saving: collections.abc.Callable[[], int | None],
        read_back: collections.abc.Callable[[os.PathLike], None],
    ) -> dict[str, Any]:
        """What orbax is told of this kind of place; as in `Folder`."""
        ocp = import_orbax()
        atomicity, bucket = ocp.path.atomicity, self

        class ManifestLast(atomicity.CommitFileTemporaryPath):
            """A step or an item of one; the first process calls `finalize`."""

            async def finalize(self):
                await super().finalize()
                if self.get_final().parent == bucket.path:
                    step = int(self.get_final().name)
                    await asyncio.to_thread(read_back, self.get_final())
                    if bucket._before_commit is not None:
                        await asyncio.to_thread(bucket._before_commit)
                    await asyncio.to_thread(bucket.write_manifest, step)

            @classmethod
            async def validate_final(cls, final_path):
                await super().validate_final(final_path)
                if final_path.parent == bucket.path and not await asyncio.to_thread(
                    (final_path / manifest.MANIFEST).exists
                ):
                    raise atomicity.ValidationError(f"{final_path} has no manifest")

        return {"cleanup_tmp_directories": False, "temporary_path_class": ManifestLast}

    def write_manifest(self, step: int) -> None:
        """Commits a step whose data is all there."""
        files = {name: facts for name, facts in self._objects(step).items() if "/" in name}
        files = self._store.for_manifest(
            files, lambda name: self._fs.cat_file(self._at(step, name))
        )
        self._fs.pipe_file(self._at(step, manifest.MANIFEST), manifest.text(files).encode())

    def set_aside(self, step: int) -> str:
        """Moves a damaged step, so that it is none any more; only the newest are kept."""
        aside = f"{self._root}/{ASIDE}{step}"
        if self._fs.exists(aside):
            self._remove(aside)
        names = self._fs.find(self._at(step))
        within = len(self._at(step)) + 1
        self._fs.copy(names, [f"{aside}/{name[within:]}" for name in names])
        self._fs.rm_file(self._at(step, manifest.MANIFEST))  # first: the rest is then no step
        self._remove(self._at(step))
        asides = [n for n in self.names() if n.startswith(ASIDE)]
        asides = sorted(asides, key=lambda n: (len(n), n))
        for name in asides[:-ASIDE_KEPT]:
            self._remove(f"{self._root}/{name}")
        return f"{self._store.scheme}://{aside}"

    def _remove(self, folder: str) -> None:
        self._fs.rm(folder, recursive=True)
        if left := self._fs.find(folder):  # s3fs does not say what S3 refuses to delete
            raise OSError(f"{left[0]} could not be deleted")

    def _objects(self, step: int) -> dict[str, tuple[int, str]]:
        """Path to (size, checksum) of what a step holds, from one listing."""
        listed = self._fs.find(self._at(step), detail=True)
        within = len(self._at(step)) + 1
        return {
            path[within:]: (int(info["size"]), self._store.digest(info))
            for path, info in listed.items()
        }

    def _at(self, step: int, name: str = "") -> str:
        return f"{self._root}/{step}" + (f"/{name}" if name else "")

    def _numbered(self) -> list[int]:
        return sorted(int(name) for name in self.names() if name.isdecimal())
