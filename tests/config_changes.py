"""A default config with changes, rows for its tables, and the sentence that a mistake gets."""

import dataclasses

import pytest

from flm_jax import config as config_lib
from flm_jax.config import Config
from flm_jax.contracts import Needs
from flm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Distilling:
    """A loss that needs a teacher and a network of two times."""

    path: str
    needs = Needs(teacher=True, two_times=True)


def changed(**overrides) -> Config:
    """The default config; a__b=1 means a.b = 1."""
    tree = config_lib.to_dict(Config())
    for key, value in overrides.items():
        *parents, last = key.split("__")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    return config_lib.resolve(tree)


def sentence(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)
