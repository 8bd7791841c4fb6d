"""A pickle interpreter that cannot run code: plain data in, plain data and inert placeholders out.

Python's own unpickler calls what the file names. This one never looks a name up in a module: a
global is either in the caller's registry (a function of ours) or becomes a `Foreign`, a dead
record of its name, arguments and state. Nothing is imported, no `__reduce__` target, `__setstate__`
or extension-registry entry is reached. Work and memory stay proportional to the pickle's length.
"""

import pickletools
from collections.abc import Callable, Mapping

from flm_jax.interop.pickle_values import Foreign, Known, PickleError, Value, as_key, stand_ins

_MARK = object()


def run(
    data: bytes,
    known: Mapping[str, Callable[..., Value]],
    persistent: Callable[[Value], Value] | None = None,
) -> Value:
    """The object that the pickle `data` describes.

    `known` maps "module.name" to functions of ours that may be "called" by the pickle; `persistent`
    turns persistent ids into objects. Raises PickleError for anything malformed.
    """
    machine = _Machine(known, persistent, allowance=len(data) + 1_000_000)
    position = 0
    try:
        for opcode, arg, offset in pickletools.genops(data):
            position = offset
            if opcode.name == "STOP":  # the last one; without it genops raises ValueError
                break
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleError(f"the instruction {opcode.name} is not allowed")
            step(machine, arg)
        return machine.finish()
    except PickleError as error:
        raise PickleError(f"{error} (byte {position})") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise PickleError(f"damaged near byte {position}: {error}") from None


class _Machine:
    """Stack, marks and memo of one run."""

    def __init__(
        self,
        known: Mapping[str, Callable[..., Value]],
        persistent: Callable[[Value], Value] | None,
        allowance: int,
    ):
        self.known = {**stand_ins(self.charge), **known}
        self.persistent = persistent
        self.allowance = allowance
        self.stack: list = []
        self.memo: dict[int, Value] = {}

    def charge(self, amount: int) -> None:
        """Count copied elements: without it, a few bytes could copy a long list for ever."""
        self.allowance -= amount
        if self.allowance < 0:
            raise PickleError("it unfolds to far more data than it holds")

    def finish(self) -> Value:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise PickleError("it ends with something left over")
        return self.stack[0]

    def pop(self) -> Value:
        value = self.stack.pop()
        if value is _MARK:
            raise PickleError("a value is missing")
        return value

    def top(self) -> Value:
        value = self.stack[-1]
        if value is _MARK:
            raise PickleError("a value is missing")
        return value

    def pop_to_mark(self) -> list:
        values = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        values.reverse()
        return values

    def push_global(self, name: str) -> None:
        known = self.known.get(name)
        self.stack.append(Foreign(name) if known is None else Known(name, known))

    def call(self, function: Value, args: Value) -> None:
        if not isinstance(args, tuple):
            raise PickleError("a call without an argument tuple")
        if isinstance(function, Known):
            self.stack.append(function.call(*args))
        elif isinstance(function, Foreign):
            self.stack.append(Foreign(function.name, args))
        else:
            raise PickleError("a call of something that is not a function")


def _add_items(container: Value, pairs: list) -> None:
    if isinstance(container, dict):
        for key, value in pairs:
            container[as_key(key)] = value
    elif isinstance(container, Foreign):
        container.items.extend(pairs)
    else:
        raise PickleError("items are set on something that is not a dictionary")


def _extend(container: Value, values: list) -> None:
    if isinstance(container, list):
        container.extend(values)
    elif isinstance(container, set):
        container.update(as_key(value) for value in values)
    elif isinstance(container, Foreign):
        container.items.extend(values)
    else:
        raise PickleError("values are appended to something that is not a list")


def _pairs(values: list) -> list:
    if len(values) % 2:
        raise PickleError("a dictionary key without a value")
    return list(zip(values[::2], values[1::2], strict=True))


def _push(machine: _Machine, arg: Value) -> None:
    machine.stack.append(arg)


