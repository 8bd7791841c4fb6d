"""What a generated program answers, beside the answer of a GSM8K problem: as the FMLM+ code scores.

    gold      the number behind "####" in a reference
    code      the program in a generated text
    answer    what its function `simple_math_problem()` returns, run in another process
    right     whether both are the same number

**What the other process is and what it is not.** Every program runs in a Python of its own, in an
empty folder, without the environment of ours, with limits on time, memory, open files and the size
of files, with a few builtins and no import but `math`. So a model that writes nonsense, endless
loops or lists of all numbers harms nothing. It is no prison: whoever wants to find a way out of
Python's builtins will. Score models that somebody else has made against you in a container without
a network.
"""

import concurrent.futures
import dataclasses
import decimal
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from typing import TypeAlias

from flm_jax.errors import UserError
from flm_jax.evals import run_program
from flm_jax.host import progress

Number: TypeAlias = int | float

SECONDS, MEGABYTES = 5.0, 512  # of one program
_START = 30.0  # seconds that a Python may take to start on a busy machine
_GOLD = re.compile(r"####\s*(-?[0-9.,]+)")
END = "<|endoftext|>"
_ENDS = (END, "<|eot_id|>", "</s>")
_FENCED = re.compile(r"```(?:python)?\s*(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)")
_DROPPED = 49  # lines at most
_NEAR_INTEGER, _NEAR = 1e-6, decimal.Decimal("0.001")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one text was scored.

    Attributes:
      gold: the number of the reference as written, without commas; None if it has none.
      code: the program in the text.
      answer: what the program answers; None for none, or if it was not run.
      right: whether that is the gold.
    """

    gold: str | None
    code: str
    answer: Number | None
    right: bool


def score(
    texts: Sequence[str],
    references: Sequence[str],
    seconds: float = SECONDS,
    megabytes: int = MEGABYTES,
    workers: int | None = None,
) -> list[Verdict]:
    """Scores generated texts against the references of their problems.

    Args:
      seconds: what one program may take.
      megabytes: likewise, of memory.
      workers: programs at one time; None: one per core.

    Raises:
      UserError: not one reference per text, or a system that cannot limit a process.
    """
    if len(texts) != len(references):
        raise UserError(
            f"there are {len(texts)} texts for {len(references)} problems; score as many texts as "
            "there are problems, in their order"
        )
    check_limits(seconds, megabytes)
    golds, codes = [gold(text) for text in references], [code(text) for text in texts]
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting = [
            None if found is None else pool.submit(answer, program, seconds, megabytes)
            for found, program in zip(golds, codes, strict=True)
        ]
        answers = [
            None if one is None else one.result()
            for one in progress.bar(waiting, desc="running programs", delay=2)
        ]
    return [
        Verdict(found, program, said, right(said, found))
        for found, program, said in zip(golds, codes, answers, strict=True)
    ]


def gold(reference: str) -> str | None:
    """The number behind "####", commas removed; None where there is none."""
    found = _GOLD.search(reference)
    return found.group(1).replace(",", "") if found else None


def code(text: str) -> str:
    """The program in a generated text.

    From the first "def " to the first end mark, or what stands between ``` fences; then without as
    many of its last lines (49 at most) as it takes to compile, or whole where nothing helps.
    """
    text = _from_def(text)
    for end in _ENDS:
        text = text.partition(end)[0]
    if fenced := _FENCED.search(text):
        text = fenced.group(1)
    text = _from_def(text).strip()
    lines = text.split("\n")
    for dropped in range(min(len(lines), _DROPPED + 1)):
        shorter = "\n".join(lines[: len(lines) - dropped])
        if _compiles(shorter):
            return shorter
    return text


def answer(program: str, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Number | None:
    """The number that `simple_math_problem()` of a program returns; None for any error.

    Raises:
      UserError: limits that cannot be, or a system that has none.
    """
    check_limits(seconds, megabytes)
    order = json.dumps({"program": program, "seconds": seconds, "megabytes": megabytes})
    command = [sys.executable, "-I", "-S", run_program.__file__]
    with tempfile.TemporaryDirectory(prefix="flm_jax_program_") as empty:
        try:
            done = subprocess.run(
                command,
                input=order.encode(),
                capture_output=True,
                cwd=empty,
                env={},
                start_new_session=True,
                timeout=seconds + _START,
            )
        except subprocess.TimeoutExpired:
            return None
    try:
        kind, value = json.loads(done.stdout)
    except ValueError:  # it was ended, or raised an error
        return None
    return number({"bool": _truth, "int": int, "float": float, "str": str}[kind](value))


def number(value: object) -> Number | None:
    """The number that an answer stands for: of a text the first one in it; None for no number."""
    if isinstance(value, (bool, int)):
        return int(value)
    if isinstance(value, str):
        found = _NUMBER.search(value.replace(",", ""))
        if found is None:
            return None
        text = found.group()
        return int(text) if text.lstrip("-").isdigit() else number(float(text))
    if not isinstance(value, float) or not math.isfinite(value):
        return None
    nearest = round(value)
    return nearest if abs(value - nearest) <= _NEAR_INTEGER else value


def right(said: Number | None, wanted: str | None) -> bool:
    """Whether an answer is the gold: equal integers, or decimals at most 0.001 apart."""
    if said is None or wanted is None:
        return False
    try:
        true = decimal.Decimal(wanted)
    except decimal.InvalidOperation:
        return False
    if isinstance(said, int) and "." not in wanted:
        return said == int(true)
    return abs(decimal.Decimal(str(said)) - true) <= _NEAR


def check_limits(seconds: float, megabytes: int) -> None:
    """UserError unless programs can be run within these limits on this system."""
    if sys.platform == "win32":
        raise UserError(
            "this system cannot limit what a program takes, so generated programs are not run on "
            "it; score them on Linux or macOS"
        )
    if not 0 < seconds <= 3600:
        raise UserError(f"a time limit of {seconds} s must be above 0 and at most 3600")
    if megabytes < 64:
        raise UserError(f"a memory limit of {megabytes} MB is too small; give at least 64")


def _from_def(text: str) -> str:
    start = text.find("def ")
    return text if start < 0 else text[start:]


def _compiles(program: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(program, "<generated>", "exec")
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
            return False
    return True


def _truth(value: str) -> bool:
    return value == "True"
