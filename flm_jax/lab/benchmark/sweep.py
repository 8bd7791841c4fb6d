"""Many shapes with one command: the cost law over B, L, V and D, and an accelerator's table.

Every point is a process of its own (processes.py), so that its peak memory is its own and one that
does not fit ends alone. Results are rows, written as CSV, JSON and Markdown and drawn as log-log
plots.
"""

import csv
import io
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flm_jax.errors import UserError
from flm_jax.host import files, progress
from flm_jax.report.charts import Series
from flm_jax.report.svg import Picture, draw

Numbers = dict[str, Any]  # of one point, as JSON
SPACES = ("projected", "onehot")
COLUMNS: tuple[str, ...] = (
    "space", "batch", "length", "vocab", "width", "tokens_per_second", "ms_per_step", "ms_spread",
    "peak_memory_bytes", "utilisation", "matrix_rate", "peak_rate", "compile_s", "head_chunk",
    "dtype", "device",
)  # fmt: skip


class Point(NamedTuple):
    """A shape, named as the options of `flm benchmark` that set it."""

    batch: int
    length: int
    vocab: int
    width: int


Measure = Callable[[str, Point], Numbers | None]  # of a space; None if it did not fit


def points(base: Point, axes: Mapping[str, Sequence[int]]) -> list[Point]:
    """Points with one number varied at a time, the others as in ``base``; none twice."""
    varied = [base._replace(**{axis: n}) for axis, values in axes.items() for n in values]
    return list(dict.fromkeys([base, *varied]))


def sweep(
    measure: Measure, base: Point, axes: Mapping[str, Sequence[int]], spaces: Sequence[str]
) -> list[Numbers]:
    """One row for every point and space; a point that did not fit has no numbers."""
    todo = [(space, point) for point in points(base, axes) for space in spaces]
    rows = []
    with progress.bar(total=len(todo), desc="sweep", unit="process") as bar:
        for space, point in todo:
            rows.append(row(space, point, measure(space, point)))
            bar.update(1)
    return rows


def largest(
    measure: Measure, shapes: Sequence[tuple[int, int]], base: Point, limit: int,
    spaces: Sequence[str],
) -> list[Numbers]:  # fmt: skip
    """One row for every shape (L, V) and space: the largest batch that fits, and its speed.

    Doubled from that of ``base`` until it does not fit or ``limit`` is reached, then once half way.
    """
    rows = []
    total = len(shapes) * len(spaces)
    with progress.bar(total=total, desc="shapes", unit="shape") as bar:
        for length, vocab in shapes:
            for space in spaces:
                point = base._replace(length=length, vocab=vocab)
                best = row(space, point, None)
                while point.batch <= limit and (found := measure(space, point)):
                    best, point = row(space, point, found), point._replace(batch=2 * point.batch)
                middle = point._replace(batch=3 * point.batch // 4)
                fits = "tokens_per_second" in best
                if fits and point.batch <= limit and middle.batch > best["batch"]:
                    found = measure(space, middle)
                    best = row(space, middle, found) if found else best
                rows.append(best)
                bar.update(1)
    return rows


def row(space: str, point: Point, found: Numbers | None) -> Numbers:
    return {**(found or {}), "space": space, **point._asdict()}


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
        "| L | V | B | D | space | tokens/s | ms per step (spread) | peak memory, GiB "
        "| share of the peak or matrix rate | speed ratio | memory ratio |",
        "|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    dense = {_shape(r): r for r in rows if r["space"] == "onehot" and "tokens_per_second" in r}
    for r in rows:
        start = f"| {r['length']} | {r['vocab']} | {r['batch']} | {r['width']} | {r['space']} | "
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
    return tuple(row[axis] for axis in Point._fields)


def picture(rows: list[Numbers]) -> str:
    """Time and memory against V, B * L and D, where these vary, as log-log plots (SVG)."""
    axes: dict[str, Callable[[Numbers], int]] = {
        "V": lambda r: r["vocab"],
        "B * L": lambda r: r["batch"] * r["length"],
        "D": lambda r: r["width"],
    }
    base = rows[0]
    if all(r["width"] == base["width"] for r in rows):
        del axes["D"]
    rows = [r for r in rows if "tokens_per_second" in r]
    pictures = []
    for y_label, y in (
        ("ms per step", lambda r: r["ms_per_step"]),
        ("peak memory, MiB", lambda r: r["peak_memory_bytes"] / 2**20),
    ):
        for x_label, x in axes.items():
            others = [other for label, other in axes.items() if label != x_label]
            kept = [r for r in rows if all(other(r) == other(base) for other in others)]
            lines = []
            for space, colour in zip(SPACES, ("s1", "s2"), strict=True):
                found = sorted((x(r), y(r)) for r in kept if r["space"] == space)
                if found:
                    law = "" if (power := slope(found)) is None else f", exponent {power:.2f}"
                    lines.append(Series(space + law, *np.array(found, float).T, colour=colour))
            title = f"{y_label} against {x_label}; exponents at the end"
            pictures.append(
                Picture("", title, x_label, y_label, tuple(lines), log_x=True, log_y=True)
            )
    return draw(*pictures, columns=len(axes))


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Exponent of the power law between the last two points; None if there are fewer."""
    if len(points) < 2 or points[-1][0] == points[-2][0]:
        return None
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)
