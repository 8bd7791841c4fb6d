"""Checkpoints that orbax writes directly to Google Cloud Storage, without a local copy.

    gs://BUCKET/PREFIX/RUN.json               config of the run that owns this place
    gs://BUCKET/PREFIX/1200/params/... meta/  orbax items, as in a local folder
    gs://BUCKET/PREFIX/1200/commit_success.txt  orbax's own mark
    gs://BUCKET/PREFIX/1200/MANIFEST.json     size and checksum of every object, written last

A bucket has no rename, so a step counts when its manifest is there, which is after orbax's mark.

Arrays go through tensorstore's driver, small files through gcsfs. The manifest holds the CRC32C
that the store computes of the bytes it receives, and not a SHA-256 that we compute: objects are
never changed in place, whatever replaces one gets a checksum of its own, so one listing sees all
damage that a service like this can show. Reading everything back would send each checkpoint once
more over the network after a save and, before a restore, once more to each process. What the
checksum cannot see is left to TLS: the way from here to the store and back.

Only gs:// works: of orbax's two ways to storage the arrays have no other driver (0.12.8 answers
"Checkpoint path should be absolute. Got s3:/..."). Everything else has `mirror.py`.
"""

import asyncio
import collections.abc
import contextlib
import hashlib
import json
import logging
import os
import uuid
from typing import Any

from flm_jax.checkpoint import manifest
from flm_jax.checkpoint.arrays import import_orbax
from flm_jax.checkpoint.folder import ASIDE, ASIDE_KEPT
from flm_jax.errors import UserError

OWNER = "RUN.json"
_PATIENCE_S = 30.0
_REFUSED = ("401", "403", "PERMISSION_DENIED", "UNAUTHENTICATED", "Unauthorized", "Forbidden")
_REFUSED += ("redentials", "RefreshError", "does not have storage.")


