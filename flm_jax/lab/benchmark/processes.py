"""Measurements in processes of their own: the peak memory of a process never falls."""

import json
import os
import statistics
import subprocess
import sys
from typing import Any

from flm_jax.errors import UserError
from flm_jax.lab.benchmark import MANY, ONE


def child(mode: str, space: str, *flags: str) -> dict:
    """The numbers of one space, measured by this command (as ``mode``) in a process of its own."""
    done = _run(mode, space, flags)
    if done.returncode:
        raise UserError(
            f"the process of space {space} ended with exit code {done.returncode} (above is what "
            "it said; -9 means that memory ran out): try a smaller --batch"
        )
    return json.loads(done.stdout.splitlines()[-1])


def attempt(mode: str, space: str, batch: int, length: int, vocab: int) -> dict | None:
    """The numbers at a shape, or None if the process ended without any, as when memory ran out.

    Raises UserError if the command was wrong.
    """
    shape = (f"--batch={batch}", f"--length={length}", f"--vocab={vocab}", "--rounds=1")
    done = _run(mode, space, shape)
    if done.returncode == 2:
        raise UserError(
            f"space {space} at batch {batch}, length {length}, vocabulary {vocab} cannot be "
            "measured; above is why"
        )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _run(mode: str, space: str, flags: tuple[str, ...]) -> subprocess.CompletedProcess:
    own = sys.argv[1:]
    own.remove(next(word for name in (MANY, ONE) for word in own if word in name))  # our own mode
    # A flag that is given twice has its last value.
    command = [
        sys.executable,
        "-m",
        "flm_jax.lab.benchmark",
        mode,
        *own,
        f"--space={space}",
        "--json",
    ]
    # The largest batch is asked for: all memory of a GPU, not the three quarters JAX would take.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ}
    return subprocess.run(
        [*command, *flags], stdout=subprocess.PIPE, text=True, check=False, env=environment
    )


def middle(rows: list[dict]) -> dict[str, Any]:
    """One row of several: the median of every number, the largest memory."""
    merged = dict(rows[0])
    for key, value in rows[0].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            merged[key] = statistics.median(row[key] for row in rows)
    merged["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)
    return merged
