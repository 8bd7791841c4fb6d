"""The parts of the page: each takes a Run and returns HTML."""

import datetime
import re
import statistics

import numpy as np

from flm_jax.evals.base import format_value
from flm_jax.report.charts import Series, chart
from flm_jax.report.markup import (
    details,
    duration,
    escape,
    facts,
    note,
    number,
    plural,
    section,
    short,
    tabs,
)
from flm_jax.report.strip import strip
from flm_jax.report.workdir import Run

MAX_TEXTS = 8  # shown at once; the rest opens with a click
MAX_TABS = 12
_TAU = re.compile(r"eval/loss_tau_([0-9.]+)$")
_KINDS = {"model": "model", "yardstick": "yardstick", "data": "real text"}


def series(run: Run, name: str, **options) -> Series | None:
    """Return the logged values of one name over steps, None where there are none."""
    points = [(row["step"], row[name]) for row in run.metrics if _is_number(row.get(name))]
    if not points:
        return None
    x, y = np.array(points, dtype=np.float64).T
    return Series(options.pop("title", name), x, y, **options)


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
    if _is_number(seconds):
        facts_.append(f"{duration(seconds)} of training")
    if _is_number(info.get("parameters")):
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
    values = [(row, value) for row, value in values if _is_number(value)]
    models = [(row, value) for row, value in values if row["kind"] == "model"]
    if not models:
        return None
    data = next((value for row, value in values if row["kind"] == "data"), None)
    row, value = models[_best(models, column, data)]
    others = [
        f"{other['name']}: {format_value(v, column)}"
        for other, v in values
        if other["kind"] != "model"
    ]
    return column["title"], format_value(value, column), "; ".join([row["name"], *others])


def _best(models: list, column: dict, data: float | None) -> int:
    """Index of the model row that is best in this column."""
    numbers = [value for _, value in models]
    if column.get("better") == "data" and data is not None:
        return int(np.argmin([abs(value - data) for value in numbers]))
    return int(np.argmin(numbers) if column.get("better") == "lower" else np.argmax(numbers))


def samples(run: Run) -> str:
    """The final texts, one panel per step count."""
    entries = run.results.get("samples", [])[:MAX_TABS]
    if not entries:
        return section("samples", "Samples", note(_why(run, "results.json")))
    panels = []
    for entry in entries:
        title = entry.get("name") or plural(entry["steps"], "step")
        texts = entry["texts"]
        body = "".join(map(_text, texts[:MAX_TEXTS]))
        if len(texts) > MAX_TEXTS:
            body += details(
                f"{len(texts) - MAX_TEXTS} more", "".join(map(_text, texts[MAX_TEXTS:]))
            )
        if _is_number(entry.get("seconds")):
            body = f'<p class="note">{plural(len(texts), "text")} in {_time(entry)}</p>' + body
        panels.append((title, body))
    longest = max((len(text) for entry in entries for text in entry["texts"]), default=0)
    best = max(range(len(entries)), key=lambda i: entries[i].get("steps") or 0)
    return section(
        "samples",
        "Samples",
        tabs("samples", panels, opened=best, side_by_side=longest <= 1200),
        "Unselected texts; a step is one evaluation of the network for all tokens at once.",
    )


def table(run: Run) -> str:
    """The results table with a note on each column."""
    columns, rows = run.results.get("columns", []), run.results.get("rows", [])
    if not rows:
        return section("results", "Results", note(_why(run, "results.json")))
    data = next((row["values"] for row in rows if row["kind"] == "data"), {})
    marks = {column["key"]: _marked(rows, column, data.get(column["key"])) for column in columns}
    head = "".join(
        f'<th scope="col" title="{escape(c.get("help", ""))}">{escape(c["title"])}</th>'
        for c in columns
    )
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(
            _cell(row, column, data.get(column["key"]), marks[column["key"]] == i)
            for column in columns
        )
        kind = escape(_KINDS.get(row["kind"], row["kind"]))
        lines.append(
            f'<tr class="{escape(row["kind"])}"><th scope="row">{escape(row["name"])}'
            f"<small>{kind}</small></th>{cells}</tr>"
        )
    helps = "".join(
        f"<dt>{escape(c['title'])}</dt><dd>{escape(c.get('help', ''))}</dd>" for c in columns
    )
    sizes = sorted({row["tokens"] for row in rows if _is_number(row.get("tokens"))})
    measured = f"Each row is measured on {number(sizes[0])} tokens. " if len(sizes) == 1 else ""
    if len(sizes) > 1:
        measured = "The rows are measured on different numbers of tokens, so entropies of "
        measured += "smaller ones come out too low. "
    return section(
        "results",
        "Results",
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        + details("What the columns mean", f'<dl class="help">{helps}</dl>'),
        measured + "Small figures are the difference from real text; bold is the best model row.",
    )