class Bucket:
    """Where `Checkpoints` puts its steps: gs://BUCKET/PREFIX."""

    def __init__(self, url: str):
        scheme, _, rest = url.rstrip("/").partition("://")
        self.bucket, _, self.prefix = rest.partition("/")
        if scheme != "gs":
            raise UserError(
                f"train.checkpoints={url} cannot be written directly, only gs://BUCKET/FOLDER can; "
                f"leave it away and have the checkpoints copied with --config.train.mirror={url}"
            )
        if not self.bucket or not self.prefix:
            raise UserError(
                f"train.checkpoints={url} names no folder in a bucket; write it like "
                f"gs://{self.bucket or 'bucket'}/run"
            )
        self.url = f"gs://{self.bucket}/{self.prefix}"
        self._root = f"{self.bucket}/{self.prefix}"

    @property
    def path(self):
        """What orbax and its readers take for a folder."""
        _file_system(self.url)  # so that etils gets it with our settings
        from etils import epath

        return epath.Path(self.url)

    @property
    def _fs(self):
        return _file_system(self.url)

    def check(self) -> None:
        """Raises UserError unless the bucket is there and can be written, read and deleted from.

        By all three libraries that will do it: each looks for credentials by itself.
        """
        name = f"{self.prefix}/.probe-{uuid.uuid4().hex}"
        _file_system(self.url)  # the sentence about a missing library comes first
        with self._reaching("used"):
            import tensorstore as ts
            from google.api_core.exceptions import NotFound
            from google.cloud import storage
            from google.cloud.storage.retry import DEFAULT_RETRY

            # get_bucket is what orbax will call: it needs storage.buckets.get.
            patience = {"timeout": _PATIENCE_S, "retry": DEFAULT_RETRY.with_timeout(_PATIENCE_S)}
            try:
                storage.Client().get_bucket(self.bucket, **patience)
            except NotFound as error:
                raise UserError(
                    f"train.checkpoints={self.url}: there is no bucket {self.bucket}; make it, or "
                    "check its name"
                ) from error
            spec = {"driver": "gcs", "bucket": self.bucket}
            store = ts.KvStore.open(spec).result(timeout=_PATIENCE_S)
            store.write(name, b"probe").result(timeout=_PATIENCE_S)
            if self._fs.cat_file(f"{self.bucket}/{name}") != b"probe":
                raise OSError("what was written came back as something else")
            self._fs.rm_file(f"{self.bucket}/{name}")

    def owner(self) -> str | None:
        """The config of the run that owns this place; None if it is nobody's.

        Raises UserError if there are numbered folders of unknown origin.
        """
        with self._reaching("read"):
            try:
                return json.loads(self._fs.cat_file(f"{self._root}/{OWNER}"))["config"]
            except FileNotFoundError:
                numbered = self._numbered()
        if numbered:
            raise UserError(
                f"train.checkpoints={self.url} holds {min(numbered)} and other numbered folders "
                f"but no {OWNER}: they are not of this run; choose an empty place"
            )
        return None

    def claim(self, config: str) -> None:
        """Makes this place the run's with this config."""
        with self._reaching("written"):
            content = json.dumps({"config": config}, indent=1).encode()
            self._fs.pipe_file(f"{self._root}/{OWNER}", content)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        with self._reaching("read"):
            return [n for n in self._numbered() if self._fs.exists(self._at(n, manifest.MANIFEST))]

    def verify(self, step: int, items: collections.abc.Collection[str]) -> bool:
        """Compares items of a step with its manifest (raises Damaged); always True.

        Hashes are compared with a listing. Those of another kind, in a step that `Mirror` has
        copied here, are computed from the bytes.
        """
        with self._reaching("read"):
            listed = manifest.read(self.path / str(step))
            if listed is None:
                raise manifest.Damaged(f"{manifest.MANIFEST} is missing")
            there = self._objects(step)

            def size_of(name: str) -> int | None:
                return there[name][0] if name in there else None

            def digest_of(name: str, kind: str) -> str:
                return there[name][1] if kind else self._sha256(self._at(step, name))

            manifest.compare(listed, items, size_of, digest_of)
        return True

    def before_saving(self) -> None:
        """Removes steps without a manifest: what a killed save left behind.

        orbax would delete everything here that has no commit mark, RUN.json included.
        """
        for step in self._numbered():
            if not self._fs.exists(self._at(step, manifest.MANIFEST)):
                self._fs.rm(self._at(step), recursive=True)

    def options(self, saving: collections.abc.Callable[[], int]) -> dict[str, Any]:
        """What orbax is told of this kind of place."""
        ocp = import_orbax()
        atomicity, bucket = ocp.path.atomicity, self

        class ManifestLast(atomicity.CommitFileTemporaryPath):
            """A step or an item of one; the first process calls `finalize`."""

            async def finalize(self):
                await super().finalize()
                if self.get_final().parent == bucket.path:
                    step = int(self.get_final().name)
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
        self._fs.pipe_file(self._at(step, manifest.MANIFEST), manifest.text(files).encode())

    def set_aside(self, step: int) -> str:
        """Moves a damaged step, so that it is none any more; only the newest are kept."""
        aside = f"{self._root}/{ASIDE}{step}"
        if self._fs.exists(aside):
            self._fs.rm(aside, recursive=True)
        names = self._fs.find(self._at(step))
        within = len(self._at(step)) + 1
        self._fs.copy(names, [f"{aside}/{name[within:]}" for name in names])
        self._fs.rm_file(self._at(step, manifest.MANIFEST))  # first: the rest is then no step
        self._fs.rm(self._at(step), recursive=True)
        asides = [n for n in self._names() if n.startswith(ASIDE)]
        asides = sorted(asides, key=lambda n: (len(n), n))
        for name in asides[:-ASIDE_KEPT]:
            self._fs.rm(f"{self._root}/{name}", recursive=True)
        return f"gs://{aside}"

    def _names(self) -> list[str]:
        try:
            names = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return [str(name).rstrip("/").rpartition("/")[2] for name in names]

    def _numbered(self) -> list[int]:
        return sorted(int(name) for name in self._names() if name.isdecimal())

    def _at(self, step: int, name: str = "") -> str:
        return f"{self._root}/{step}" + (f"/{name}" if name else "")

    def _objects(self, step: int) -> dict[str, tuple[int, str]]:
        """Path to (size, checksum) of what a step holds, from one listing."""
        listed = self._fs.find(self._at(step), detail=True)
        within = len(self._at(step)) + 1
        return {
            path[within:]: (int(info["size"]), manifest.CRC32C + info["crc32c"])
            for path, info in listed.items()
        }

    def _sha256(self, path: str) -> str:
        with self._fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

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
            if any(word in line for word in _REFUSED):
                raise UserError(
                    f"train.checkpoints={self.url}: access is refused ({line}); log in with gcloud "
                    "auth application-default login, or give the account the roles Storage Object "
                    "Admin and Storage Legacy Bucket Reader on this bucket"
                ) from error
            raise UserError(
                f"train.checkpoints={self.url} cannot be {what} ({line}); the same command tries "
                "again"
            ) from error


def _file_system(url: str):
    """The file system that etils, and so orbax, uses for gs://."""
    # Beside TensorFlow etils would take its file system, which has caches of its own.
    os.environ.setdefault("EPATH_USE_TF", "false")
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import google.cloud.storage  # noqa: F401, orbax asks it whether folders are real
    except ImportError as error:
        raise UserError(
            f"train.checkpoints={url} needs the library gcsfs and what comes with it ({error}); "
            "run pip install 'flm_jax[gcs]'"
        ) from error
    # It reports trouble by exceptions as well, which become sentences here.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Listings that gcsfs remembers would not show what tensorstore has written since.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as etils asks: the same object
