"""A workdir in a bucket: --workdir=gs://BUCKET/RUN or s3://BUCKET/RUN.

    gs://BUCKET/RUN/checkpoints/       written there directly, by all processes (`bucket.py`)
    gs://BUCKET/RUN/config.json, ...   brought there from a local folder by process 0: at the
                                       start, before a step is committed, and at the end
    gs://BUCKET/RUN/LOCK.json          who may write (`lease.py`)

The local folder is in the user's cache and named after the address, so that a restart on the same
machine finds it; another machine fetches what a run goes on with. `.bucket.json` in it says which
address it stands for, so that whoever reads the folder finds the checkpoints.
"""

import collections.abc
import contextlib
import hashlib
import json
import pathlib
import threading
from typing import Any

from absl import logging

from flm_jax.checkpoint import stores
from flm_jax.checkpoint.address import Address
from flm_jax.checkpoint.lease import Lease, Lost
from flm_jax.errors import UserError
from flm_jax.host import files, folders

CHECKPOINTS_FOLDER = "checkpoints"
_MARK = ".bucket.json"
_CONFIG = "config.json"
_STAYS = (CHECKPOINTS_FOLDER, "compiled")  # the first is there already, the second of one machine
# What a run goes on with and is read by; a folder ends in a slash.
_FETCHED = (
    _CONFIG, "run.json", "results.json", "metrics.jsonl", "wandb.json", "samples/", "tokenizer/",
)  # fmt: skip
_LAST = ("metrics.jsonl", "results.json", "run.json", "report.html")  # they tell of the others
_SLOWEST = 1e6  # bytes in a second, for the patience with a large file

Facts = list[int]  # size of a file and time of its last change in nanoseconds


def checkpoints_of(workdir: pathlib.Path) -> pathlib.Path | str:
    """Where the checkpoints of a run lie: in its workdir, or in the bucket it stands for.

    A run of an earlier version may have had them in a bucket by its config (train.checkpoints).
    """
    if url := _mark(workdir).get("address"):
        return f"{url}/{CHECKPOINTS_FOLDER}"
    try:
        stored = json.loads((workdir / _CONFIG).read_bytes())["train"]["checkpoints"]
    except (OSError, ValueError, KeyError, TypeError):
        stored = ""
    return stored or workdir / CHECKPOINTS_FOLDER


def fetched(url: str, *more: str) -> pathlib.Path:
    """A local folder with what a run in a bucket is read by, as it is now, and ``more`` files.

    Raises UserError if no run is there.
    """
    there = BucketWorkdir(url, "read")
    if not there.fetch(*more):
        raise UserError(
            f"{there.url} holds no {_CONFIG}, so that no run is there; check the address, or begin "
            "one with --config=FILE"
        )
    return there.folder


def put(url: str, path: pathlib.Path) -> str:
    """Brings one file of a run to its workdir in a bucket; its address there."""
    there = Address(url)
    with there.reaching("written"):
        there.store.write(path.name, path.read_bytes()).result(timeout=stores.PATIENCE_S)
    return f"{there.url}/{path.name}"


