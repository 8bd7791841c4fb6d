"""A second home for the steps of a run: any place that fsspec reaches, copied after the commit.

    URL/MIRROR.json             which run owns this place, and its config
    URL/1200/params/... meta/   the files of a step, MANIFEST.json last: a step without is not one

Each file is read back and compared with its SHA-256; one that agrees already is not copied again,
so that an interrupted copy goes on where it was. Only numbered folders of a place that this run
owns are ever deleted.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import BinaryIO

from absl import logging

from flm_jax.checkpoint import manifest
from flm_jax.checkpoint.checkpoints import Checkpoints
from flm_jax.checkpoint.numbered import NumberedFolders, refuse_pattern
from flm_jax.checkpoint.stores import FileSystem
from flm_jax.errors import UserError
from flm_jax.host import files

OWNER = "MIRROR.json"  # there and in the workdir
_BLOCK = 1 << 22
_SNAPSHOT, _ARRIVING = ".mirror-", ".arriving-"


class Mirror(NumberedFolders):
    """Copies committed steps in a thread while it is open, the rest when it closes.

    Args:
      url: as fsspec takes it, for example gs://bucket/run or /mnt/backup/run.
      checkpoints: the run's own; open it inside of this context, so that it closes first.
      workdir: keeps the name under which the run owns its mirror.
      keep_latest: the rule of `Checkpoints`, applied to all steps of both places.
      keep_best: likewise.
      poll_s: seconds between looks at the folder of the checkpoints.
    """

    def __init__(
        self,
        url: str,
        checkpoints: Checkpoints,
        workdir: pathlib.Path,
        keep_latest: int = 2,
        keep_best: int = 1,
        poll_s: float = 1.0,
    ):
        self.url = url
        self._fs, self._root = _reach(url)
        self._checkpoints, self._workdir = checkpoints, workdir
        self._keep_latest, self._keep_best, self._poll_s = keep_latest, keep_best, poll_s
        self._owned = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def claim(self, config: str, check: Callable[[str], None] = lambda config: None) -> bool:
        """Makes the place this run's own; False if it cannot be reached now.

        Args:
          config: kept there beside the name of the owner.
          check: called with that text where a new workdir takes over a mirror; raises UserError if
            that belongs to another config.

        Raises UserError if the place belongs to another run, or if it cannot be reached and the
        workdir has no checkpoint: starting over would be wrong if there are some in the mirror.
        """
        try:
            self._claim(config, check)
        except UserError:
            raise
        except Exception as error:  # every file system has its own
            if not self._checkpoints.steps():
                raise UserError(
                    f"train.mirror={self.url} cannot be reached ({_line(error)}) and the workdir "
                    "has no checkpoint, so it cannot be said where to start; try again, or set "
                    "train.mirror=''"
                ) from error
            logging.error("NOT MIRRORED: %s cannot be reached (%s)", self.url, _line(error))
        return self._owned

    def _claim(self, config: str, check: Callable[[str], None]) -> None:
        theirs, mine = self._owner(), None
        if (self._workdir / OWNER).is_file():
            mine = json.loads((self._workdir / OWNER).read_text())["run"]
        if theirs is None:
            self._refuse_foreign("train.mirror", OWNER)
            theirs = {"run": mine or uuid.uuid4().hex, "config": config}
            self._write(f"{self._root}/{OWNER}", json.dumps(theirs).encode())
        elif mine is None and not self._checkpoints.steps():
            check(theirs["config"])  # a new machine goes on with the run of this mirror
        elif mine != theirs["run"]:
            raise UserError(
                f"train.mirror={self.url} belongs to a run in another workdir; choose an empty "
                "place, or give the workdir of that run"
            )
        if mine is None:
            content = json.dumps({"run": theirs["run"], "mirror": self.url})
            files.write_atomically(self._workdir / OWNER, content)
        self._owned = True

    def stored(self) -> str | None:
        """The config of the run that owns the place; None if it is nobody's, or out of reach."""
        try:
            owner = self._owner()
        except Exception:  # every file system has its own; `claim` says what that means
            return None
        return owner["config"] or None if owner else None

    def _owner(self) -> dict[str, str] | None:
        try:
            return json.loads(self._fs.cat_file(f"{self._root}/{OWNER}"))
        except FileNotFoundError:
            return None

    def fetch(self) -> int | None:
        """Brings the newest good step into the folder of the checkpoints; None if there is none.

        It arrives under another name and gets its own when all of it agrees with its manifest.
        """
        try:
            for step in reversed(self.steps()):
                try:
                    self._download(step)
                except manifest.Damaged as error:
                    logging.warning("mirrored checkpoint %s is damaged, skipped: %s", step, error)
                    continue
                return step
        except Exception as error:
            raise UserError(
                f"no checkpoint could be copied from {self.url} ({_line(error)}); the same command "
                "tries again"
            ) from error
        return None

    def sync(self) -> None:
        """Copies what is missing there and deletes what the rule no longer keeps."""
        with self._lock:
            self._sync()

    def try_sync(self, then: str) -> None:
        """`sync`, with a loud warning in place of an error; ``then`` says what comes next."""
        try:
            self.sync()
        except Exception as error:  # every file system has its own
            logging.error("NOT MIRRORED: %s; %s", self._failed(error), then)

    def _sync(self) -> None:
        if not self._owned:
            self._claim("", _refuse_to_take_over)
        here, there = self._checkpoints.steps(), self.steps()
        metrics = {n: self._metric(n, n in here) for n in {*here, *there}}
        kept = self._kept(metrics)
        for step in sorted(kept & set(here), reverse=True):
            if step not in there or not self._same_manifest(step):
                self._upload(step)
        for step in set(self._numbered()) - kept:
            logging.info("deleting mirrored checkpoint %s", step)
            if step in there:  # first, so that half a step is not taken for one
                self._fs.rm_file(self._at(step, manifest.MANIFEST))
            self._fs.rm(self._at(step), recursive=True)

    def __enter__(self):
        for left in self._checkpoints.folder.glob(f"{_SNAPSHOT}*"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, name="mirror", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        """Copies the rest. Raises UserError if that fails: nobody would try again."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if kind is not None:
            return self.try_sync("the same command tries again")
        try:
            self.sync()
        except Exception as error:
            raise UserError(f"{self._failed(error)}; the same command tries again") from error

    def _watch(self) -> None:
        tried = None
        while not self._over.wait(self._poll_s):
            steps = self._checkpoints.steps()
            if steps == tried or not steps:
                continue
            tried = steps  # a failure is tried again when the next step is saved
            self.try_sync("training goes on and the next save tries again")

    def _failed(self, error: Exception) -> str:
        if isinstance(error, UserError):
            return str(error)
        return (
            f"the checkpoints could not be copied to {self.url} ({_line(error)}); those in "
            f"{self._checkpoints.folder} are intact"
        )

    def _kept(self, metrics: Mapping[int, float | None]) -> set[int]:
        rated = sorted((value, step) for step, value in metrics.items() if value is not None)
        best = {step for _, step in rated[: self._keep_best]}
        return best | set(sorted(metrics)[-self._keep_latest :])

    def _metric(self, step: int, here: bool) -> float | None:
        name = "metrics/metrics"  # as orbax keeps it
        try:
            if here:
                content = (self._checkpoints.folder / str(step) / name).read_bytes()
            else:
                content = self._fs.cat_file(self._at(step, name))
            return float(json.loads(content)["metric"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _same_manifest(self, step: int) -> bool:
        path = self._checkpoints.folder / str(step) / manifest.MANIFEST
        try:
            return path.read_bytes() == self._fs.cat_file(self._at(step, manifest.MANIFEST))
        except FileNotFoundError:
            return False

    def _upload(self, step: int) -> None:
        """Copies one step from hard links to its files: the original may be deleted meanwhile."""
        folder = self._checkpoints.folder / str(step)
        snapshot = self._checkpoints.folder / f"{_SNAPSHOT}{step}"
        try:
            shutil.copytree(folder, snapshot, copy_function=os.link)
        except (OSError, shutil.Error):  # a file system without hard links, or just deleted
            shutil.rmtree(snapshot, ignore_errors=True)
            snapshot = folder
        try:
            listed = manifest.read(snapshot)
            if listed is None:
                if folder.is_dir():
                    logging.warning("checkpoint %s has no manifest: it is not mirrored", step)
                return
            if self._fs.exists(self._at(step, manifest.MANIFEST)):  # of an older copy
                self._fs.rm_file(self._at(step, manifest.MANIFEST))
            for path in sorted(p for p in snapshot.rglob("*") if p.is_file()):
                name = path.relative_to(snapshot).as_posix()
                if name != manifest.MANIFEST:
                    known = listed.pop(name, None) or (path.stat().st_size, _digest_of(path))
                    self._send(path, self._at(step, name), *known)
            if listed:
                raise manifest.Damaged(f"{min(listed)} is missing")
            content = (snapshot / manifest.MANIFEST).read_bytes()
            self._write(self._at(step, manifest.MANIFEST), content)
        except manifest.Damaged as error:
            logging.warning("checkpoint %s is damaged, not mirrored: %s", step, error)
        except FileNotFoundError:
            if folder.is_dir():
                raise
        finally:
            if snapshot != folder:
                shutil.rmtree(snapshot, ignore_errors=True)

    def _send(self, path: pathlib.Path, there: str, size: int, digest: str) -> None:
        if self._holds(there, size, digest):
            return
        self._fs.makedirs(there.rpartition("/")[0], exist_ok=True)
        with path.open("rb") as source, self._fs.open(there, "wb") as target:
            read = _copy(source, target)
        if read != digest:
            raise manifest.Damaged(f"{path.name} has changed since it was written")
        if not self._holds(there, size, digest):
            raise OSError(f"{there} did not arrive as it was sent")

    def _holds(self, there: str, size: int, digest: str) -> bool:
        """Whether a file is there with these bytes, all of them read."""
        self._fs.invalidate_cache()
        try:
            if self._fs.info(there)["size"] != size:
                return False
            with self._fs.open(there, "rb") as file:
                return _copy(file) == digest
        except FileNotFoundError:
            return False

    def _download(self, step: int) -> None:
        folder = self._checkpoints.folder
        arriving = folder / f"{_ARRIVING}{step}"
        arriving.mkdir(parents=True, exist_ok=True)
        root = self._at(step)
        content = self._fs.cat_file(self._at(step, manifest.MANIFEST))
        (arriving / manifest.MANIFEST).write_bytes(content)
        listed = manifest.read(arriving) or {}
        for there in self._fs.find(root):
            name = there[there.rindex(f"/{step}/") + len(f"/{step}/") :]
            path = arriving / name
            if name == manifest.MANIFEST or path.is_file() and name in listed and (
                _digest_of(path) == listed[name][1]
            ):  # fmt: skip
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._fs.open(there, "rb") as source, path.open("wb") as target:
                _copy(source, target)
                target.flush()
                os.fsync(target.fileno())
        manifest.verify(arriving)
        self._checkpoints.adopt(arriving, step)

    def _write(self, there: str, content: bytes) -> None:
        """A small file, there whole or not at all."""
        self._fs.makedirs(there.rpartition("/")[0], exist_ok=True)
        with self._fs.open(f"{there}.part", "wb") as file:
            file.write(content)
        self._fs.mv(f"{there}.part", there)


def _refuse_to_take_over(config: str) -> None:
    raise UserError("the mirror has steps of a run that this workdir does not know")


def _reach(url: str) -> tuple[FileSystem, str]:
    """(file system, path) of a URL; nothing is touched yet."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"train.mirror={url} cannot be used: {_line(error)}; install the package that fsspec "
            "needs for it, or give another URL, for example gs://bucket/run or a folder"
        ) from error
    if not isinstance(fs, LocalFileSystem):
        refuse_pattern("train.mirror", url)
    return fs, str(root).rstrip("/")


def _copy(source: BinaryIO, target: BinaryIO | None = None) -> str:
    """The SHA-256 of what was read."""
    total = hashlib.sha256()
    while block := source.read(_BLOCK):
        total.update(block)
        if target is not None:
            target.write(block)
    return total.hexdigest()


def _digest_of(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return _copy(file)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
