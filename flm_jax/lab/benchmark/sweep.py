"""Many shapes with one command: the cost law over B, L and V, and the table of an accelerator.

Every point is a process of its own (processes.py), so that its peak memory is its own and one that
does not fit ends alone. Results are rows, written as CSV, JSON and Markdown and drawn as log-log
plots.
"""

import csv
import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from flm_jax.errors import UserError
from flm_jax.host import files, progress
from flm_jax.lab.benchmark import loglog

Numbers = dict[str, Any]  # of one point, as JSON
Measure = Callable[[str, int, int, int], Numbers | None]  # space, batch, length, vocab -> numbers
SPACES = ("projected", "onehot")
COLUMNS: tuple[str, ...] = (
    "space", "batch", "length", "vocab", "tokens_per_second", "ms_per_step", "ms_spread",
    "peak_memory_bytes", "utilisation", "matrix_rate", "peak_rate", "compile_s", "head_chunk",
    "dtype", "device",
)  # fmt: skip


def points(base: tuple[int, int, int], axes: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """(B, L, V) with one of them varied at a time, the others as in ``base``; no point twice."""
    found = [base]
    for i, values in enumerate(axes):
        for value in values:
            batch, length, vocab = (*base[:i], value, *base[i + 1 :])
            found.append((batch, length, vocab))
    return list(dict.fromkeys(found))


def sweep(
    measure: Measure, base: tuple[int, int, int], axes: Sequence[Sequence[int]],
    spaces: Sequence[str],
) -> list[Numbers]:  # fmt: skip
    """One row for every point and space; a point that did not fit has no numbers."""
    todo = [(space, *point) for point in points(base, axes) for space in spaces]
    rows = []
    with progress.bar(total=len(todo), desc="sweep", unit="process") as bar:
        for space, batch, length, vocab in todo:
            found = measure(space, batch, length, vocab)
            rows.append(row(space, batch, length, vocab, found))
            bar.update(1)
    return rows


def largest(
    measure: Measure, shapes: Sequence[tuple[int, int]], start: int, limit: int,
    spaces: Sequence[str],
) -> list[Numbers]:  # fmt: skip
    """One row for every shape (L, V) and space: the largest batch that fits, and its speed.

    Doubled from ``start`` until it does not fit or ``limit`` is reached, then once half way.
    """
    rows = []
    total = len(shapes) * len(spaces)
    with progress.bar(total=total, desc="shapes", unit="shape") as bar:
        for length, vocab in shapes:
            for space in spaces:
                best, batch = row(space, start, length, vocab, None), start
                while batch <= limit and (found := measure(space, batch, length, vocab)):
                    best, batch = row(space, batch, length, vocab, found), 2 * batch
                middle = 3 * batch // 4
                fits = "tokens_per_second" in best
                if fits and batch <= limit and middle > best["batch"]:
                    found = measure(space, middle, length, vocab)
                    best = row(space, middle, length, vocab, found) if found else best
                rows.append(best)
                bar.update(1)
    return rows


def row(space: str, batch: int, length: int, vocab: int, found: Numbers | None) -> Numbers:
    point = {"space": space, "batch": batch, "length": length, "vocab": vocab}
    return {**(found or {}), **point}


def check(folder: pathlib.Path, name: str) -> None:
    """UserError if results cannot be written there, or are there already."""
    taken = [p for p in (folder / f"{name}.{kind}" for kind in ("csv", "json", "md", "svg"))
             if p.exists()]  # fmt: skip
    if taken:
        raise UserError(f"{taken[0]} exists already; give another --output=FOLDER or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to --output={folder}: {error.strerror}; choose another folder"
        ) from error
    files.check_writable(folder / f"{name}.json")


def write(folder: pathlib.Path, name: str, rows: list[Numbers], plot: bool) -> None:
    """``name``.csv, .json, .md and, if there is something to draw, .svg."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    files.write_atomically(folder / f"{name}.csv", text.getvalue())
    files.write_atomically(folder / f"{name}.json", json.dumps(rows, indent=1) + "\n")
    files.write_atomically(folder / f"{name}.md", markdown(rows))
    if plot:
        files.write_atomically(folder / f"{name}.svg", picture(rows))


def markdown(rows: list[Numbers]) -> str:
    """The table for people; ratios are against the one-hot space at the same shape."""
    lines = [
        "| L | V | B | space | tokens/s | ms per step (spread) | peak memory, GiB "
        "| share of the peak or matrix rate | speed ratio | memory ratio |",
        "|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    dense = {_shape(r): r for r in rows if r["space"] == "onehot" and "tokens_per_second" in r}
    for r in rows:
        start = f"| {r['length']} | {r['vocab']} | {r['batch']} | {r['space']} | "
        if "tokens_per_second" not in r:
            lines.append(start + "did not fit | | | | | |")
            continue
        other = dense.get(_shape(r)) if r["space"] != "onehot" else None
        speed = memory = ""
        if other:
            speed = f"{r['tokens_per_second'] / other['tokens_per_second']:.2f}"
            memory = f"{r['peak_memory_bytes'] / other['peak_memory_bytes']:.3f}"
        lines.append(
            f"{start}{r['tokens_per_second']:,.0f} | {r['ms_per_step']:,.1f} "
            f"({r['ms_spread']:,.1f}) | {r['peak_memory_bytes'] / 2**30:.2f} "
            f"| {100 * r['utilisation']:.0f} % | {speed} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def _shape(row: dict) -> tuple:
    return row["batch"], row["length"], row["vocab"]


def picture(rows: list[Numbers]) -> str:
    """Time and memory against V, and against B * L, as log-log plots (SVG)."""
    base = rows[0]
    rows = [r for r in rows if "tokens_per_second" in r]
    tokens = base["batch"] * base["length"]
    panels = []
    for y_label, y in (
        ("ms per step", lambda r: r["ms_per_step"]),
        ("peak memory, MiB", lambda r: r["peak_memory_bytes"] / 2**20),
    ):
        for x_label, x, kept in (
            ("V", lambda r: r["vocab"], lambda r: r["batch"] * r["length"] == tokens),
            (
                "B * L",
                lambda r: r["batch"] * r["length"],
                lambda r: r["vocab"] == base["vocab"],
            ),
        ):
            lines = {
                space: sorted((x(r), y(r)) for r in rows if r["space"] == space and kept(r))
                for space in SPACES
            }
            panels.append(loglog.Panel(f"{y_label} against {x_label}", x_label, y_label, lines))
    return loglog.draw(panels)
