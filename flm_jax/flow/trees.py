"""Names for the trees of arrays that JAX maps over, for annotations."""

from collections.abc import Mapping
from typing import Any, TypeAlias

Params: TypeAlias = Mapping[str, Any]  # of a network: names of modules, nested, down to arrays
Tree: TypeAlias = Any  # any tree of arrays: parameters, an optimizer's state, shapes, gradients
