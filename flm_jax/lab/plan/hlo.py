"""What a compiled program does, read from its text: collectives, arrays in memory, kernels.

XLA prints a program as computations of instructions. A loop's body is printed once, so that what is
in it is counted as often as the loop runs: its `known_trip_count`, or the constant that its
condition compares a counter with. Of a conditional all branches count. What stands in a fused
computation is never in memory; only the result of the fusion is.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
# Custom calls that move or mark something and compute nothing.
_NO_KERNELS = re.compile(
    r"AllocateBuffer|Bitcast|Bitpacked|AssumeGather|Async\w*(Start|Done)|Sharding|LayoutConstraint"
)
_PALLAS_TPU = "tpu_custom_call"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_FAST = "S(1)"  # of a layout: the memory inside of a TPU
_CALLED = re.compile(r"(body|condition|calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """A type and a shape: f32[8,128]."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        return BYTES.get(self.dtype, 0) * self.entries

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    kind: str  # of operation: "fusion", "all-gather"; an asynchronous one is counted at its start
    arrays: tuple[Array, ...]  # of its result
    rest: str  # operands and attributes
    bytes: float = 0.0  # of its result in the main memory

    @property
    def operands(self) -> list[str]:
        """Names."""
        return _OPERAND.findall(self.rest.split(")")[0])

    @property
    def called(self) -> str:
        """The computation that a fusion is made of; else ""."""
        return next((name for how, name in _called(self) if how == "calls"), "")


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind, size and largest array.

    Attributes:
      times: that one runs in a step.
      size: of all arrays that travel in one, on one device: what is gathered, or what is reduced.
    """

    kind: str
    array: Array
    times: int
    size: float

    @property
    def bytes(self) -> float:
        return self.times * self.size


class Program:
    """A program's text, parsed.

    Args:
      text: of `jax.stages.Compiled.as_text`.
    """

    def __init__(self, text: str):
        self.computations, self._entry = _parse(text)

    @functools.cached_property
    def times(self) -> Mapping[str, int]:
        """How often each computation runs in a step, fused ones included."""
        found: collections.Counter[str] = collections.Counter()

        def visit(name: str, times: int) -> None:
            found[name] += times
            for instruction in self.computations.get(name, ()):
                for how, called in _called(instruction):
                    trips = self._trips(instruction) if how == "body" else 1
                    visit(called, times * trips)

        visit(self._entry, 1)
        return found

    @functools.cached_property
    def in_memory(self) -> frozenset[str]:
        """The computations whose results are in memory: all that are not fused."""
        found: set[str] = set()

        def visit(name: str) -> None:
            if name not in found:
                found.add(name)
                for instruction in self.computations.get(name, ()):
                    if instruction.kind not in ("fusion", "custom-call"):
                        for how, called in _called(instruction):
                            if how != "to_apply" or instruction.kind == "call":
                                visit(called)

        visit(self._entry)
        return frozenset(found)

    @functools.cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Most bytes first."""
        found: collections.Counter[tuple[str, Array, float]] = collections.Counter()
        for name, instruction in self._instructions(self.times):
            kind = instruction.kind.removesuffix("-start")
            if kind in COLLECTIVES and instruction.arrays:
                arrays = _travelling(instruction)
                largest = max(arrays, key=lambda array: array.bytes)
                found[kind, largest, sum(array.bytes for array in arrays)] += self.times[name]
        made = (
            Collective(kind, array, times, size) for (kind, array, size), times in found.items()
        )
        return tuple(sorted(made, key=lambda one: -one.bytes))

    @functools.cached_property
    def arrays(self) -> Mapping[Array, int]:
        """Different arrays in memory with the number of instructions that make one."""
        found: collections.Counter[Array] = collections.Counter()
        for _, instruction in self._instructions(self.in_memory):
            if instruction.kind not in ("parameter", "tuple", "get-tuple-element", "bitcast"):
                found.update(set(instruction.arrays))
        return found

    @functools.cached_property
    def kernels(self) -> Mapping[str, int]:
        """Custom calls that compute something, with how often they run in a step.

        By target, but kernels written in Pallas for TPUs, which share one, by their own name.
        """
        found: collections.Counter[str] = collections.Counter()
        for name, instruction in self._instructions(self.times):
            if instruction.kind == "custom-call":
                target = _TARGET.search(instruction.rest)
                if target and not _NO_KERNELS.search(target[1]):
                    called = target[1]
                    if called == _PALLAS_TPU:
                        called = re.sub(r"(\.\d+)*$", "", instruction.name)
                    found[called] += self.times[name]
            elif instruction.kind == "fusion" and "__triton" in instruction.rest:
                kind = re.search(r'"kind":"(__triton\w*)"', instruction.rest)
                found[kind[1] if kind else "__triton"] += self.times[name]
        return found

    def _instructions(
        self, names: Mapping[str, int] | frozenset[str]
    ) -> Iterator[tuple[str, Instruction]]:
        for name in names:
            for instruction in self.computations.get(name, ()):
                yield name, instruction

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs; 1 where that depends on data."""
        if known := _TRIPS.search(loop.rest):
            return int(known[1])
        condition = next((called for how, called in _called(loop) if how == "condition"), "")
        inside = self.computations.get(condition, ())
        bounds = [one for one in inside if one.kind == "constant" and _is_count(one)]
        compared = [one for one in inside if one.kind == "compare" and "direction=LT" in one.rest]
        last = inside[-1] if inside else None
        if len(bounds) == 1 and compared == [last]:
            return int(bounds[0].rest.split(")")[0])
        return 1


def _travelling(collective: Instruction) -> tuple[Array, ...]:
    """The arrays of a collective: several of a kind may be combined to one.

    An asynchronous one but all-reduce results in what goes in and what comes out (and scalars that
    say where it is).
    """
    kind, arrays = collective.kind, collective.arrays
    if not kind.endswith("-start") or kind == "all-reduce-start":
        return arrays
    both = tuple(array for array in arrays if array.shape) or arrays
    half = len(both) // 2
    return both[:half] if kind == "reduce-scatter-start" and half else both[half:]


def _is_count(constant: Instruction) -> bool:
    return constant.arrays == (Array("s32", ()),) and constant.rest.split(")")[0].isdigit()


def _called(instruction: Instruction) -> Iterator[tuple[str, str]]:
    for how, name in _CALLED.findall(instruction.rest):
        yield how, name
    for names in _BRANCHES.findall(instruction.rest):
        for name in names.split(","):
            if name.strip():
                yield "branch", name.strip().removeprefix("%")


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            name, kind_of_result, kind, rest = found.groups()
            printed = [one for one in _ARRAY.findall(kind_of_result) if one[0] in BYTES]
            arrays = tuple(
                Array(dtype, tuple(map(int, filter(None, shape.split(",")))))
                for dtype, shape, _ in printed
            )
            slow = [a for a, one in zip(arrays, printed, strict=True) if _FAST not in one[2]]
            size = sum(array.bytes for array in slow)
            current.append(Instruction(name, kind, arrays, rest, size))
    return computations, entry
