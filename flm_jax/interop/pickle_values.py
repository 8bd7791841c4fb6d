"""The values a pickle may turn into, and our stand-ins for the built-in calls it may make."""

import dataclasses
from collections.abc import Callable
from typing import Any

_SCALARS = (str, int, float, complex, bytes, bool, type(None))


class PickleError(ValueError):
    """The bytes are no valid pickle, or use a construct that plain data never needs."""


@dataclasses.dataclass(eq=False)
class Foreign:
    """What stands for a class, function or object of somebody else's code; it does nothing.

    `name` is "module.attribute"; `args` the arguments it would have been called with (None for the
    bare class), `state` what its `__setstate__` would have received, `items` list or dict content.
    """

    name: str
    args: tuple | None = None
    state: Any = None
    items: list = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """A global from the caller's table: `call` is our function, never the file's."""

    name: str
    call: Callable


def as_key(value: Any, depth: int = 0) -> Any:
    """`value` if hashing it is cheap and runs nothing of the file's; PickleError otherwise."""
    if isinstance(value, tuple) and depth < 2 and len(value) <= 64:
        for part in value:
            as_key(part, depth + 1)
        return value
    if isinstance(value, _SCALARS) or type(value).__hash__ is object.__hash__:
        return value
    raise PickleError(f"a {type(value).__name__} is used as a key")


def stand_ins(charge: Callable[[int], None]) -> dict[str, Callable]:
    """Our functions for the few built-in calls that plain data needs, by "module.name".

    `charge(n)` is told of every n elements copied and may raise PickleError.
    """

    def sequence(values: Any) -> list:
        if not isinstance(values, list | tuple | set | frozenset):
            raise PickleError("a container is filled from something that is no list")
        charge(len(values))
        return list(values)

    def dictionary(pairs: Any = ()) -> dict:
        return {as_key(key): value for key, value in sequence(pairs)}

    def default_dictionary(_factory: Any = None, pairs: Any = ()) -> dict:
        return dictionary(pairs)

    def encode(text: str, encoding: str = "utf-8") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "utf-8", "ascii"):
            raise PickleError("an unusual text encoding")
        charge(len(text))
        return text.encode(encoding)

    def byte_array(content: Any = b"", encoding: str = "latin1") -> bytes:
        if isinstance(content, str):
            return encode(content, encoding)
        if not isinstance(content, bytes):
            raise PickleError("a bytearray is built from something that is no bytes")
        return content

    def unordered(values: Any = ()) -> set:
        return {as_key(value) for value in sequence(values)}

    rows = {"collections.OrderedDict": dictionary, "collections.defaultdict": default_dictionary}
    rows["_codecs.encode"] = encode
    for module in ("builtins", "__builtin__"):
        rows[f"{module}.dict"] = dictionary
        rows[f"{module}.list"] = lambda values=(): sequence(values)
        rows[f"{module}.tuple"] = lambda values=(): tuple(sequence(values))
        rows[f"{module}.set"] = unordered
        rows[f"{module}.frozenset"] = lambda values=(): frozenset(unordered(values))
        rows[f"{module}.bytes"] = byte_array
        rows[f"{module}.bytearray"] = byte_array
    return rows
