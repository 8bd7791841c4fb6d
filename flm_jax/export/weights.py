"""A tree of parameters as one flat dict of arrays under names like blocks/qkv/kernel, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flm_jax.flow.trees import Params


def flat(params: Params) -> dict[str, np.ndarray]:
    """Every array, float32 on the host."""

    def walk(tree, prefix):
        for name, value in tree.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{name}/")
            else:
                yield prefix + name, np.asarray(value, np.float32)

    return dict(walk(params, ""))


def nested(arrays: Mapping[str, Any]) -> Params:
    """The tree of such a dict; its leaves may be anything."""
    tree: dict[str, Any] = {}
    for path, value in arrays.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree
