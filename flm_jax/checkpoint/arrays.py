"""One item of a step: what it holds, whether that fits, and reading it onto any mesh."""

import os
import pathlib
from typing import Any

import jax
from absl import logging

from flm_jax.errors import UserError


def compare(folder: pathlib.Path, tree: Any, stored: dict[str, tuple]) -> None:
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


def stored_arrays(folder: pathlib.Path) -> dict[str, tuple]:
    ocp = import_orbax()
    return _leaves(ocp.StandardCheckpointHandler().metadata(_path(folder)).tree)


def read_item(folder: pathlib.Path, tree: Any) -> Any:
    """Reads one item in the structure and the shardings of ``tree``."""
    ocp = import_orbax()
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(leaf):
        sharding = getattr(leaf, "sharding", None) or first
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        return reader.restore(folder, args=ocp.args.StandardRestore(jax.tree.map(target, tree)))


def _path(folder: pathlib.Path):
    from etils import epath

    return epath.Path(folder)


def import_orbax():
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
