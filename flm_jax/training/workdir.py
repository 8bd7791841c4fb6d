"""Whether a workdir may be used, making it this run's, and its programs of earlier sessions."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints
from flm_jax.errors import UserError
from flm_jax.host import compiled, distributed, files, folders, locks
from flm_jax.inference import CHECKPOINTS_FOLDER, checkpoints_of, read_config
from flm_jax.training import dtype, optim

COMPILED_FOLDER = "compiled"
LOCK = ".lock"


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a workdir for this job: inside it anything may be written there, outside nothing.

    Of several processes the first holds it for all. A folder that is made for the lock goes again
    if nothing else has come into it, so that a mistake leaves nothing behind.

    Raises UserError if another job has it, which then notices nothing, or if it cannot be made.
    """
    if distributed.process_id() != 0:
        yield
        return
    made = not os.path.exists(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / LOCK, "a")
    except OSError as error:
        raise UserError(
            f"cannot write to --workdir={workdir}: {error.strerror}; choose another folder"
        ) from error
    with file:
        if not locks.take(file, f"let no other command train in {workdir}"):
            raise UserError(
                f"another process is training in {workdir}; wait for it, or choose another "
                "--workdir"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if made and os.listdir(workdir) == [LOCK]:
                    (workdir / LOCK).unlink()
                    workdir.rmdir()


def check(config: config_lib.Config, workdir: pathlib.Path) -> config_lib.Config:
    """Refuses a workdir that holds a checkpoint of another config, and a bucket of no use.

    Returns the config, where model.dtype=auto has become the type of the run that it goes on with.
    Without a checkpoint there is nothing to protect: a run that failed early, for example because
    of a wrong path, may be mended in the same workdir.
    """
    place = checkpoints_of(config, workdir)
    checkpoints = Checkpoints(place)
    if checkpoints.bucket:
        checkpoints.bucket.check()
    before = {workdir / CHECKPOINTS_FOLDER, _stored_place(workdir)} - {None}
    if any(Checkpoints(where).latest_step() is not None for where in before):
        stored = read_config(workdir)
        config = dtype.as_stored(config, stored)
        check_same(config, stored, f"{workdir} ", "choose another --workdir")
    if checkpoints.bucket and (owner := checkpoints.bucket.owner()) is not None:
        if checkpoints.latest_step() is not None:
            stored = config_lib.from_json(owner)
            # The place itself may have been copied, or be reached under another name.
            moved = dataclasses.replace(stored.train, checkpoints=place)
            stored = dataclasses.replace(stored, train=moved)
            config = dtype.as_stored(config, stored)
            check_same(config, stored, f"train.checkpoints={place} ", "choose another place")
    return config


def _stored_place(workdir: pathlib.Path) -> pathlib.Path | str | None:
    """Where the checkpoints of the workdir's last session are; None if nobody can say."""
    try:
        return checkpoints_of(read_config(workdir), workdir)
    except UserError:
        return None


def check_same(config: config_lib.Config, stored: config_lib.Config, what: str, else_: str) -> None:
    """Raises UserError if two configs differ in what decides the numbers of a training step."""
    differences = config_lib.differences(stored, config)
    hangs = config.optim.schedule not in optim.CAN_GO_ON
    if hangs and stored.train.steps != config.train.steps:
        # The learning rate of every step hangs on the last one.
        differences.append(f"train.steps: {stored.train.steps} -> {config.train.steps}")
    if differences:
        listed = "\n".join(differences)
        raise UserError(f"{what}belongs to a run with another config; {else_}, or undo:\n{listed}")


def claim(config: config_lib.Config, workdir: pathlib.Path) -> None:
    """Makes the workdir and writes its config; all processes must find what process 0 wrote."""
    if distributed.is_main():
        files.write_atomically(workdir / "config.json", config_lib.to_json(config))
        if bucket := Checkpoints(checkpoints_of(config, workdir)).bucket:
            bucket.claim(config_lib.to_json(config))
    distributed.meet("workdir")
    if distributed.is_main():
        return
    try:
        same = (workdir / "config.json").read_text() == config_lib.to_json(config)
    except OSError:
        same = False
    if not same:
        raise UserError(
            f"--workdir={workdir} is not the folder that process 0 has made; give a folder on "
            "storage that all machines share, and the same command everywhere"
        )


@contextlib.contextmanager
def compiled_programs(choice: str, workdir: pathlib.Path) -> Iterator[None]:
    """Inside it, compiled programs are kept for the next session (train.compilation_cache).

    A folder that JAX was told of before, by JAX_COMPILATION_CACHE_DIR or in Python, stays.
    """
    folder = workdir / COMPILED_FOLDER if choice == "workdir" else folders.expanded(choice)
    with contextlib.nullcontext() if choice == "off" else compiled.kept_in(folder):
        yield
