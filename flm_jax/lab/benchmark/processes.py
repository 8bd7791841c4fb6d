"""Measurements in processes of their own: the peak memory of a process never falls."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flm_jax.errors import UserError
from flm_jax.host import progress

if TYPE_CHECKING:
    from flm_jax.lab.benchmark.sweep import Point


def child(mode: str, space: str, words: Sequence[str]) -> dict:
    """The numbers of one space, measured by `flm benchmark MODE WORDS` in a process of its own."""
    done = _run(mode, space, words)
    if done.returncode:
        raise UserError(
            f"the process of space {space} ended with exit code {done.returncode} (above is what "
            "it said; -9 means that memory ran out): try a smaller --batch"
        )
    return json.loads(done.stdout.splitlines()[-1])


def attempt(mode: str, space: str, words: Sequence[str], point: "Point") -> dict | None:
    """The numbers at a shape, or None if the process ended without any, as when memory ran out.

    Raises UserError if the command was wrong.
    """
    shape = [f"--{axis}={size}" for axis, size in point._asdict().items()]
    done = _run(mode, space, [*words, *shape])
    if done.returncode == 2:
        raise UserError(f"space {space} cannot be measured with {' '.join(shape)}; above is why")
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def _run(mode: str, space: str, words: Sequence[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "flm_jax", "benchmark", mode, *words]
    # The largest batch is asked for: all memory of a GPU, not the three quarters JAX would take.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95", **os.environ}
    return subprocess.run(
        [*command, f"--space={space}", "--json"],
        stdout=subprocess.PIPE, text=True, check=False, env=environment,
    )  # fmt: skip


def both(mode: str, words: Sequence[str], rounds: int) -> dict[str, Any]:
    """The two spaces in processes of their own, in turn; medians over them, and the ratios."""
    found: dict[str, list[dict]] = {"projected": [], "onehot": []}
    total = len(found) * rounds
    with progress.bar(total=total, desc="benchmark", unit="process") as bar:
        for _ in range(rounds):
            for space, rows in found.items():
                rows.append(child(mode, space, words))
                bar.update(1)
    results: dict[str, Any] = {space: middle(rows) for space, rows in found.items()}
    ours, theirs = results["projected"], results["onehot"]
    for ratio, key in (
        ("speed_ratio", "tokens_per_second"),
        ("memory_ratio", "peak_memory_bytes"),
    ):
        results[ratio] = ours[key] / theirs[key]
    return results


def middle(rows: list[dict]) -> dict[str, Any]:
    """One row of several: the median of every number, the largest memory."""
    merged = dict(rows[0])
    for key, value in rows[0].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            merged[key] = statistics.median(row[key] for row in rows)
    merged["peak_memory_bytes"] = max(row["peak_memory_bytes"] for row in rows)
    return merged


def report(results: dict[str, Any]) -> str:
    """The numbers for people."""
    lines = []
    for space in ("projected", "onehot"):
        row = results.get(space)
        if row is None:
            continue
        kind = "the device's peak" if row["peak_rate"] else "the matrix rate measured here"
        lines.append(
            f"{space:10s} {row['tokens_per_second']:12,.0f} tokens/s  {row['ms_per_step']:10,.1f} "
            f"ms (spread {row['ms_spread']:,.1f})  peak {row['peak_memory_bytes'] / 2**30:.2f} GiB"
            f"  {100 * row['utilisation']:.0f} % of {kind}  compiled in {row['compile_s']:.0f} s"
        )
    if "speed_ratio" in results:
        lines.append(
            f"projected / onehot: {results['speed_ratio']:.2f} x the speed, "
            f"{results['memory_ratio']:.3f} x the memory"
        )
    return "\n".join(lines)
