"""The top of the page: what was trained, on what, how long, and its numbers as it is used."""

import datetime
import statistics

import numpy as np

from flm_jax.evals import verdict
from flm_jax.evals.base import format_value
from flm_jax.report.curves import series
from flm_jax.report.markup import duration, escape, is_number, number, plural, short
from flm_jax.report.results import default_row, fault
from flm_jax.report.workdir import Json, Run

# How a run ends well, by the word of run.json, and what to call it.
FINISHED = {"complete": "complete", "time limit": "complete: time budget used"}
PERIODIC = ("samples", "metrics.jsonl")  # written at times of the config


def headline(run: Run) -> str:
    """What was trained, on what, how long, and its numbers."""
    info = run.run
    stopped = info.get("stopped", "not finished")
    good = stopped in FINISHED
    shown = escape(FINISHED.get(stopped, stopped))
    badge = f'<span class="badge {"good" if good else "open"}">{shown}</span>'
    steps = max([row["step"] for row in run.metrics] + [info.get("step", 0)])
    facts_ = []
    if steps:
        facts_.append(plural(steps, "step"))
    seconds = info.get("timings", {}).get("train_s")
    if is_number(seconds):
        facts_.append(f"{duration(seconds)} of training")
    if is_number(info.get("parameters")):
        facts_.append(f"{short(info['parameters'])} parameters")
    hardware = info.get("hardware", {})
    if hardware:
        facts_.append(_device(hardware))
    if info.get("started"):
        facts_.append(f"started {_date(info['started'])}")
    kind, corpus = _kind(run.config), _corpus_name(run)
    title = f"{kind} trained on <em>{escape(corpus)}</em>" if corpus else kind
    tiles = "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f"<small>{escape(remark)}</small></div>"
        for label, value, remark in _tiles(run)
    )
    # A short run ends before its first samples or numbers are due: no fault, so no warning.
    expected = [name for name in run.missing if not (good and name in PERIODIC)]
    absent = "".join(f"<li>{escape(run.missing[name])}</li>" for name in expected)
    absent = f'<ul class="missing">{absent}</ul>' if absent else ""
    return (
        f'<header><p class="over">flm_jax · {escape(run.path.name)} {badge}</p><h1>{title}</h1>'
        f'<p class="lead">{escape(" · ".join(facts_))}</p>{absent}{_said(run)}'
        f'<div class="tiles">{tiles}</div></header>'
    )


def _said(run: Run) -> str:
    """The verdict on the samples of the default number of steps."""
    rows = run.results.get("rows", [])
    pairs, row = verdict.read(rows), default_row(rows)
    if pairs is None or row is None:
        return ""
    point = pairs.points.get(rows.index(row))
    if point is None:
        return ""
    said = f"{point.name}: {verdict.sentence(point, pairs.real, pairs.unit)}."
    return f'<p class="said">{escape(said)}</p>'


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    rows, columns = run.results.get("rows", []), run.results.get("columns", [])
    pairs = verdict.read(rows)
    first = (pairs.likelihood, verdict.DIVERSITY) if pairs else ()
    wanted = [c for c in columns if c.get("better") == "higher"]
    wanted += [c for c in columns if c.get("key") in ("bigram_entropy", "sample_entropy")]
    tiles = [_tile(rows, column) for column in columns if column.get("key") in first]
    tiles += [_held_out(run), *(_tile(rows, column) for column in wanted)]
    speed = series(run, "tokens_per_second")
    if speed is not None:
        median = statistics.median(speed.y)
        tiles.append(("speed", short(median), "tokens per second in training (median)"))
    return [tile for tile in tiles if tile is not None]


def _held_out(run: Run) -> tuple[str, str, str] | None:
    held_out = series(run, "eval/loss")
    if held_out is None or not np.isfinite(held_out.y).any():
        return None
    losses, at = held_out.y[np.isfinite(held_out.y)], held_out.x[np.isfinite(held_out.y)]
    remark = f"nats per token, at step {number(int(at[-1]))}"
    if losses.min() < losses[-1]:
        lowest = int(losses.argmin())
        remark += f"; lowest: {losses[lowest]:.3f} at step {number(int(at[lowest]))}"
    return "held-out loss", f"{losses[-1]:.3f}", remark


def _tile(rows: list[Json], column: Json) -> tuple[str, str, str] | None:
    """The value of the model at its default number of steps; real text's and others' beside it."""
    key, row = column["key"], default_row(rows)
    if row is None or not is_number(row["values"].get(key)):
        return None
    real = [other for other in rows if other["kind"] == "data"]
    others = real[::-1] + [other for other in rows if other["kind"] not in ("model", "data")]
    why = fault(row, rows.index(row), rows)
    name = row["name"] + ", which repeats itself" * (why == "repeats itself")
    beside = [
        f"{other['name']}: {format_value(other['values'][key], column)}".replace(" %", "\u00a0%")
        for other in others
        if is_number(other["values"].get(key))
    ]
    return column["title"], format_value(row["values"][key], column), "; ".join([name, *beside])


def _kind(config: Json) -> str:
    """What was trained, in words."""
    loss = config.get("loss", {}).get("name", "flow_matching")
    if loss == "flow_matching":
        return "Flow language model"
    flow_map = config.get("model", {}).get("two_times", False)
    return f"{'Flow map language' if flow_map else 'Language'} model ({loss})"


def _corpus_name(run: Run) -> str:
    data = run.config.get("data", {})
    for source in (run.run.get("corpus", {}), data if isinstance(data, dict) else {}):
        for key in ("name", "dataset", "corpus"):
            if isinstance(source.get(key), str):
                return source[key]
    return ""


def _device(hardware: Json) -> str:
    device = str(hardware.get("device") or hardware.get("platform") or "")
    if hardware.get("platform") == "cpu":
        return plural(hardware["host_cores"], "CPU core") if "host_cores" in hardware else "CPU"
    count = hardware.get("devices", 1)
    return f"{count} × {device}" if count != 1 else device


def _date(text: str) -> str:
    try:
        return datetime.datetime.fromisoformat(text).strftime("%-d %B %Y, %H:%M")
    except ValueError:
        return text
