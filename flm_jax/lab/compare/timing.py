"""Milliseconds of one text, at every number of evaluations of a comparison.

Timed is what the comparison reads: the settings at which a method was drawn from for its front. Of
several samplers the slowest counts, since the front may lie between two of them. What was timed on
this machine is kept in ``latencies.json`` beside the results.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from flm_jax import inference
from flm_jax.host import compiled, distributed, files, progress
from flm_jax.lab.compare import latency, rates
from flm_jax.lab.compare.drawing import Trained
from flm_jax.lab.compare.results import Point

FILE = "latencies.json"
SECONDS = 3.0  # of runs of one program
Kept = dict[str, dict[str, Any]]


def milliseconds(
    trained: Sequence[Trained], points: Sequence[Point], folder: pathlib.Path
) -> dict[tuple[str, int], float]:
    """p50 of a text at batch 1, by (method, evaluations); what process 0 has timed.

    Args:
      trained: a network of each method; all seeds take as long.
      points: those that are read.
      folder: of the comparison.
    """
    if not distributed.is_main():
        return {}  # only process 0 writes the report
    here, kept = rates.device(), read(folder)
    found: dict[tuple[str, int], float] = {}
    for network in trained:
        mine = one_each([point for point in points if point.method == network.method])
        missing = [point for point in mine if key(point, here) not in kept]
        if missing:
            with progress.Waiting(f"timing {network.method}"):
                kept |= {key(point, here): dataclasses.asdict(one) for point, one in _timed(
                    network, missing
                )}  # fmt: skip
            files.write_atomically(folder / FILE, json.dumps(kept, indent=1) + "\n")
        for point in mine:
            place = point.method, point.evaluations
            found[place] = max(found.get(place, 0.0), kept[key(point, here)]["p50_ms"])
    return found


def one_each(points: Sequence[Point]) -> list[Point]:
    """A point of every number of evaluations and sampler, with a guide apart from those without.

    Other settings take no time.
    """
    kinds: dict[tuple[int, str, int], Point] = {}
    for point in points:
        kinds.setdefault((point.evaluations, point.sampler, point.steps()), point)
    return list(kinds.values())


def key(point: Point, device: str) -> str:
    """The name of a measurement."""
    return json.dumps([point.method, point.evaluations, point.sampler, point.knobs, device])


def read(folder: pathlib.Path) -> Kept:
    """What is kept; nothing, where it is damaged or not there."""
    with contextlib.suppress(OSError, json.JSONDecodeError):
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if isinstance(stored, Mapping):
            return dict(stored)
    return {}


def _timed(network: Trained, points: Sequence[Point]):
    model = inference.load(network.path)
    for point in points:
        yield (
            point,
            latency.measure(
                model,
                point.sampler,
                point.settings,
                point.evaluations,
                model.config.data.length,
                seconds=SECONDS,
                max_batch=1,
            ),
        )
    del model
    compiled.forget()
