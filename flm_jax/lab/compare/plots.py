"""The pictures of a comparison as SVG files that stand alone, on white, to be printed.

No library that flm_jax needs draws PNG; a browser or `rsvg-convert` makes them from these.
"""

import math

import numpy as np

from flm_jax.lab.compare import curves
from flm_jax.lab.compare.curves import Picture
from flm_jax.lab.compare.findings import Results
from flm_jax.report.charts import Series, log_ticks, tick_labels, ticks
from flm_jax.report.markup import escape

_COLOURS = {  # as in the style sheet, on paper
    "s1": "#1f6f78",
    "s2": "#c2571a",
    "s3": "#4a5fb0",
    "s4": "#8a6d1b",
    "s5": "#8a3f7a",
    "s6": "#4b7a34",
    "s7": "#a3323b",
    "s8": "#5b6b76",
    "s9": "#2f8f4e",
    "s10": "#b0563f",
}
_LEFT, _TOP, _WIDTH, _HEIGHT = 70, 36, 430, 290  # of the plot
_LEGEND = 190


def pictures(results: Results) -> dict[str, str]:
    """Every picture by its name."""
    return {picture.name: draw(picture) for picture in curves.every(results)}


def draw(picture: Picture) -> str:
    """One picture as SVG."""
    x_low, x_high = _range(
        [x for one in picture.series for x in one.x] + list(picture.band or ()), picture.log_x
    )
    level = [] if picture.level is None else [picture.level]
    y_low, y_high = _range([y for one in picture.series for y in one.y] + level, False)

    def across(x: float) -> float:
        if picture.log_x:
            return _LEFT + _WIDTH * math.log(x / x_low) / math.log(x_high / x_low)
        return _LEFT + _WIDTH * (x - x_low) / (x_high - x_low)

    def down(y: float) -> float:
        return _TOP + _HEIGHT * (y_high - y) / (y_high - y_low)

    height = max(_TOP + _HEIGHT + 56, _TOP + 20 * len(picture.series) + 40)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + _LEGEND}" '
        f'height="{height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_LEFT}" y="20">{escape(picture.title)}</text>',
    ]
    if picture.band:
        left, right = (across(x) for x in picture.band)
        parts.append(
            f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{_HEIGHT}" '
            f'fill="{_COLOURS["s2"]}" fill-opacity="0.12"/>'
        )
    y_ticks = ticks(y_low, y_high)
    for y, label in zip(y_ticks, tick_labels(y_ticks), strict=True):
        parts.append(f'<path d="M{_LEFT},{down(y):.1f}h{_WIDTH}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{_LEFT - 8}" y="{down(y) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    x_ticks = (log_ticks if picture.log_x else ticks)(x_low, x_high)
    for x, label in zip(x_ticks, tick_labels(x_ticks), strict=True):
        parts.append(
            f'<text x="{across(x):.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">'
            f"{label}</text>"
        )
    bottom = _TOP + _HEIGHT
    parts.append(f'<path d="M{_LEFT},{bottom}h{_WIDTH}" stroke="#666"/>')
    parts.append(
        f'<text x="{_LEFT + _WIDTH / 2}" y="{bottom + 40}" text-anchor="middle">'
        f"{escape(picture.x_label)}</text>"
    )
    parts.append(
        f'<text transform="translate(14 {_TOP + _HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(picture.y_label)}</text>"
    )
    if picture.level is not None:
        parts.append(
            f'<path d="M{_LEFT},{down(picture.level):.1f}h{_WIDTH}" stroke="{_COLOURS["s2"]}" '
            'stroke-dasharray="5 4"/>'
        )
    for place, one in enumerate(picture.series):
        parts += _drawn(one, across, down, _TOP + 10 + 20 * place)
    if picture.level is not None:
        y = _TOP + 10 + 20 * len(picture.series)
        parts.append(_key("real text", _COLOURS["s2"], y, ' stroke-dasharray="5 4"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _drawn(one: Series, across, down, y_key: float) -> list[str]:
    colour = _COLOURS[one.colour]
    places = [(across(x), down(y)) for x, y in zip(one.x, one.y, strict=True)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return [
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places),
        _key(one.name, colour, y_key),
    ]


def _key(name: str, colour: str, y: float, dashed: str = "") -> str:
    x = _LEFT + _WIDTH + 16
    return (
        f'<path d="M{x},{y - 4}h22" stroke="{colour}" stroke-width="2"{dashed}/>'
        f'<text x="{x + 28}" y="{y}">{escape(name)}</text>'
    )


def _range(values: list[float], log: bool) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    if log:
        return (low, high) if high > low else (low / 2, low * 2)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.1
    return low - margin, high + margin
