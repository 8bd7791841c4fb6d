"""One item of a step: what it holds, whether that fits, and reading it onto any mesh."""

import functools
import glob
import logging
import os
import pathlib
from typing import Any

import jax
from absl import logging as absl_logging

from flm_jax.checkpoint.manifest import Damaged
from flm_jax.errors import UserError
from flm_jax.flow.trees import Tree

Leaves = dict[str, tuple[tuple[int, ...], str]]  # path "a.b.0" to (shape, dtype name)


def compare(folder: pathlib.Path, tree: Tree, stored: Leaves) -> None:
    """Raises UserError unless names, shapes and dtypes of a tree are those that are stored."""
    wanted = leaves(tree)
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


def leaves(tree: Tree) -> Leaves:
    """What a tree holds, by path; the same for a tuple, list, dataclass or dict."""
    found: Leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # A field of a NamedTuple or dataclass becomes a dict key in the file, a tuple a list.
        keys = [getattr(k, "name", getattr(k, "idx", getattr(k, "key", k))) for k in path]
        found[".".join(map(str, keys))] = (tuple(leaf.shape), str(leaf.dtype))
    return found


def stored_arrays(folder: os.PathLike) -> Leaves:
    """What an item holds, as `leaves` says it; each array is opened, none is read."""
    ocp = import_orbax()
    return leaves(ocp.StandardCheckpointHandler().metadata(literal(folder)).tree)


def read_back(folder: os.PathLike, promised: dict[str, Leaves]) -> None:
    """Raises Damaged unless the items of a step, just written, hold what ``promised`` says.

    orbax may lose arrays and call the save a success, and hashes of what is there do not tell.
    """
    for item, wanted in promised.items():
        stored = stored_arrays(literal(folder) / item)
        for name, facts in wanted.items():
            if name not in stored:
                raise Damaged(f"what was written of {item} has no array {name}")
            if stored[name] != facts:
                raise Damaged(f"{item} was written with {name} as {stored[name]}, not {facts}")


def read_item(folder: pathlib.Path, tree: Tree) -> Tree:
    """Reads one item in the structure and the shardings of ``tree``."""
    ocp = import_orbax()
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf):
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        wanted = ocp.args.StandardRestore(jax.tree.map(target, tree))
        return reader.restore(literal(folder), args=wanted)


def literal(folder: str | os.PathLike) -> Any:
    """A folder as orbax takes it (an etils.epath.Path), in which brackets are brackets."""
    return _literal_path()(folder)


@functools.cache
def _literal_path() -> type:
    from etils import epath

    class LiteralPath(type(epath.Path())):
        """etils puts a folder's own name unescaped into the pattern of a `glob`.

        In run[1] orbax then finds nothing of what its processes have written, and commits a
        checkpoint without arrays.
        """

        def glob(self, pattern):
            return map(type(self), epath.Path(glob.escape(os.fspath(self))).glob(pattern))

    return LiteralPath


# Warnings of orbax about what is meant to be so: steps without a metric, saves that are waited for.
_MEANT = ("Requested `tracked_metric`", "Waiting for previous save")


def import_orbax():
    """Imports orbax (a second) and keeps all but its warnings off the user's screen.

    Its errors come as exceptions as well, which become sentences here.
    """
    import orbax.checkpoint as ocp

    logger = absl_logging.get_absl_logger()
    if _is_for_the_user not in logger.filters:
        logger.addFilter(_is_for_the_user)
    return ocp


def _is_for_the_user(record: logging.LogRecord) -> bool:
    if f"{os.sep}orbax{os.sep}" not in record.pathname:
        return True
    return record.levelno == logging.WARNING and not str(record.msg).startswith(_MEANT)