class BucketWorkdir(Address):
    """Its address and its local folder.

    Args:
      url: the address.
      kind: who uses the folder: "read", or "run" with a number for all processes but the first.
    """

    def __init__(self, url: str, kind: str = "run"):
        super().__init__(url)
        known = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = folders.cache() / "workdirs" / f"{known}.{kind}" / pathlib.Path(url).name
        self._sent: dict[str, Facts] = {}
        self._sending = threading.Lock()
        self._lease: Lease | None = None

    def take(self) -> None:
        """Makes it this command's, until `give_back`, and the local folder what is there.

        The caller holds the local folder. Raises UserError if another command has it.
        """
        mark = _mark(self.folder)
        lease = Lease(self, before=mark.get("lease", ""))
        before = lease.take()
        self._lease = lease
        if before and before == mark.get("lease"):  # the last session was here: nothing is newer
            self._sent = mark["sent"]
        else:
            self.fetch()
        self._remember()

    def give_back(self) -> None:
        """Lets the next command have it."""
        if self._lease is not None:
            self._lease.release()

    def check_held(self) -> None:
        """Raises Lost if another command has taken it over.

        Without a network nobody can say; then nothing can be committed either.
        """
        try:
            if self._lease is not None:
                self._lease.renew()
        except Lost:
            raise
        except UserError as error:
            logging.warning("%s", error)

    @property
    def lost(self) -> Lost | None:
        """The sentence to end with, once another command has taken it over."""
        return None if self._lease is None else self._lease.lost

    def read(self, name: str) -> bytes | None:
        """An object of the folder; None without it."""
        with self.reaching("read"):
            found = self.store.read(name).result(timeout=stores.PATIENCE_S)
            return found.value if found.state == "value" else None

    def fetch(self, *more: str) -> bool:
        """Makes the local folder what is there; False, and an empty folder, if no run is.

        Raises UserError if there is something, but no run.
        """
        with self.reaching("read"):
            store = self.store
            names = [*more, *(name for name in _FETCHED if not name.endswith("/"))]
            for part in (name for name in _FETCHED if name.endswith("/")):
                names += self._below(store, part)
            reads = {name: store.read(name) for name in names}
            found = {
                name: read.value
                for name, future in reads.items()
                if (read := future.result(timeout=stores.PATIENCE_S)).state == "value"
            }
        if _CONFIG not in found:
            self._refuse_foreign()
            found = {}
        for name in self._local():
            if name not in found:
                (self.folder / name).unlink(missing_ok=True)
        for name, content in found.items():
            files.write_atomically(self.folder / name, content)
        self._sent = {name: _facts(self.folder / name) for name in found}
        self._remember()
        return bool(found)

    def push(self) -> None:
        """Brings what has changed, what tells of other files after these.

        Raises UserError if that fails, or another command has taken the address over.
        """
        with self._sending:
            if self._lease is not None:
                self._lease.renew()
            with self.reaching("written"):
                store = self.store
                for name in sorted(self._local(), key=_order):
                    with contextlib.suppress(FileNotFoundError):  # gone since
                        self._send(store, name)
            self._remember()

    def _send(self, store: Any, name: str) -> None:
        path = self.folder / name
        facts = _facts(path)  # before it is read: what is written meanwhile is sent the next time
        if self._sent.get(name) == facts:
            return
        patience = stores.PATIENCE_S + facts[0] / _SLOWEST
        store.write(name, path.read_bytes()).result(timeout=patience)
        self._sent[name] = facts

    def _refuse_foreign(self) -> None:
        """Raises UserError if what is there is not of a run that has just begun."""
        with self.reaching("read"):
            others = [name for name in self.names() if not name.startswith((".", "LOCK"))]
        if others:
            raise UserError(
                f"{self.url} holds {min(others)} but no {_CONFIG}, so that it is no workdir; "
                "choose an empty place (one of train.checkpoints or train.mirror, which are gone, "
                "becomes a workdir as docs/operations.md says)"
            )

    def _below(self, store: Any, part: str) -> list[str]:
        import tensorstore as ts

        within = ts.KvStore.KeyRange(part, part[:-1] + "0")  # "0" comes after "/"
        return [name.decode() for name in store.list(within).result(timeout=stores.PATIENCE_S)]

    def _local(self) -> collections.abc.Iterator[str]:
        """The files that belong in the bucket."""
        for path in list(self.folder.rglob("*")):
            name = path.relative_to(self.folder)
            hidden = any(part.startswith(".") for part in name.parts) or path.suffix == ".tmp"
            if not hidden and name.parts[0] not in _STAYS and not path.is_symlink():
                if path.is_file():
                    yield name.as_posix()

    def _remember(self) -> None:
        token = "" if self._lease is None else self._lease.token
        mark = {"address": self.url, "lease": token, "sent": self._sent}
        files.write_atomically(self.folder / _MARK, json.dumps(mark))


def _order(name: str) -> tuple[bool, bool, str]:
    return name in _LAST, name != _CONFIG, name


def _facts(path: pathlib.Path) -> Facts:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _mark(folder: pathlib.Path) -> dict[str, Any]:
    """What a folder that stands for a bucket says of it; {} of any other."""
    try:
        return json.loads((folder / _MARK).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / _MARK} cannot be read ({error}); remove {folder}") from error