def _marked(rows: list[dict], column: dict, data: float | None) -> int | None:
    """Index of the best model row, if there is more than one and the column has a direction."""
    models = [
        (i, row["values"].get(column["key"]))
        for i, row in enumerate(rows)
        if row["kind"] == "model" and _is_number(row["values"].get(column["key"]))
    ]
    if len(models) < 2 or not column.get("better") or (column["better"] == "data" and data is None):
        return None
    return models[_best(models, column, data)][0]


def _cell(row: dict, column: dict, data: float | None, best: bool) -> str:
    value = row["values"].get(column["key"])
    text = escape(format_value(value, column))
    if best:
        text = f"<b>{text}</b>"
    if row["kind"] != "data" and _is_number(value) and _is_number(data):
        scale = 100 if column.get("unit") == "share" else 1
        text += f"<small>{scale * (value - data):+.{1 if scale == 100 else 2}f}</small>"
    return f"<td>{text.replace('-', '−')}</td>"


def curves(run: Run) -> str:
    """Training and held-out loss; held-out loss by noise level; everything else that was logged."""
    if not run.metrics:
        return section("curves", "Training", note(_why(run, "metrics.jsonl")))
    held_out = series(run, "eval/loss", title="held-out", colour="s2", dots=True)
    lines = [series(run, "loss", title="training"), held_out]
    lines = [line for line in lines if line is not None]
    parts = []
    if lines:
        parts.append(chart("loss", "Loss", lines, "step", "cross-entropy, nats per token"))
    if held_out is None:
        parts.append(note("no held-out loss was logged (eval/loss)"))
    parts.append(_by_tau(run))
    parts.append(_others(run))
    vocabulary = run.run.get("corpus", {}).get("vocab_size")
    lead = "Cross-entropy of the clean token given the noisy text, averaged over noise levels; not "
    lead += "a likelihood bound."
    if _is_number(vocabulary) and vocabulary > 1:
        lead += f" Guessing uniformly costs {np.log(vocabulary):.2f} nats."
    return section("curves", "Training", "".join(parts), lead)


def _by_tau(run: Run) -> str:
    names = sorted({name for row in run.metrics for name in row if _TAU.match(name)}, key=_tau_of)
    if not names:
        return ""
    lines = []
    for i, name in enumerate(names):
        shade = round(100 * i / max(1, len(names) - 1))
        line = series(run, name, title=f"τ {_tau_of(name):g}", shade=shade, dots=True)
        lines += [line] if line is not None else []
    over_steps = chart("tau-steps", "Held-out loss by noise level", lines, "step", "nats per token")
    steps = sorted({x for line in lines for x in line.x})
    picked = [steps[i] for i in sorted({round(k * (len(steps) - 1) / 3) for k in range(4)})]
    profiles = []
    for i, step in enumerate(picked):
        points = [
            (_tau_of(name), line.y[np.flatnonzero(line.x == step)[-1]])
            for name, line in zip(names, lines, strict=True)
            if (line.x == step).any()
        ]
        x, y = np.array(points).T
        shade = round(100 * i / max(1, len(picked) - 1))
        profiles.append(Series(f"step {number(int(step))}", x, y, shade=shade, dots=True))
    over_tau = chart(
        "tau-profile",
        "From noise to text",
        profiles,
        "τ (0 is noise, 1 is text)",
        "nats per token",
        log_switch=False,
    )
    return f'<div class="pair">{over_steps}{over_tau}</div>'


def _tau_of(name: str) -> float:
    return float(_TAU.match(name).group(1).rstrip("."))


def _others(run: Run) -> str:
    shown = {"step", "time", "loss", "eval/loss"}
    names = sorted({name for row in run.metrics for name in row if not _TAU.match(name)} - shown)
    charts = []
    for i, name in enumerate(names[:MAX_TABS]):
        line = series(run, name, colour="s3")
        if line is not None:
            charts.append(
                chart(f"other-{i}", name, [line], "step", "", log_switch=False, small=True)
            )
    if not charts:
        return ""
    return details("Everything else that was logged", f'<div class="grid3">{"".join(charts)}</div>')


def denoising(run: Run) -> str:
    """The denoising strip."""
    data = run.results.get("strip")
    lead = "The network's best guess at every position while one text is written."
    body = strip(data) if data else note(_why(run, "results.json", "a denoising strip"))
    return section("strip", "From noise to text", body, lead)


