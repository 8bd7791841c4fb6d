"""An ONNX graph while it is made: nodes are added one by one, and values are their names.

    g = Graph()
    y = g("Mul", x, 0.5)              # a number or an array becomes a constant
    a, b = g.several("Split", 2, y, np.array([4, 4]), axis=-1)

Opset 17 and IR version 8, of 2022 and 2023, which about every runtime reads.
"""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx  # pyright: ignore[reportMissingImports]

OPSET, IR_VERSION = 17, 8
INLINE = 2**30  # bytes of constants in the graph's own file: protobuf ends at twice that
PRODUCER = "flm_jax"
Sizes = Mapping[str, tuple[Any, tuple[Any, ...]]]  # name to (numpy type, shape)


class Graph:
    """Nodes and constants. Numbers become float32, but int64 if they are whole."""

    def __init__(self):
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def __call__(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """One node of one output; its name."""
        (value,) = self.several(kind, 1, *inputs, **attributes)
        return value

    def several(self, kind: str, count: int, *inputs: Any, **attributes: Any) -> list[str]:
        """One node of several outputs; their names."""
        from onnx import helper  # pyright: ignore[reportMissingImports]

        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        self._count += 1
        outputs = [
            f"{kind.lower()}_{self._count}{'abcdefgh'[i] * (count > 1)}" for i in range(count)
        ]
        self.nodes.append(helper.make_node(kind, names, outputs, **attributes))
        return outputs

    def constant(self, value: Any, name: str = "") -> str:
        """An array in the graph; those that are equal are there once, unless they have a name."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if name:
            self.constants[name] = array
            return name
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._known:
            self._known[key] = f"constant_{len(self._known)}"
            self.constants[self._known[key]] = array
        return self._known[key]

    def name(self, value: str, output: str) -> None:
        """Makes a value an output of the graph under that name."""
        from onnx import helper  # pyright: ignore[reportMissingImports]

        self.nodes.append(helper.make_node("Identity", [value], [output]))

    def save(
        self,
        path: pathlib.Path,
        inputs: Sizes,
        outputs: Sizes,
        about: str,
        properties: Mapping[str, str],
        inline: int = INLINE,
    ) -> None:
        """Checks the graph and writes it.

        Constants of more than ``inline`` bytes together lie beside it, in the file PATH.data.
        """
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

        graph = helper.make_graph(
            self.nodes,
            path.stem,
            [_info(name, *found) for name, found in inputs.items()],
            [_info(name, *found) for name, found in outputs.items()],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
            doc_string=about,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=PRODUCER
        )
        helper.set_model_props(model, dict(properties))
        beside = sum(array.nbytes for array in self.constants.values()) > inline
        onnx.save_model(
            model,
            str(path),
            save_as_external_data=beside,
            location=f"{path.name}.data",
            size_threshold=1024,
        )
        onnx.checker.check_model(str(path), full_check=True)


def _info(name: str, dtype: Any, shape: tuple[Any, ...]) -> "onnx.ValueInfoProto":
    from onnx import helper  # pyright: ignore[reportMissingImports]

    return helper.make_tensor_value_info(
        name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
    )
