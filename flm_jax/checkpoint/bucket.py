"""Checkpoints that orbax writes directly to a bucket, without a local copy.

    gs://BUCKET/PREFIX/RUN.json               config of the run that owns this place; or s3://...
    gs://BUCKET/PREFIX/1200/params/... meta/  orbax items, as in a local folder
    gs://BUCKET/PREFIX/1200/commit_success.txt  orbax's own mark
    gs://BUCKET/PREFIX/1200/MANIFEST.json     size and checksum of every object, written last

A bucket has no rename, so a step counts when its manifest is there, which is after orbax's mark.

Arrays go through tensorstore's driver, small files through fsspec (`stores.py`). The manifest holds
the checksum that the store computes of the bytes it receives, and not a SHA-256 that we compute:
objects are never changed in place, whatever replaces one gets a checksum of its own, so one listing
sees all damage that a service like this can show. Reading everything back would send each
checkpoint once more over the network after a save and, before a restore, once more to each process.
What the checksum cannot see is left to TLS: the way from here to the store and back.

Only these schemes work: the arrays have drivers for no other. Everything else has `mirror.py`.
"""

import asyncio
import collections.abc
import contextlib
import json
import os
import pathlib
import uuid
from typing import Any

from flm_jax.checkpoint import manifest
from flm_jax.checkpoint.arrays import import_orbax, literal
from flm_jax.checkpoint.folder import ASIDE, ASIDE_KEPT
from flm_jax.checkpoint.numbered import NumberedFolders, refuse_pattern
from flm_jax.checkpoint.stores import PATIENCE_S, STORES, FileSystem
from flm_jax.errors import UserError

OWNER = "RUN.json"


class Bucket(NumberedFolders):
    """Where `Checkpoints` puts its steps: gs://BUCKET/PREFIX or s3://BUCKET/PREFIX."""

    def __init__(self, url: str):
        scheme, _, rest = url.rstrip("/").partition("://")
        self.bucket, _, self.prefix = rest.partition("/")
        if scheme not in STORES:
            places = " and ".join(f"{known}://BUCKET/FOLDER" for known in STORES)
            raise UserError(
                f"train.checkpoints={url} cannot be written directly, only {places} can; "
                f"omit it and have the checkpoints copied with --config.train.mirror={url}"
            )
        if not self.bucket or not self.prefix:
            raise UserError(
                f"train.checkpoints={url} names no folder in a bucket; write it like "
                f"{scheme}://{self.bucket or 'bucket'}/run"
            )
        refuse_pattern("train.checkpoints", url)
        self._store = STORES[scheme]
        self._root = f"{self.bucket}/{self.prefix}"
        self.url = f"{scheme}://{self._root}"

    @property
    def path(self) -> pathlib.Path:
        """What orbax and its readers take for a folder."""
        self._store.file_system(self.url)  # so that etils gets it with our settings
        return literal(self.url)

    @property
    def _fs(self) -> FileSystem:
        return self._store.file_system(self.url)

    def check(self) -> None:
        """Raises UserError unless the bucket is there and can be written, read and deleted from.

        By all libraries that will do it: each looks for credentials by itself.
        """
        name = f"{self.prefix}/.probe-{uuid.uuid4().hex}"
        with self._reaching("used"):
            fs = self._fs  # the sentence about a missing library comes first
            import tensorstore as ts

            try:
                self._store.look_for(self.bucket, self.prefix)
            except FileNotFoundError as error:
                raise UserError(
                    f"train.checkpoints={self.url}: there is no bucket {self.bucket}; make it, or "
                    "check its name"
                ) from error
            spec = self._store.tensorstore_spec(self.bucket)
            store = ts.KvStore.open(spec).result(timeout=PATIENCE_S)
            store.write(name, b"probe").result(timeout=PATIENCE_S)
            if fs.cat_file(f"{self.bucket}/{name}") != b"probe":
                raise OSError("what was written came back as something else")
            fs.rm_file(f"{self.bucket}/{name}")

    def owner(self) -> str | None:
        """The config of the run that owns this place; None if it is nobody's.

        Raises UserError if there are numbered folders of unknown origin.
        """
        with self._reaching("read"):
            try:
                return json.loads(self._fs.cat_file(f"{self._root}/{OWNER}"))["config"]
            except FileNotFoundError:
                self._refuse_foreign("train.checkpoints", OWNER)
        return None

    def claim(self, config: str) -> None:
        """Makes this place the run's with this config."""
        with self._reaching("written"):
            content = json.dumps({"config": config}, indent=1).encode()
            self._fs.pipe_file(f"{self._root}/{OWNER}", content)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        with self._reaching("read"):
            return super().steps()

    def verify(self, step: int, items: collections.abc.Collection[str]) -> bool:
        """Compares items of a step with its manifest (raises Damaged); always True.

        Hashes are compared with a listing. Those of another kind, in a step that `Mirror` or some
        other tool has copied here, are computed from the bytes.
        """
        with self._reaching("read"):
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

        orbax would delete everything here that has no commit mark, RUN.json included.
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
        asides = [n for n in self._names() if n.startswith(ASIDE)]
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

    @contextlib.contextmanager
    def _reaching(self, what: str) -> collections.abc.Iterator[None]:
        """Makes a sentence of whatever these libraries raise."""
        try:
            yield
        except (UserError, manifest.Damaged):
            raise
        except Exception as error:
            lines = str(error).strip().splitlines()
            line = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
            if known := self._store.sentence(line):
                raise UserError(f"train.checkpoints={self.url}: {known}") from error
            raise UserError(
                f"train.checkpoints={self.url} cannot be {what} ({line}); the same command tries "
                "again"
            ) from error
