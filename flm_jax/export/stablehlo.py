"""A jump as StableHLO, as `jax.export` writes it, for CPU, GPU and TPU in one file.

Its parameters are an argument, not constants inside, which XLA would fold and copy.
"""

import pathlib

import jax
import numpy as np
from jax import export

from flm_jax.export.jump import Jump
from flm_jax.host import files
from flm_jax.interop.flat import flat, nested

GRAPH_FILE = "jump.stablehlo"
WEIGHTS_FILE = "weights.npz"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def write(jump: Jump, folder: pathlib.Path) -> None:
    """Writes the graph, a function of (weights, inputs) -> outputs, and the weights.

    All three are flat dicts; the weights are float32.
    """
    weights = flat(jump.model.params)

    def call(weights, inputs):
        return jump(nested(weights), inputs)

    exported = export.export(jax.jit(call), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in weights.items()}, specs(jump)
    )
    files.write_atomically(folder / GRAPH_FILE, bytes(exported.serialize()))
    with (folder / WEIGHTS_FILE).open("wb") as file:
        np.savez(file, allow_pickle=False, **weights)


def specs(jump: Jump) -> dict[str, jax.ShapeDtypeStruct]:
    """The inputs; open sizes are symbols, and a length is at most the learned positions."""
    longest = jump.longest
    constraints = [f"L <= {longest}"] if longest else []
    sizes = export.symbolic_shape("B, L", constraints=constraints)
    symbols = dict(zip("BL", sizes, strict=True))
    return {
        name: jax.ShapeDtypeStruct([symbols.get(size, size) for size in shape], dtype)
        for name, (dtype, shape) in jump.inputs.items()
    }
