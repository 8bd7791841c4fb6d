"""Reads what a run left in its workdir, whole or not."""

import dataclasses
import json
import os
import pathlib
import re
from typing import Any, TypeAlias

from flm_jax.errors import UserError
from flm_jax.host import runlog

Json: TypeAlias = dict[str, Any]  # an object of a JSON file, whose keys may be missing

WRITTEN_AT = {
    "config.json": "at the start of a run",
    "run.json": "at the start of a run",
    "metrics.jsonl": "while a run is training, every train.log_every steps",
    "samples": "while a run is training, every train.sample_every steps",
    "results.json": "at the end of a run",
}


@dataclasses.dataclass
class Run:
    """What is known of a run. Absent parts are empty; `missing` says which, and why."""

    path: pathlib.Path
    config: Json
    run: Json
    metrics: list[Json]
    samples: list[Json]
    results: Json
    missing: dict[str, str]


def load(workdir: str | os.PathLike) -> Run:
    """Read a workdir; UserError where there is none or nothing of a run is in it."""
    path = pathlib.Path(workdir).expanduser()
    if not path.is_dir():
        raise UserError(
            f"there is no directory {path}; give --workdir the folder that a training run wrote"
        )
    if not any((path / name).exists() for name in WRITTEN_AT):
        raise UserError(
            f"{path} has none of {', '.join(WRITTEN_AT)}; give --workdir the folder that a "
            "training run wrote"
        )
    missing: dict[str, str] = {}
    objects = {
        name: _read_object(path / name, missing)
        for name in ("config.json", "run.json", "results.json")
    }
    rows = runlog.read(path)
    if not rows:
        missing["metrics.jsonl"] = _absent("metrics.jsonl")
    samples = _read_samples(path / "samples")
    if not samples:
        missing["samples"] = _absent("samples")
    return Run(
        path.resolve(),
        objects["config.json"],
        objects["run.json"],
        rows,
        samples,
        objects["results.json"],
        missing,
    )


def _absent(name: str) -> str:
    return f"{name} is missing or empty; it is written {WRITTEN_AT[name]}"


def _read_object(path: pathlib.Path, missing: dict[str, str]) -> Json:
    if not path.is_file():
        missing[path.name] = _absent(path.name)
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        missing[path.name] = f"{path.name} is not valid JSON ({error})"
        return {}
    if not isinstance(value, dict):
        missing[path.name] = f"{path.name} is not a JSON object"
        return {}
    return value


def _read_samples(folder: pathlib.Path) -> list[Json]:
    """Return the rows of samples/step_*.jsonl by step and index; unreadable lines are omitted."""
    rows = []
    for path in folder.glob("step_*.jsonl") if folder.is_dir() else ():
        named = re.search(r"\d+", path.name)
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("text"), str):
                row.setdefault("step", int(named.group()) if named else 0)
                rows.append(row)
    return sorted(rows, key=lambda row: (row["step"], row.get("index", 0)))


def why(run: Run, name: str, what: str = "this part") -> str:
    """Say why something that file `name` should hold is not shown."""
    return f"Not here: {run.missing.get(name, f'{name} does not hold {what}')}."
