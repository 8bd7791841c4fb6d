"""Corpus, time, and all that is needed to run the same again."""

import re

from flm_jax.report.markup import details, duration, escape, facts, is_number, note
from flm_jax.report.workdir import Json, Run, why


def corpus(run: Run) -> tuple[str, str]:
    """Corpus statistics."""
    described = run.run.get("corpus", {})
    if not described:
        return note(why(run, "run.json", "a description of the corpus")), ""
    return facts(_flat(described)), ""


def timings(run: Run) -> tuple[str, str]:
    """Where the time went, as one bar."""
    parts = {k: v for k, v in run.run.get("timings", {}).items() if is_number(v) and v > 0}
    if not parts:
        return note(why(run, "run.json", "timings")), ""
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
    body = f'<div class="stack">{"".join(bars)}</div><p class="keys">{"".join(keys)}</p>'
    return body, f"{duration(total)} in all."


def reproduce(run: Run) -> tuple[str, str]:
    """Command, versions, hardware, config."""
    info = run.run
    parts = []
    if info.get("command"):
        parts.append(
            f'<div class="command"><pre><code>{escape(info["command"])}</code></pre>'
            '<button type="button" class="copy" hidden>copy</button></div>'
        )
    else:
        parts.append(note(why(run, "run.json", "the command")))
    for title, key in (("Versions", "versions"), ("Hardware", "hardware")):
        values = _flat(info.get(key, {}))
        parts.append(f"<h3>{title}</h3>" + (facts(values) if values else note(f"no {key}")))
    parts.append(_config(run))
    return "".join(parts), ""


def _config(run: Run) -> str:
    if not run.config:
        return note(why(run, "config.json"))
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


def _flat(values: Json, prefix: str = "") -> list[tuple[str, object]]:
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
