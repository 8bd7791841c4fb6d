"""Bytes that a compiled program reads from a chip's memory and writes to it, from its text.

Every operation reads its operands and writes its results; of a loop's body as often as it runs. A
slice is what it takes and an update in place what it changes, also inside of fusions, so that a
layer of stacked parameters counts once. What TPUs keep in their fast memory (space 1) costs
nothing; caches of GPUs are not known here, so theirs is a little too much.
"""

import math
from collections.abc import Iterator

from flm_jax.lab.plan.hlo import Instruction, Program

# Operations that only name what is there, or whose parts are counted by themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "replica-id", "iota",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATE = "dynamic-update-slice"
_SAME = ("bitcast", "reshape", "convert", "copy", "transpose")  # of an array, inside of a fusion


def moved(program: Program) -> float:
    """Bytes in a step, on one device."""
    reader = _Reader(program)
    return sum(
        program.times[name] * reader.traffic(name, instruction)
        for name in program.in_memory
        for instruction in program.computations.get(name, ())
    )


class _Reader:
    def __init__(self, program: Program):
        self.program = program
        self.named = {
            name: {one.name: one for one in instructions}
            for name, instructions in program.computations.items()
        }

    def traffic(self, computation: str, instruction: Instruction) -> float:
        """Of an operation whose results are in memory."""
        kind, own = instruction.kind, self.named[computation]
        if kind in _FREE or kind.endswith("-done"):
            return 0.0
        operands = [own[name].bytes if name in own else 0.0 for name in instruction.operands]
        if kind in _SLICES:
            return 2 * instruction.bytes
        if kind == _UPDATE:
            return 2 * operands[1]
        if kind == "fusion":
            called = instruction.called
            read = sum(min(n, self.read(called, i)) for i, n in enumerate(operands))
            return read + min(instruction.bytes, self.written(called))
        if kind.endswith("-start"):  # its results name its operands, too
            return 2 * sum(operands)
        return sum(operands) + instruction.bytes

    def read(self, called: str, index: int) -> float:
        """Bytes that a fused computation takes of a parameter; infinite: all of it."""
        for one in self.program.computations.get(called, ()):
            if one.kind == "parameter" and one.rest.startswith(f"{index})"):
                return self.used(called, one)
        return math.inf

    def used(self, called: str, array: Instruction) -> float:
        found = 0.0
        for user, position in self.users(called, array):
            if user.kind in _SLICES and position == 0:
                found += user.bytes
            elif user.kind in _SAME:
                found += self.used(called, user)
            elif user.kind == "fusion":
                found += self.read(user.called, position)
            elif user.kind != _UPDATE or position != 0:
                return math.inf
        return found or math.inf if array is self.root(called) else found

    def users(self, called: str, array: Instruction) -> Iterator[tuple[Instruction, int]]:
        for one in self.program.computations[called]:
            for position, name in enumerate(one.operands):
                if name == array.name:
                    yield one, position

    def root(self, called: str) -> Instruction | None:
        """The result of a computation, which XLA prints last."""
        inside = self.program.computations.get(called, ())
        return inside[-1] if inside else None

    def written(self, called: str) -> float:
        """Bytes that a fused computation writes."""
        root = self.root(called)
        if root is None:
            return math.inf
        own = self.named[called]
        results = [own[n] for n in root.operands if n in own] if root.kind == "tuple" else [root]
        return sum(self.changed(called, one) for one in results)

    def changed(self, called: str, result: Instruction) -> float:
        own = self.named[called]
        if result.kind == _UPDATE:
            return own[result.operands[1]].bytes
        if result.kind in _SAME and result.operands[0] in own:
            return min(result.bytes, self.changed(called, own[result.operands[0]]))
        if result.kind == "fusion":
            return min(result.bytes, self.written(result.called))
        return result.bytes
