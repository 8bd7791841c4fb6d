"""The checkpoints of one run: save in the background, restore the newest good one."""

import collections.abc
import json
import math
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import jax
from absl import logging

from flm_jax.checkpoint import arrays, manifest
from flm_jax.checkpoint.bucket import Bucket
from flm_jax.checkpoint.folder import Folder
from flm_jax.errors import UserError
from flm_jax.flow.trees import Tree

if TYPE_CHECKING:
    import orbax.checkpoint

Meta = dict[str, Any]  # what JSON can hold, beside the arrays of a step

_META = "meta"
_FULL = "No space left on device"


class NoGoodStep(UserError):
    """There is nothing that could be restored."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: where the steps lie, a folder or gs:// or s3://BUCKET/FOLDER; made by the first
        `save`.
      keep_latest: newest steps kept, at least 1.
      keep_best: steps with the lowest metric kept besides them.
      before_commit: of steps in a bucket (`Bucket`).

    Reading touches nothing, so that others may look into the folder of a run. The first `save`
    removes what a killed save left behind and sets steps found damaged aside.

    Raises UserError for a name that is not UTF-8, in which nothing could be saved.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        keep_latest: int = 2,
        keep_best: int = 1,
        before_commit: collections.abc.Callable[[], None] | None = None,
    ):
        _check_name(str(folder))
        self.bucket = Bucket(str(folder), before_commit) if "://" in str(folder) else None
        self._place: Bucket | Folder = self.bucket or Folder(folder)
        self._keep_latest = keep_latest
        self._keep_best = keep_best
        self._manager: orbax.checkpoint.CheckpointManager | None = None
        self._saving: int | None = None
        self._promised: dict[str, arrays.Leaves] = {}  # what the step being saved must hold
        self._unsaved: UserError | None = None  # why the last save did not even begin
        self._damaged: set[int] = set()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    @property
    def folder(self) -> pathlib.Path:
        """Where the steps lie: a pathlib.Path, or etils' equivalent for a bucket."""
        return self._place.path

    def steps(self) -> list[int]:
        """Committed steps, oldest first; a step being saved is not among them.

        Raises UserError if a bucket cannot be reached.
        """
        return self._place.steps()

    def latest_step(self) -> int | None:
        """The newest committed step, unverified; None if there is none."""
        return max(self.steps(), default=None)

    def newest_known(self) -> int | None:
        """`latest_step`, or None where a bucket cannot be reached: to be said after a failure."""
        try:
            return self.latest_step()
        except UserError:
            return None

    def save(
        self,
        step: int,
        items: collections.abc.Mapping[str, Tree],
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

        A save that could not be written, this one or the one before, is a loud warning here: the
        older steps are intact and the next save starts afresh. `wait`, `close` and ``wait=True``
        raise UserError instead, because after them nobody would try again.
        """
        ocp = arrays.import_orbax()
        try:
            self.wait()
        except UserError as error:
            _warn_loudly(error)
        metrics = {"metric": float(metric)} if metric is not None and _finite(metric) else None
        saved = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args = ocp.args.Composite(**saved, **{_META: ocp.args.JsonSave(dict(meta))})
        try:
            if step not in self._damaged and step in self.steps():
                return False
            self._saving = step
            self._promised = {name: arrays.leaves(tree) for name, tree in items.items()}
            self._set_damaged_aside()
            if self._manager is None:
                self._manager = self._open_manager()
            self._manager.save(step, args=args, metrics=metrics, force=True)
        except Exception as error:  # tensorstore has exceptions of its own for a full disk
            self._saving = step
            self._unsaved = self._failed(error)
            if not wait:
                _warn_loudly(self._unsaved)
        if wait:
            self.wait()
        return self._unsaved is None

    def wait(self) -> None:
        """Returns when the save in progress is committed; raises UserError if it failed."""
        if self._unsaved is not None:
            error, self._unsaved = self._unsaved, None
            raise error
        if self._manager is None or self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # whatever the background thread met
            raise self._failed(error) from error
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
        self, abstract_items: collections.abc.Mapping[str, Tree], step: int | None = None
    ) -> tuple[int, dict[str, Tree], Meta]:
        """Returns (step, items, meta) of the newest good step, or of the given one.

        Args:
          abstract_items: name to pytree of arrays or jax.ShapeDtypeStruct with the shardings
            wanted (none: the first device). Only these items are read and verified.
          step: restore this step or fail.

        A damaged step is skipped with a warning that says why; one that a training deletes while it
        is read gives way to those that have come since. Raises UserError if no step is good, or if
        shapes, dtypes or names differ from what is asked for.
        """
        reasons: dict[int, str] = {}
        while True:
            known = self._candidates(step)
            candidate = next((n for n in known if n not in reasons), None)
            if candidate is None:
                raise NoGoodStep(self._no_good_step(reasons))
            try:
                items, meta = self._restore_step(candidate, abstract_items)
                return candidate, items, meta
            except Exception as error:
                reasons[candidate] = str(error)
                now = self.steps()
                # Steps are deleted file by file, after a newer one is committed.
                if candidate not in now or step is None and max(now) > known[0]:
                    logging.info("checkpoint %s was deleted while it was read", candidate)
                    continue
                if not isinstance(error, manifest.Damaged):
                    raise
                self._damaged.add(candidate)
                if step is None:
                    logging.warning("checkpoint %s is damaged, skipped: %s", candidate, error)

    def restore_meta(self, step: int | None = None) -> tuple[int, Meta]:
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
            raise NoGoodStep(
                f"there is no checkpoint in {self.folder}; train first or check the path"
            )
        if step is None:
            return steps[::-1]
        if step not in steps:
            have = ", ".join(map(str, steps))
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {have}")
        return [step]

    def _no_good_step(self, reasons: dict[int, str]) -> str:
        listed = "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())
        return (
            f"no checkpoint in {self.folder} can be restored ({listed}); "
            "restore a backup, or start over in another folder"
        )

    def _restore_step(
        self, step: int, abstract_items: collections.abc.Mapping[str, Tree]
    ) -> tuple[dict[str, Tree], Meta]:
        folder = self.folder / str(step)
        hashed = self._place.verify(step, [*abstract_items, _META])
        if not hashed:
            logging.warning(
                "checkpoint %s has no %s (older or foreign): its bytes are not verified",
                step,
                manifest.MANIFEST,
            )
        try:
            held = self.item_names(step)
            stored = {n: arrays.stored_arrays(folder / n) for n in abstract_items if n in held}
        except Exception as error:
            if self.bucket:
                raise self._unreadable(step, error) from error
            raise manifest.Damaged(
                f"its description cannot be read: {_first_line(error)}"
            ) from error
        for name, tree in abstract_items.items():
            if name not in held:
                have = ", ".join(held) or "no arrays"
                raise UserError(f"checkpoint {folder} has no item {name!r}; it holds {have}")
            arrays.compare(folder / name, tree, stored[name])
        try:
            meta = json.loads((folder / _META / "metadata").read_text())
            items = {
                name: arrays.read_item(folder / name, tree) for name, tree in abstract_items.items()
            }
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            if self.bucket:
                raise self._unreadable(step, error) from error
            if hashed:  # the bytes are as written, so falling back would hide another problem
                raise
            raise manifest.Damaged(_first_line(error)) from error
        return items, meta

    def _unreadable(self, step: int, error: Exception) -> UserError:
        """The bytes are as written, so that the way to them is the trouble, not the step."""
        return UserError(
            f"checkpoint {step} in {self.folder} is whole but could not be read "
            f"({_first_line(error)}); the same command tries again"
        )

    def _open_manager(self) -> "orbax.checkpoint.CheckpointManager":
        ocp = arrays.import_orbax()
        from orbax.checkpoint import checkpoint_managers

        # Not max_to_keep with best_fn: that deletes the latest step when it is not among the best.
        policies: list[checkpoint_managers.PreservationPolicy]
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
            **self._place.options(
                lambda: self._saving, lambda folder: arrays.read_back(folder, self._promised)
            ),
        )
        if jax.process_index() == 0:
            self._place.before_saving()
        return ocp.CheckpointManager(arrays.literal(self.folder), options=options)

    def _set_damaged_aside(self) -> None:
        """Renames steps that `restore` found damaged, so that they count for no keep policy."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in self._damaged:
                aside = self._place.set_aside(step)
                logging.warning("damaged checkpoint %s is now %s; delete it at will", step, aside)
        self._damaged.clear()
        if self._manager is not None:
            self._manager.reload()

    def _failed(self, error: Exception) -> UserError:
        """Makes ready for the next save; returns the sentence about this one."""
        step, self._saving = self._saving, None
        if self._manager is not None:  # its list of steps is wrong now; the next save starts anew
            manager, self._manager = self._manager, None
            try:
                manager.close()
            except Exception:
                logging.debug("closing orbax after a failed save failed too", exc_info=True)
        try:
            older = self.latest_step()
            kept = "there is no older one" if older is None else f"step {older} is intact"
        except UserError:
            kept = "the older ones cannot be reached now"
        return UserError(
            f"the checkpoint of step {step} could not be written to {self.folder} "
            f"({_first_line(error)}); {kept}; free space there, or check that it is writable"
        )


def _check_name(folder: str) -> None:
    """The libraries that write arrays take names as UTF-8; Python may have read others."""
    try:
        folder.encode("utf-8")
    except UnicodeEncodeError:
        shown = os.fsencode(folder).decode("utf-8", "replace")
        raise UserError(
            f"checkpoints cannot be kept in {shown}, whose name Python reads as "
            f"{sys.getfilesystemencoding()} and not as UTF-8; set PYTHONUTF8=1, or choose a name "
            "of ASCII letters"
        ) from None


def _warn_loudly(error: UserError) -> None:
    logging.error("CHECKPOINT NOT SAVED: %s; training goes on and the next save tries again", error)


def _metric(metrics: collections.abc.Mapping[str, float]) -> float:
    return metrics["metric"]


def _finite(metric: float) -> bool:
    return math.isfinite(float(metric))


def _first_line(error: BaseException) -> str:
    if _FULL in str(error):  # tensorstore says it at the end of a long line
        return f"{type(error).__name__}: {_FULL}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
