"""Checkpoints one can trust: asynchronous, atomic, hashed, restored onto any mesh.

The only module that knows orbax, which it imports when first needed. A step is a folder

    FOLDER/1200/{params,opt_state,ema,...}/   one orbax item each, so that any can be read alone
    FOLDER/1200/meta/                         JSON: config, position in the data, ...
    FOLDER/1200/MANIFEST.json                 size and SHA-256 of every file of the items

The manifest is written while the folder still has its temporary name, so orbax's rename commits
data and manifest together: a step without one was made by someone else or by an older version.
orbax itself checks no hashes and restores flipped bytes as wrong numbers.
"""

import collections.abc
import hashlib
import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import tqdm
from absl import logging

from flm_jax.errors import UserError

MANIFEST = "MANIFEST.json"
_META = "meta"
_TEMPORARY = ".orbax-checkpoint-tmp"


class Damaged(Exception):
    """A step that cannot be trusted; the message names the file and what is wrong with it."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where the steps lie; made by the first `save`.
      keep_latest: newest steps kept, at least 1.
      keep_best: steps with the lowest metric kept besides them.

    Reading touches nothing, so that others may look into the folder of a run. The first `save`
    removes what a killed save left behind and sets steps found damaged aside.
    """

    def __init__(self, folder: str | os.PathLike, keep_latest: int = 2, keep_best: int = 1):
        if "://" in str(folder):
            raise UserError(f"checkpoints go to a local folder, not to {folder}; copy them later")
        self.folder = pathlib.Path(folder).absolute()  # orbax refuses relative paths
        self._keep_latest = keep_latest
        self._keep_best = keep_best
        self._manager = None
        self._saving: int | None = None
        self._damaged: set[int] = set()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def steps(self) -> list[int]:
        """Committed steps, oldest first; a step being saved is not among them."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_step(self) -> int | None:
        """The newest committed step, unverified; None if there is none."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        items: collections.abc.Mapping[str, Any],
        meta: collections.abc.Mapping[str, Any],
        metric: float | None = None,
        wait: bool = False,
    ) -> bool:
        """Saves in the background; every process calls it. False if the step is there already.

        Args:
          items: name to pytree of arrays, for example params, opt_state, ema. The arrays may be
            donated as soon as this returns.
          meta: what JSON can hold.
          metric: the lower the better, for ``keep_best``; None or not finite = not a candidate.
          wait: return only when the step is committed.

        Raises UserError if this save or the one before it could not be written.
        """
        ocp = _orbax()
        self.wait()
        if step in self.steps() and step not in self._damaged:
            return False
        metrics = {"metric": float(metric)} if metric is not None and _finite(metric) else None
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args[_META] = ocp.args.JsonSave(dict(meta))
        self._saving = step
        try:
            self._set_damaged_aside()
            if self._manager is None:
                self._manager = self._open_manager()
            self._manager.save(step, args=ocp.args.Composite(**args), metrics=metrics, force=True)
        except OSError as error:
            self._fail(error)
        if wait:
            self.wait()
        return True

    def wait(self) -> None:
        """Returns when the save in progress is committed; raises UserError if it failed."""
        if self._manager is None or self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # whatever the background thread met
            self._fail(error)
        self._saving = None

    def close(self) -> None:
        """Waits for the save in progress and frees orbax's threads."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                self._manager.close()
                self._manager = None

    def restore(
        self, abstract_items: collections.abc.Mapping[str, Any], step: int | None = None
    ) -> tuple[int, dict[str, Any], dict[str, Any]]:
        """Returns (step, items, meta) of the newest good step, or of the given one.

        Args:
          abstract_items: name to pytree of arrays or jax.ShapeDtypeStruct with the shardings
            wanted (none: the first device). Only these items are read and verified.
          step: restore this step or fail.

        A damaged step is skipped with a warning that says why. Raises UserError if no step is
        good, or if shapes, dtypes or names differ from what is asked for.
        """
        reasons = []
        for candidate in self._candidates(step):
            try:
                items, meta = self._restore_step(candidate, abstract_items)
            except Damaged as error:
                reasons.append(f"step {candidate}: {error}")
                self._damaged.add(candidate)
                if step is None:
                    logging.warning("checkpoint %s is damaged, skipped: %s", candidate, error)
                continue
            return candidate, items, meta
        raise UserError(self._no_good_step(reasons))

    def restore_meta(self, step: int | None = None) -> tuple[int, dict[str, Any]]:
        """Returns (step, meta) like `restore`, reading no arrays."""
        found, _, meta = self.restore({}, step)
        return found, meta

    def item_names(self, step: int) -> list[str]:
        """Names of the array items that a step holds."""
        folder = self.folder / str(step)
        return sorted(p.name for p in folder.iterdir() if (p / "_METADATA").is_file())

    def _candidates(self, step: int | None) -> list[int]:
        steps = self.steps()
        if not steps:
            raise UserError(
                f"there is no checkpoint in {self.folder}; train first or check the path"
            )
        if step is None:
            return steps[::-1]
        if step not in steps:
            have = ", ".join(map(str, steps))
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {have}")
        return [step]

    def _no_good_step(self, reasons: list[str]) -> str:
        return (
            f"no checkpoint in {self.folder} can be restored ({'; '.join(reasons)}); "
            "restore a backup, or start over in another folder"
        )

    def _restore_step(self, step: int, abstract_items: Any) -> tuple[dict, dict]:
        folder = self.folder / str(step)
        hashed = verify(folder, [*abstract_items, _META])
        if not hashed:
            logging.warning(
                "checkpoint %s has no %s (older or foreign): its bytes are not verified",
                step,
                MANIFEST,
            )
        for name in abstract_items:
            if name not in self.item_names(step):
                held = ", ".join(self.item_names(step)) or "no arrays"
                raise UserError(f"checkpoint {folder} has no item {name!r}; it holds {held}")
        try:
            stored = {name: _stored_arrays(folder / name) for name in abstract_items}
        except Exception as error:
            raise Damaged(f"its description cannot be read: {_first_line(error)}") from error
        for name, tree in abstract_items.items():
            _compare(folder / name, tree, stored[name])
        try:
            meta = json.loads((folder / _META / "metadata").read_text())
            items = {name: _read_item(folder / name, tree) for name, tree in abstract_items.items()}
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            if hashed:  # the bytes are as written, so falling back would hide another problem
                raise
            raise Damaged(_first_line(error)) from error
        return items, meta

    def _open_manager(self):
        ocp = _orbax()
        from orbax.checkpoint import checkpoint_managers

        # Not max_to_keep with best_fn: that deletes the latest step when it is not among the best.
        policies = [checkpoint_managers.LatestN(self._keep_latest)]
        if self._keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_metric,
                    reverse=True,
                    n=self._keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            best_fn=_metric,
            best_mode="min",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._before_commit),
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def _before_commit(self) -> None:
        """orbax calls this when all data is written, just before the rename."""
        if jax.process_index() == 0:
            write_manifest(self.folder / f"{self._saving}{_TEMPORARY}")

    def _set_damaged_aside(self) -> None:
        """Renames steps that `restore` found damaged, so that they count for no keep policy."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in self._damaged:
                aside = self.folder / f"damaged-{step}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(step)).rename(aside)
                logging.warning("damaged checkpoint %s is now %s; delete it at will", step, aside)
        self._damaged.clear()
        if self._manager is not None:
            self._manager.reload()

    def _fail(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        if self._manager is not None:  # its list of steps is wrong now; the next save starts anew
            manager, self._manager = self._manager, None
            try:
                manager.close()
            except Exception:
                logging.debug("closing orbax after a failed save failed too", exc_info=True)
        older = self.latest_step()
        kept = "there is no older one" if older is None else f"step {older} is intact"
        raise UserError(
            f"the checkpoint of step {step} could not be written to {self.folder} "
            f"({_first_line(error)}); {kept}"
        ) from error


def write_manifest(folder: pathlib.Path) -> None:
    """Records size and SHA-256 of all files in the item folders of one step, atomically."""
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, _sha256(path)]
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    temporary = folder / (MANIFEST + ".tmp")
    with temporary.open("w") as file:
        json.dump({"version": 1, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)


def verify(folder: pathlib.Path, items: collections.abc.Collection[str] | None = None) -> bool:
    """Compares one step with its manifest; False if it has none.

    Args:
      items: look only at these item folders; None = at all.

    Raises Damaged that names the first bad file.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())["files"]
        wanted = [
            (folder / name, int(size), str(digest))
            for name, (size, digest) in manifest.items()
            if items is None or name.partition("/")[0] in items
        ]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
    for path, size, _ in wanted:  # cheap, and finds a truncated file before any hashing
        if not path.is_file():
            raise Damaged(f"{path.relative_to(folder)} is missing")
        if path.stat().st_size != size:
            raise Damaged(
                f"{path.relative_to(folder)} has {path.stat().st_size} bytes, should have {size}"
            )
    total = sum(size for _, size, _ in wanted)
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="verify", delay=2) as bar:
        for path, size, digest in wanted:
            if _sha256(path) != digest:
                raise Damaged(f"{path.relative_to(folder)} has changed since it was written")
            bar.update(size)
    return True


def _compare(folder: pathlib.Path, tree: Any, stored: dict[str, tuple]) -> None:
    """Raises UserError unless names, shapes and dtypes of a tree are those that are stored."""
    wanted = _leaves(tree)
    start = f"checkpoint {folder} does not fit this config:"
    for name, (shape, dtype) in wanted.items():
        if name not in stored:
            raise UserError(f"{start} it has no array {name} {shape}")
        if stored[name][0] != shape:
            raise UserError(f"{start} {name} is {stored[name][0]} there but {shape} here")
        if stored[name][1] != dtype:
            raise UserError(f"{start} {name} is {stored[name][1]} there but {dtype} here")
    extra = [name for name in stored if name not in wanted]
    if extra:
        raise UserError(f"{start} its array {extra[0]} {stored[extra[0]][0]} is unknown here")


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path "a.b.0" to (shape, dtype name); the same for a tuple, list, dataclass or dict."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # A field of a NamedTuple or dataclass becomes a dict key in the file, a tuple a list.
        keys = [getattr(k, "name", getattr(k, "idx", getattr(k, "key", k))) for k in path]
        leaves[".".join(map(str, keys))] = (tuple(leaf.shape), str(leaf.dtype))
    return leaves


def _stored_arrays(folder: pathlib.Path) -> dict[str, tuple]:
    ocp = _orbax()
    return _leaves(ocp.StandardCheckpointHandler().metadata(_path(folder)).tree)


def _read_item(folder: pathlib.Path, tree: Any) -> Any:
    """Reads one item in the structure and the shardings of ``tree``."""
    ocp = _orbax()
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf):
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        return reader.restore(folder, args=ocp.args.StandardRestore(jax.tree.map(target, tree)))


def _path(folder: pathlib.Path):
    from etils import epath

    return epath.Path(folder)


def _orbax():
    """Imports orbax (a second) and keeps its log lines off the user's screen.

    It reports trouble by exceptions as well, which become sentences here.
    """
    import orbax.checkpoint as ocp

    logger = logging.get_absl_logger()
    if _is_ours not in logger.filters:
        logger.addFilter(_is_ours)
    return ocp


def _is_ours(record: Any) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _metric(metrics: Any) -> float:
    return metrics["metric"]


def _finite(metric: float) -> bool:
    return math.isfinite(float(metric))


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
