"""From a name in a config to a class: a row of one of our registries, or a class of the user's.

The registries (LOSSES, SAMPLERS, DATASETS, TOKENIZERS, EVALS) are plain dicts from names to classes
that keep the registry's contract. "my_package.my_module:MyLoss" names a class that is in none of
them; it is imported wherever the run is trained or loaded.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from flm_jax.contracts import Contract
from flm_jax.errors import UserError

Row = TypeVar("Row")


def find(registry: Mapping[str, type[Row]], name: str, what: str) -> type[Row]:
    """The class of that name; ``what`` is the word for it in messages: "loss", "sampler".

    Raises UserError for a name that is not in it, or a class that cannot be had or keeps another
    contract.
    """
    if name in registry:
        return registry[name]
    if name.count(":") == 1 and not name.startswith(":"):
        return _imported(registry, name, what)
    rows = ", ".join(sorted(registry)) or "none"
    start = f"unknown {what} {name!r}" if name else f"no {what} is named in the config"
    raise UserError(
        f"{start}{nearest(name, registry)} (there are: {rows}); MODULE:CLASS names one of yours"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """The words "; did you mean X?" for a misspelt name, or "" when nothing is near."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.55)
    return f"; did you mean {match[0]}?" if match else ""


def _imported(registry: Mapping[str, type[Row]], name: str, what: str) -> type[Row]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module does while it is imported
        raise UserError(
            f"{what} {name!r}: importing {module_name} failed ({type(error).__name__}: {error}); "
            "correct it, or put its folder on PYTHONPATH"
        ) from error
    found = vars(module).get(class_name)
    contract = _contract(registry)
    if not isinstance(found, type) or not issubclass(found, contract):
        classes = [n for n, c in vars(module).items() if isinstance(c, type)]
        fitting = [n for n in classes if issubclass(vars(module)[n], contract)]
        have = f"those are: {', '.join(sorted(fitting))}" if fitting else "there is none in it"
        raise UserError(
            f"{what} {name!r}: {class_name} of {module_name} is not a "
            f"{contract.__module__}.{contract.__qualname__}; {have}"
        )
    return cast(type[Row], found)


def _contract(registry: Mapping[str, type[Row]]) -> type:
    """The contract that the rows of a registry keep."""
    row = next(iter(registry.values()))
    return next((base for base in row.__mro__ if Contract in base.__bases__), object)
