"""Small pieces of HTML, and numbers as people read them. Everything that is text gets escaped."""

import html
import json
import math
from collections.abc import Sequence
from typing import TypeGuard


def escape(value) -> str:
    """Return the value as text that is safe in HTML content and in quoted attributes."""
    return html.escape(str(value), quote=True)


def as_json(value) -> str:
    """Return JSON that is safe inside a <script> element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def number(value) -> str:
    """Return 12,345 or 2.417 or 3.0e-04 for a number, the text itself for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
    if isinstance(value, int) or (value == round(value) and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def short(value: float) -> str:
    """Return a number in at most six signs: 950, 12.5k, 3.4M, 0.025, 3e-04."""
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.3g}{unit}".replace("-", "−")
    if value == 0 or size >= 1e-3:
        return f"{value:.3g}".replace("-", "−")
    return f"{value:.0e}".replace("-", "−")


def duration(seconds: float) -> str:
    """Return 0.8 s, 42 s, 4 min 12 s or 3 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def plural(count: float, noun: str) -> str:
    """Return "1 step" or "1,200 steps"."""
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def note(text: str) -> str:
    """Return a muted line that says why something is not shown."""
    return f'<p class="note">{escape(text)}</p>'


def section(identifier: str, title: str, body: str, lead: str = "") -> str:
    """Return a section with a heading; `lead` is text that explains it."""
    lead = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{escape(identifier)}"><h2>{escape(title)}</h2>{lead}{body}</section>\n'


def details(summary: str, body: str, open_: bool = False) -> str:
    """Return a part that opens with a click."""
    return (
        f"<details{' open' if open_ else ''}><summary>{escape(summary)}</summary>{body}</details>"
    )


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """Return name–value pairs as a grid."""
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(number(value))}</dd></div>"
        for name, value in pairs
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def tabs(
    group: str,
    panels: Sequence[tuple[str, str]],
    opened: int = 0,
    side_by_side: bool | None = None,
) -> str:
    """Return panels (title, body) behind tabs that work without a script (12 at most).

    `side_by_side` adds a switch that shows all at once and says how it stands at first.
    """
    if len(panels) == 1:
        return panels[0][1]
    parts = []
    for i, (title, _) in enumerate(panels):
        checked = " checked" if i == opened else ""
        parts.append(
            f'<input type="radio" name="{group}" id="{group}-{i}"{checked}>'
            f'<label class="tab" for="{group}-{i}">{escape(title)}</label>'
        )
    if side_by_side is not None:
        checked = " checked" if side_by_side else ""
        parts.append(
            f'<input type="checkbox" class="side" id="{group}-side"{checked}>'
            f'<label class="switch" for="{group}-side">side by side</label>'
        )
    bodies = "".join(
        f'<div class="panel"><h3 class="panel-title">{escape(title)}</h3>{body}</div>'
        for title, body in panels
    )
    return f'<div class="tabs">{"".join(parts)}<div class="panels">{bodies}</div></div>'


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether the value of a JSON file is a number (a truth value is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool)
