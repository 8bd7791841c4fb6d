"""Milliseconds of every method at every number of evaluations, on one backbone: a table.

Models are runs, or networks at random whose config is that of a stage of a config file. Every row
is measured in this process, one after the other; ratios are against the autoregressive model of the
same length, where there is one.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.host import files, numerics, progress
from flm_jax.lab.benchmark import LATENCY
from flm_jax.lab.benchmark.vocabulary import vocabulary_size
from flm_jax.lab.compare import grid, latency
from flm_jax.lab.compare.results import OPTION, Point, Setting
from flm_jax.lab.plan import program
from flm_jax.samplers.ancestral import RANDOM, AncestralMasked
from flm_jax.tokenizers.characters import Characters

METHODS = ("flm", "fmlm", "mdlm", "duo", "ar")
STAGES = {"flm": "pretrain", "fmlm": "distill"}  # of methods that are called otherwise
CAUSAL = "autoregressive"
CACHED: tuple[Setting, ...] = ((f"{OPTION}cache", "True"),)


class Row(NamedTuple):
    """How something writes, and how long that takes."""

    point: Point
    found: latency.Latency

    def json(self) -> dict[str, Any]:
        point = dataclasses.asdict(self.point)
        asked = {"asked_evaluations": point.pop("evaluations")}
        return point | asked | dataclasses.asdict(self.found)


def configs(
    path: str, overrides: Mapping[str, str], methods: Sequence[str]
) -> dict[str, config_lib.Config]:
    """The config of every method: a stage of a config file.

    Without methods those of a FILE:STAGE alone, or `METHODS` of a FILE.
    """
    if ":" not in path.rpartition("/")[2]:
        names = {method: STAGES.get(method, method) for method in methods or METHODS}
        return {name: config_lib.load(f"{path}:{x}", overrides) for name, x in names.items()}
    if methods:
        listed = ",".join(methods)
        raise UserError(f"--config={path} names a stage, and --methods={listed} others; omit one")
    config = config_lib.load(path, overrides)
    return {config.stage: config}


@numerics.pinned()
def runs(paths: Sequence[str]) -> dict[str, inference.FlowModel]:
    """The models of runs, by the names of their folders; by their paths where those are alike."""
    names = [pathlib.Path(path).name for path in paths]
    unique = len(set(names)) == len(paths)
    return {
        name: inference.load(p) for name, p in zip(names if unique else paths, paths, strict=True)
    }


@numerics.pinned()
def untrained(config: config_lib.Config, vocab: int = 0) -> inference.FlowModel:
    """The network of a config with random parameters, without its text.

    Raises UserError if the vocabulary is not known without it, or a network of another kind is
    needed to write (the denoiser of a correction).
    """
    config = program.without_runs(config)
    experiment = Experiment(config, vocabulary_size(config, vocab))
    if experiment.loss.is_correction:
        raise UserError(f"the loss {config.loss.name!r} writes with its teacher; give runs instead")
    params = jax.jit(experiment.model.init)(numerics.key(config.seed))
    return inference.FlowModel(experiment, Characters("a"), params)  # of which only BOS is asked


def points(
    method: str, model: inference.FlowModel, evaluations: Sequence[int], length: int
) -> Iterator[Point]:
    """All that is measured of a model: its config's sampler, and the cache where it has one."""
    name = model.config.sampler.name
    rule, _ = latency.chosen(model, "", (), 1, length)
    for number in grid.counts(rule, evaluations, length):
        yield Point(method, number, name)
        can_cache = isinstance(rule, AncestralMasked) and rule.order == RANDOM and not rule.cache
        if can_cache and number > 1:
            yield Point(method, number, name, CACHED)


def table(
    models: Mapping[str, inference.FlowModel],
    evaluations: Sequence[int],
    lengths: Sequence[int],
    *,
    repeats: int = latency.REPEATS,
    max_batch: int = latency.MOST,
    each: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """A row for every length, model, number of evaluations; ``each`` sees them after every one.

    All mistakes are found before the first one is measured.
    """
    todo = [
        (model, point, length)
        for length in lengths or (0,)
        for method, model in models.items()
        for point in points(method, model, evaluations, length or model.config.data.length)
    ]
    for model, point, length in todo:
        given = point.sampler, point.settings, point.evaluations
        latency.chosen(model, *given, length or model.config.data.length)
    rows: list[Row] = []
    for model, point, length in progress.bar(todo, desc="latency"):
        found = latency.measure(
            model, point.sampler, point.settings, point.evaluations,
            length or model.config.data.length, repeats=repeats, max_batch=max_batch,
        )  # fmt: skip
        rows.append(Row(point, found))
        each(rows)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table for people."""
    titles = (
        "method", "L", "evaluations", "p50 ms", "p95 ms", "CPU ms", "of the autoregressive p50",
        "best batch", "sequences/s", "tokens/s", "of its tokens/s", "compiled in, s",
    )  # fmt: skip
    lines = [_line(titles), _line(["---", *["---:"] * (len(titles) - 1)])]
    causal = {row.found.length: row.found for row in rows if row.point.sampler == CAUSAL}
    for point, found in rows:
        other, time, rate = causal.get(found.length), "", ""
        if other is not None and other is not found:
            time = f"{found.p50_ms / other.p50_ms:.3g}"
            rate = f"{found.tokens_per_s / other.tokens_per_s:.3g}"
        name = f"{point.method}, {point.knobs}" if point.knobs else point.method
        numbers = found.p50_ms, found.p95_ms, found.cpu_ms
        lines.append(
            _line(
                [name, str(found.length), f"{found.evaluations:.4g}"]
                + [f"{number:,.1f}" for number in numbers]
                + [time, str(found.batch), f"{found.sequences_per_s:,.3g}"]
                + [f"{found.tokens_per_s:,.0f}", rate, f"{found.compile_s:.1f}"]
            )
        )
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(folder: pathlib.Path, rows: Sequence[Row]) -> None:
    """latency.md and latency.json."""
    numbers = json.dumps([row.json() for row in rows], indent=1)
    files.write_atomically(folder / f"{LATENCY}.md", markdown(rows))
    files.write_atomically(folder / f"{LATENCY}.json", numbers + "\n")
