"""Runs one generated program within limits and prints what it answers: a script for a new process.

Standard input: JSON with `program`, `seconds` and `megabytes`. Standard output: JSON [kind, text]
of what `simple_math_problem()` returned; nothing after an error. It imports nothing of ours.
"""

import json
import math
import os
import sys

BUILTINS = (
    *(abs, min, max, sum, len, range, enumerate, int, float, str, bool, round, print, list, dict),
    *(tuple, set, zip, map, filter, sorted, reversed),
)
KINDS = (bool, int, float, str)
LONGEST = 10_000  # characters of an answer


def limit(seconds: float, megabytes: int) -> None:
    """Ends this process after some time, and lets it have so much memory and no new files."""
    import resource
    import signal

    signal.setitimer(signal.ITIMER_REAL, seconds)  # unheard, it ends the process
    memory, processor = megabytes << 20, math.ceil(seconds) + 1
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, processor),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, most))
        except (OSError, ValueError):  # macOS does not limit address space
            if what != resource.RLIMIT_AS:
                raise


def only_math(name, *given):
    """Stands for `__import__`."""
    if name != "math":
        raise ImportError(name)
    return math


def run(program: str) -> object:
    """What the function `simple_math_problem` of a program returns."""
    allowed = {builtin.__name__: builtin for builtin in BUILTINS}
    names: dict = {"__builtins__": {**allowed, "__import__": only_math}}
    exec(compile(program, "<generated>", "exec"), names)
    return names["simple_math_problem"]()


def main() -> None:
    order = json.loads(sys.stdin.buffer.read())
    # What the program prints goes nowhere; the answer goes where standard output was.
    said = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    limit(order["seconds"], order["megabytes"])
    value = run(order["program"])
    if type(value) in KINDS:
        said.write(json.dumps([type(value).__name__, str(value)[:LONGEST]]))
        said.flush()


if __name__ == "__main__":
    main()
