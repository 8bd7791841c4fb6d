"""Where arrays live: a mesh of three axes and the rule from parameter path to partition.

``data`` and ``fsdp`` share the batch; ``fsdp`` also shares the parameters, the optimizer state
and the EMA; ``tensor`` shares the vocabulary dimension. Models know nothing of this.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
BATCH = P(("data", "fsdp"))

# The first pattern that is found in the path decides; entries are mesh axes per dimension from the
# left, "?" marks the dimension that fsdp may take. Arrays without a row (or not divisible) follow
# `_fsdp`: the largest divisible dimension, if the array is worth it.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embed/table$", ("tensor", "?")),
    (r"head/kernel$", ("?", "tensor")),
    (r"head/bias$", ("tensor",)),
)
SMALL = 2**16  # entries; smaller arrays are replicated


def make_mesh(shape: tuple[int, int, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of (data, fsdp, tensor) over ``devices`` of JAX (all by default)."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def partition(path: str, shape: tuple[int, ...], axis_sizes: Mapping[str, int]) -> P:
    """The partition of one array by its path, for example "params/blocks/qkv/kernel".

    ``axis_sizes`` is `Mesh.shape`.
    """
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(axes) == len(shape):
            axes = ["fsdp" if axis == "?" else axis for axis in axes]
            fits = [
                a if a and n % axis_sizes[a] == 0 else None
                for a, n in zip(axes, shape, strict=True)
            ]
            return P(*fits)
    return _fsdp(shape, axis_sizes["fsdp"])


def _fsdp(shape: tuple[int, ...], size: int) -> P:
    if size == 1 or int(np.prod(shape)) < SMALL:
        return P()
    for axis in sorted(range(len(shape)), key=lambda a: -shape[a]):
        if shape[axis] % size == 0:
            return P(*[None] * axis, "fsdp")
    return P()


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf (array or shape) of ``tree``, by the rules above."""

    def one(path, leaf):
        name = "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
        )
        return NamedSharding(mesh, partition(name, leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp."""
    return NamedSharding(mesh, BATCH)


def batch_devices(mesh: Mesh) -> int:
    """How many groups of devices share a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def place(tree: Any, where: Any) -> Any:
    """Arrays that every process holds, as arrays of the mesh with these shardings."""
    if jax.process_count() == 1:
        return jax.device_put(tree, where)

    def one(leaf, to):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # on the mesh already
            return jax.jit(lambda x: x, out_shardings=to)(leaf)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, to, lambda index: host[index])

    return jax.tree.map(one, tree, where)


def global_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """This process's rows as its part of the global batch."""
    with jax.transfer_guard("allow"):  # meant, though JAX calls it implicit with several processes
        return jax.make_array_from_process_local_data(batch_sharding(mesh), rows)
