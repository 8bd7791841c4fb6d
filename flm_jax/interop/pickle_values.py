"""The values a pickle may turn into, and our stand-ins for the built-in calls it may make."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

Value: TypeAlias = Any  # what a pickle holds: anything, to be looked at before it is used

_SCALARS = (str, int, float, complex, bytes, bool, type(None))


class PickleError(ValueError):
    """The bytes are not a valid pickle, or use a construct that plain data never needs."""


@dataclasses.dataclass(eq=False)
class Foreign:
    """What stands for a class, function or object of somebody else's code; it does nothing.

    `name` is "module.attribute"; `args` the arguments it would have been called with (None for the
    bare class), `state` what its `__setstate__` would have received, `items` list or dict content.
    """

    name: str
    args: tuple | None = None
    state: Value = None
    items: list = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A global of the caller's registry: `call` is our function, never the file's."""

    name: str
    call: Callable


def as_key(value: Value, depth: int = 0) -> Value:
    """`value` if hashing it is cheap and runs nothing of the file's; PickleError otherwise."""
    if isinstance(value, tuple) and depth < 2 and len(value) <= 64:
        for part in value:
            as_key(part, depth + 1)
        return value
    if isinstance(value, _SCALARS) or type(value).__hash__ is object.__hash__:
        return value
    raise PickleError(f"a {type(value).__name__} is used as a key")


def stand_ins(charge: Callable[[int], None]) -> dict[str, Callable[..., Value]]:
    """Our functions for the few built-in calls that plain data needs, by "module.name".

    `charge(n)` is told of every n elements copied and may raise PickleError.
    """

    def sequence(values: Value) -> list:
        if not isinstance(values, list | tuple | set | frozenset):
            raise PickleError("a container is filled from something that is not a list")
        charge(len(values))
        return list(values)

    def dictionary(pairs: Value = ()) -> dict:
        return {as_key(key): value for key, value in sequence(pairs)}

    def default_dictionary(_factory: Value = None, pairs: Value = ()) -> dict:
        return dictionary(pairs)

    def encode(text: str, encoding: str = "utf-8") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "utf-8", "ascii"):
            raise PickleError("an unusual text encoding")
        charge(len(text))
        return text.encode(encoding)

    def byte_array(content: Value = b"", encoding: str = "latin1") -> bytes:
        if isinstance(content, str):
            return encode(content, encoding)
        if not isinstance(content, bytes):
            raise PickleError("a bytearray is built from something that is not bytes")
        return content

    def unordered(values: Value = ()) -> set:
        return {as_key(value) for value in sequence(values)}

    found: dict[str, Callable[..., Value]] = {
        "collections.OrderedDict": dictionary,
        "collections.defaultdict": default_dictionary,
        "_codecs.encode": encode,
    }
    for module in ("builtins", "__builtin__"):
        found[f"{module}.dict"] = dictionary
        found[f"{module}.list"] = lambda values=(): sequence(values)
        found[f"{module}.tuple"] = lambda values=(): tuple(sequence(values))
        found[f"{module}.set"] = unordered
        found[f"{module}.frozenset"] = lambda values=(): frozenset(unordered(values))
        found[f"{module}.bytes"] = byte_array
        found[f"{module}.bytearray"] = byte_array
    return found
