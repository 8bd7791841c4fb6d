"""Where arrays live: a mesh of three axes and the rule from parameter path to partition.

``data`` and ``fsdp`` share the batch; ``fsdp`` also shares the parameters, the optimizer state
and the EMA; ``tensor`` shares the vocabulary dimension. Models know nothing of this.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import linear_call
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any  # arrays or shapes in dicts and classes

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
    """A mesh of (data, fsdp, tensor) over ``devices`` of JAX (all by default).

    An axis may take a part of a physical one, as tensor=2 of 4 x 4 x 4 chips does.
    """
    options = {"axis_types": (AxisType.Auto,) * 3}
    try:
        return jax.make_mesh(shape, AXES, devices=devices, **options)
    except NotImplementedError:  # it splits no physical axis
        found = list(jax.devices() if devices is None else devices)[: math.prod(shape)]
        placed = mesh_utils.create_device_mesh(shape, found, allow_split_physical_axes=True)
        return Mesh(placed, AXES, **options)


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
        return NamedSharding(mesh, partition(_name(path), leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(one, tree)


def _name(path: tuple) -> str:
    """ "params/blocks/qkv/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


@dataclasses.dataclass(frozen=True)
class Gather:
    """Parameters that ``fsdp`` shares, brought together where they are used; see `__call__`.

    Without it the compiler may leave them where they are and share the sums instead: then every
    device holds the rows of all, and arrays of the batch travel in every block, not parameters
    (`flm plan --compile` showed that).
    """

    mesh: Mesh

    def __call__(self, params: Tree, stacked: int = 1) -> Tree:
        """The same arrays, whole on every device but for ``tensor``.

        Gradients of a layer are shared again at once, as `partition` shares the parameters; those
        of a whole array when they are summed, for a share of them would be asked for where rows of
        the batch are.

        Args:
          stacked: how many layers an array of the training state has, of which this is one; 1: it
            is the whole of it.
        """
        sizes = self.mesh.shape

        def one(path, leaf):
            whole_shape = (stacked, *leaf.shape) if stacked > 1 else leaf.shape
            spec = partition(_name(path), whole_shape, sizes)
            spec = P(*spec[1:]) if stacked > 1 else spec
            whole = P(*(None if axis == "fsdp" else axis for axis in spec))
            if spec == whole:
                return leaf
            forward, backward = (
                NamedSharding(self.mesh, x) for x in (whole, spec if stacked > 1 else whole)
            )
            return linear_call(
                lambda _, x: jax.lax.with_sharding_constraint(x, forward),
                lambda _, x: jax.lax.with_sharding_constraint(x, backward),
                (), leaf,
            )  # fmt: skip

        return jax.tree_util.tree_map_with_path(one, params)


def gather(mesh: Mesh | None) -> Gather | None:
    """What brings parameters together; None where each device has them whole."""
    return None if mesh is None or mesh.shape["fsdp"] == 1 else Gather(mesh)


@dataclasses.dataclass(frozen=True)
class Share:
    """Calls a function on the rows and heads that each device has: JAX divides no kernel itself.

    Heads are shared by ``tensor`` where it divides their number; else it repeats them.
    """

    mesh: Mesh

    def divides(self, rows: int) -> bool:
        """Whether each device has as many of these rows."""
        return rows % batch_devices(self.mesh) == 0

    def __call__(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        """``function`` of arrays (B, L, H, K) that gives such an array."""
        heads = arrays[0].shape[2] % self.mesh.shape["tensor"] == 0
        spec = P(("data", "fsdp"), None, "tensor" if heads else None)
        divided = jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=(spec,) * len(arrays),
            out_specs=spec,
            check_vma=False,  # which kernels do not say
        )
        return divided(*arrays)


def share(mesh: Mesh | None) -> Share | None:
    """What divides a kernel over devices; None where there is one."""
    return None if mesh is None or mesh.size == 1 else Share(mesh)


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