def progress(run: Run) -> str:
    """How samples changed during training."""
    by_step: dict[int, list[dict]] = {}
    for row in run.samples:
        by_step.setdefault(row["step"], []).append(row)
    if not by_step:
        return section("progress", "Samples during training", note(_why(run, "samples")))
    steps = sorted(by_step)
    picked = sorted({round(k * (len(steps) - 1) / 7) for k in range(8)})
    items = []
    for step in (steps[i] for i in picked):
        first, *rest = by_step[step]
        more = details(f"{len(rest)} more", "".join(_text(row["text"]) for row in rest[:MAX_TEXTS]))
        remark = ""
        if _is_number(first.get("sampler_steps")):
            remark = f"<small>{plural(first['sampler_steps'], 'sampler step')}</small>"
        items.append(
            f"<li><b>step {number(step)}</b>{remark}<div>{_text(first['text'])}"
            f"{more if rest else ''}</div></li>"
        )
    return section(
        "progress",
        "Samples during training",
        f'<ol class="timeline">{"".join(items)}</ol>',
        "The same starting noise at each of these training steps.",
    )


def corpus(run: Run) -> str:
    """Corpus statistics and where the time went."""
    described = run.run.get("corpus", {})
    body = facts(_flat(described)) if described else note(_why(run, "run.json"))
    return section("corpus", "Corpus", body)


def timings(run: Run) -> str:
    """Where the time went, as one bar."""
    parts = {k: v for k, v in run.run.get("timings", {}).items() if _is_number(v) and v > 0}
    if not parts:
        return section("time", "Time", note(_why(run, "run.json", "timings")))
    total = sum(parts.values())
    bars, keys = [], []
    for i, (name, seconds) in enumerate(parts.items()):
        label = re.sub(r"_s$", "", name).replace("_", " ")
        colour = f"s{i % 6 + 1}"
        bars.append(
            f'<i data-colour="{colour}" style="flex-grow:{max(seconds / total, 0.002):.4f}" '
            f'title="{escape(label)}: {duration(seconds)}"></i>'
        )
        keys.append(f'<span class="key" data-colour="{colour}">{escape(label)} ')
        keys.append(f"<b>{duration(seconds)}</b></span>")
    return section(
        "time",
        "Time",
        f'<div class="stack">{"".join(bars)}</div><p class="keys">{"".join(keys)}</p>',
        f"{duration(total)} in all.",
    )


def reproduce(run: Run) -> str:
    """Command, versions, hardware, config."""
    info = run.run
    parts = []
    if info.get("command"):
        parts.append(
            f'<div class="command"><pre><code>{escape(info["command"])}</code></pre>'
            '<button type="button" class="copy" hidden>copy</button></div>'
        )
    else:
        parts.append(note(_why(run, "run.json", "the command")))
    for title, key in (("Versions", "versions"), ("Hardware", "hardware")):
        values = _flat(info.get(key, {}))
        parts.append(f"<h3>{title}</h3>" + (facts(values) if values else note(f"no {key}")))
    parts.append(_config(run))
    return section("reproduce", "Run it again", "".join(parts))


def _config(run: Run) -> str:
    if not run.config:
        return note(_why(run, "config.json"))
    plain = {key: value for key, value in run.config.items() if not isinstance(value, dict)}
    groups = {"": plain} if plain else {}
    groups |= {key: value for key, value in run.config.items() if isinstance(value, dict)}
    blocks = []
    for name, values in groups.items():
        rows = "".join(
            f"<tr><th scope='row'>{escape(key)}</th><td>{escape(_setting(value))}</td></tr>"
            for key, value in _flat(values)
        )
        blocks.append(f"<div><h4>{escape(name or 'general')}</h4><table>{rows}</table></div>")
    return details("Config", f'<div class="config">{"".join(blocks)}</div>')


def _setting(value) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    pairs = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            pairs += _flat(value, f"{name}.")
        elif isinstance(value, list):
            pairs.append((name, ", ".join(map(str, value))))
        else:
            pairs.append((name, value))
    return pairs


def _text(text: str) -> str:
    return f'<p class="sample">{escape(text) or "<em>empty</em>"}</p>'


def _time(entry: dict) -> str:
    seconds, count = entry["seconds"], max(1, len(entry["texts"]))
    return f"{duration(seconds)} ({1000 * seconds / count:,.0f} ms each)"


def _why(run: Run, name: str, what: str = "this part") -> str:
    return f"Not here: {run.missing.get(name, f'{name} does not hold {what}')}."


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


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
