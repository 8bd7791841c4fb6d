"""A tree of parameters as one flat dict of arrays under names like blocks/qkv/kernel, and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flm_jax.flow.trees import Params


def leaves(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, leaf) of a tree of arrays or shapes."""
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def flat(params: Params) -> dict[str, np.ndarray]:
    """Every array, float32 on the host."""
    return {name: np.asarray(value, np.float32) for name, value in leaves(params)}


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