_Step = Callable[[_Machine, Value], object]


def _constant(make: Callable[[], Value]) -> _Step:
    return lambda machine, arg: machine.stack.append(make())


def _tuple_of(count: int) -> _Step:
    def step(machine: _Machine, arg: Value) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return step


def _from_mark(make: Callable[[list], Value]) -> _Step:
    return lambda machine, arg: machine.stack.append(make(machine.pop_to_mark()))


def _get(machine: _Machine, arg: Value) -> None:
    machine.stack.append(machine.memo[int(arg)])


def _put(machine: _Machine, arg: Value) -> None:
    machine.memo[int(arg)] = machine.top()


def _memoize(machine: _Machine, arg: Value) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _append(machine: _Machine, arg: Value) -> None:
    value = machine.pop()
    _extend(machine.top(), [value])


def _appends(machine: _Machine, arg: Value) -> None:
    values = machine.pop_to_mark()
    _extend(machine.top(), values)


def _set_item(machine: _Machine, arg: Value) -> None:
    value, key = machine.pop(), machine.pop()
    _add_items(machine.top(), [(key, value)])


def _set_items(machine: _Machine, arg: Value) -> None:
    pairs = _pairs(machine.pop_to_mark())
    _add_items(machine.top(), pairs)


def _dict_from_mark(machine: _Machine, arg: Value) -> None:
    container: dict = {}
    _add_items(container, _pairs(machine.pop_to_mark()))
    machine.stack.append(container)


def _global(machine: _Machine, arg: str) -> None:
    machine.push_global(arg.replace(" ", ".", 1))


def _stack_global(machine: _Machine, arg: Value) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise PickleError("a global whose name is not text")
    machine.push_global(f"{module}.{name}")


def _reduce(machine: _Machine, arg: Value) -> None:
    args, function = machine.pop(), machine.pop()
    machine.call(function, args)


def _new_object_ex(machine: _Machine, arg: Value) -> None:
    keywords, args, function = machine.pop(), machine.pop(), machine.pop()
    machine.call(Foreign(getattr(function, "name", "unknown")), args)
    machine.top().state = keywords


def _instance(machine: _Machine, arg: str) -> None:
    args = tuple(machine.pop_to_mark())
    machine.stack.append(Foreign(arg.replace(" ", ".", 1), args))


def _object(machine: _Machine, arg: Value) -> None:
    function, *args = machine.pop_to_mark()
    machine.call(function, tuple(args))


def _build(machine: _Machine, arg: Value) -> None:
    state = machine.pop()
    if isinstance(machine.top(), Foreign):
        machine.top().state = state


def _persistent(machine: _Machine, arg: Value) -> None:
    if machine.persistent is None:
        raise PickleError("it refers to data outside of itself")
    machine.stack.append(machine.persistent(machine.pop()))


_STEPS: dict[str, _Step] = {
    **dict.fromkeys(
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING "
        "SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE "
        "SHORT_BINUNICODE BINUNICODE8".split(),
        _push,
    ),
    "PROTO": lambda machine, arg: None,
    "FRAME": lambda machine, arg: None,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_LIST": _constant(list),
    "EMPTY_SET": _constant(set),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": _constant(lambda: _MARK),
    "POP": lambda machine, arg: machine.stack.pop(),
    "POP_MARK": lambda machine, arg: machine.pop_to_mark(),
    "DUP": lambda machine, arg: machine.stack.append(machine.top()),
    "TUPLE": _from_mark(tuple),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": _from_mark(list),
    "FROZENSET": _from_mark(lambda values: frozenset(as_key(value) for value in values)),
    "DICT": _dict_from_mark,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _memoize,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_object_ex,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "EXT1": lambda machine, arg: machine.stack.append(Foreign(f"extension {arg}")),
    "EXT2": lambda machine, arg: machine.stack.append(Foreign(f"extension {arg}")),
    "EXT4": lambda machine, arg: machine.stack.append(Foreign(f"extension {arg}")),
}
