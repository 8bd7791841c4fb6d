"""The top of the page: what was trained, on what, how long, and the best numbers."""

import datetime
import statistics

import numpy as np

from flm_jax.evals.base import format_value
from flm_jax.report.curves import series
from flm_jax.report.markup import duration, escape, is_number, number, plural, short
from flm_jax.report.results import best_of
from flm_jax.report.workdir import Run


def headline(run: Run) -> str:
    """What was trained, on what, how long, and the best numbers."""
    config, info = run.config, run.run
    stopped = info.get("stopped", "not finished")
    good = stopped == "complete"
    badge = f'<span class="badge {"good" if good else "open"}">{escape(stopped)}</span>'
    steps = max((row["step"] for row in run.metrics), default=0)
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
    kind = "Flow language model"
    if config.get("loss", {}).get("name", "flow_matching") != "flow_matching":
        kind = f"Flow map language model ({config['loss']['name']})"
    corpus = _corpus_name(run)
    title = f"{kind} trained on <em>{escape(corpus)}</em>" if corpus else kind
    tiles = "".join(
        f'<div class="tile"><span>{escape(label)}</span><b>{escape(value)}</b>'
        f"<small>{escape(remark)}</small></div>"
        for label, value, remark in _tiles(run)
    )
    absent = "".join(f"<li>{escape(reason)}</li>" for reason in run.missing.values())
    absent = f'<ul class="missing">{absent}</ul>' if absent else ""
    return (
        f'<header><p class="over">flm_jax · {escape(run.path.name)} {badge}</p><h1>{title}</h1>'
        f'<p class="lead">{escape(" · ".join(facts_))}</p>{absent}'
        f'<div class="tiles">{tiles}</div></header>'
    )


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    tiles = []
    held_out = series(run, "eval/loss")
    if held_out is not None and np.isfinite(held_out.y).any():
        best = int(np.nanargmin(np.where(np.isfinite(held_out.y), held_out.y, np.nan)))
        tiles.append(
            (
                "held-out loss",
                f"{held_out.y[best]:.3f}",
                f"nats per token, at step {number(int(held_out.x[best]))}",
            )
        )
    rows = run.results.get("rows", [])
    wanted = [c for c in run.results.get("columns", []) if c.get("better") == "higher"]
    wanted += [c for c in run.results.get("columns", []) if c.get("key") == "bigram_entropy"]
    tiles += [tile for column in wanted if (tile := _best_tile(rows, column))]
    speed = series(run, "tokens_per_second")
    if speed is not None:
        median = statistics.median(speed.y)
        tiles.append(("speed", short(median), "tokens per second in training (median)"))
    return tiles


def _best_tile(rows: list[dict], column: dict) -> tuple[str, str, str] | None:
    key = column["key"]
    values = [(row, row["values"].get(key)) for row in rows]
    values = [(row, value) for row, value in values if is_number(value)]
    models = [(row, value) for row, value in values if row["kind"] == "model"]
    if not models:
        return None
    data = next((value for row, value in values if row["kind"] == "data"), None)
    row, value = models[best_of([value for _, value in models], column, data)]
    others = [
        f"{other['name']}: {format_value(v, column)}".replace(" %", "\u00a0%")
        for other, v in values
        if other["kind"] != "model"
    ]
    return column["title"], format_value(value, column), "; ".join([row["name"], *others])


def _corpus_name(run: Run) -> str:
    data = run.config.get("data", {})
    for source in (run.run.get("corpus", {}), data if isinstance(data, dict) else {}):
        for key in ("name", "dataset", "corpus"):
            if isinstance(source.get(key), str):
                return source[key]
    return ""


def _device(hardware: dict) -> str:
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
