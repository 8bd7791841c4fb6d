"""Whether a workdir may be used, making it this run's, and its programs of earlier sessions.

A workdir is a folder, or an address in a bucket that a local folder stands for.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from absl import logging

from flm_jax import config as config_lib
from flm_jax.checkpoint import CHECKPOINTS_FOLDER, BucketWorkdir, Checkpoints, checkpoints_of
from flm_jax.errors import UserError
from flm_jax.host import compiled, distributed, files, folders, locks
from flm_jax.inference import read_config
from flm_jax.training import dtype, optim

COMPILED_FOLDER = "compiled"
LOCK = ".lock"

Opened = tuple[pathlib.Path, BucketWorkdir | None]


@contextlib.contextmanager
def opened(workdir: str | os.PathLike) -> Iterator[Opened]:
    """Holds a workdir for this job; gives its local folder, and what brings that to a bucket.

    What is in the folder at the end, orderly or not, comes to the bucket.

    Raises UserError as `locked`, and where the bucket cannot be used; Lost when another command
    has taken it over.
    """
    if "://" not in str(workdir):
        folder = pathlib.Path(workdir)
        with locked(folder):
            yield folder, None
        return
    process = distributed.process_id()
    bucket = BucketWorkdir(str(workdir), f"run{process or ''}")
    bucket.check()
    with locked(bucket.folder, bucket.url):
        if process:
            bucket.fetch()
        else:
            bucket.take()
        try:
            yield bucket.folder, bucket
        except BaseException:
            if bucket.lost is not None:
                raise bucket.lost from None
            try:
                bucket.push()
            except UserError as error:  # the exception matters more
                logging.error("NOT ALL OF %s IS IN THE BUCKET: %s", bucket.folder, error)
            raise
        else:
            bucket.push()
        finally:
            bucket.give_back()


@contextlib.contextmanager
def locked(workdir: pathlib.Path, name: str = "") -> Iterator[None]:
    """Holds a workdir for this job: inside it anything may be written there, outside nothing.

    Of several processes the first holds it for all. A folder that is made for the lock goes again
    if nothing else has come into it, so that a mistake leaves nothing behind.

    Args:
      name: what people call it, if that is not its path.

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
                f"another process is training in {name or workdir}; wait for it, or choose another "
                "--workdir"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if made and os.listdir(workdir) == [LOCK]:
                    (workdir / LOCK).unlink()
                    workdir.rmdir()


def check(config: config_lib.Config, workdir: pathlib.Path, name: str = "") -> config_lib.Config:
    """Refuses a workdir that holds a checkpoint of another config; ``name``: as in `locked`.

    Returns the config, where model.dtype=auto has become the type of the run that it goes on with.
    Without a checkpoint there is nothing to protect: a run that failed early, for example because
    of a wrong path, may be mended in the same workdir.
    """
    place = checkpoints_of(workdir)
    if place not in (workdir / CHECKPOINTS_FOLDER, f"{name}/{CHECKPOINTS_FOLDER}"):
        raise UserError(
            f"{workdir} has its checkpoints in {place}; give the folder above that as --workdir "
            "(a place of train.checkpoints, which is gone, becomes one as docs/operations.md says)"
        )
    if Checkpoints(place).latest_step() is None:
        return config
    stored = read_config(workdir)
    config = dtype.as_stored(config, stored)
    check_same(config, stored, f"{name or workdir} ", "choose another --workdir")
    return config


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


def claim(
    config: config_lib.Config, workdir: pathlib.Path, bucket: BucketWorkdir | None = None
) -> None:
    """Makes the workdir and writes its config; all processes must find what process 0 wrote."""
    path = workdir / "config.json"
    if distributed.is_main():
        files.write_atomically(path, config_lib.to_json(config))
        if bucket is not None:
            bucket.push()
    distributed.meet("workdir")
    if distributed.is_main():
        return
    try:
        content = path.read_bytes() if bucket is None else bucket.read(path.name)
    except OSError:
        content = None
    if content != config_lib.to_json(config).encode():
        place = workdir if bucket is None else bucket.url
        raise UserError(
            f"--workdir={place} is not the folder that process 0 has made; give a folder on "
            "storage that all machines share, or in a bucket, and the same command everywhere"
        )


@contextlib.contextmanager
def compiled_programs(choice: str, workdir: pathlib.Path) -> Iterator[None]:
    """Inside it, compiled programs are kept for the next session (train.compilation_cache).

    A folder that JAX was told of before, by JAX_COMPILATION_CACHE_DIR or in Python, stays.
    """
    folder = workdir / COMPILED_FOLDER if choice == "workdir" else folders.expanded(choice)
    with contextlib.nullcontext() if choice == "off" else compiled.kept_in(folder):
        yield
