"""Charts as SVG files that stand alone, on white, to be printed.

No library that flm_jax needs draws PNG; a browser or `rsvg-convert` makes them from these.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

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
_RIGHT, _BOTTOM = _LEFT + _WIDTH, _TOP + _HEIGHT
_LEGEND = 190
_REAL = "5 4"  # dashes of real text


@dataclasses.dataclass(frozen=True)
class Picture:
    """Lines over one axis.

    Attributes:
      name: an identifier.
      log_x, log_y: whether an axis goes by factors.
      band: the range of x that counts as that of real text.
      level: the value of real text, a line across; None without.
      y_range: what is shown; None: all values.
      x_ticks: the numbers below the axis; none: round ones.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False
    band: tuple[float, float] | None = None
    level: float | None = None
    y_range: tuple[float, float] | None = None
    x_ticks: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Axis:
    """From values to pixels: ``low`` lies at ``start``, ``high`` at ``end``."""

    low: float
    high: float
    log: bool
    start: int
    end: int

    @classmethod
    def over(cls, values: Sequence[float], log: bool, start: int, end: int) -> "_Axis":
        low, high = float(min(values)), float(max(values))
        if log:
            low, high = (low, high) if high > low else (low / 2, low * 2)
        else:
            more = 0.06 * (high - low) or 0.05 * abs(high) or 0.1
            low, high = low - more, high + more
        return cls(low, high, log, start, end)

    def place(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def labels(self, chosen: Sequence[float] = ()) -> Iterator[tuple[float, str]]:
        """(place, text) of the chosen numbers or of round ones."""
        round_ones = log_ticks(self.low, self.high) if self.log else ()
        values = chosen or round_ones or ticks(self.low, self.high)
        yield from zip(map(self.place, values), tick_labels(values), strict=True)


def draw(*pictures: Picture, columns: int = 1) -> str:
    """Pictures in rows of ``columns``, as one SVG."""
    most = max(len(picture.series) for picture in pictures)
    width, height = _RIGHT + _LEGEND, max(_BOTTOM + 56, _TOP + 20 * most + 40)
    rows = -(-len(pictures) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * width}" '
        f'height="{rows * height}" font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        parts.append(f'<g transform="translate({column * width} {row * height})">')
        parts += [*_picture(picture), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _picture(picture: Picture) -> Iterator[str]:
    yield _text(_LEFT, 20, picture.title)
    if not picture.series:
        yield _text(_LEFT, _TOP + _HEIGHT / 2, "nothing was measured")
        return
    level, band = picture.level, picture.band
    x_values = [x for one in picture.series for x in one.x]
    y_values = [y for one in picture.series for y in one.y]
    y_values += [] if level is None else [level]
    across = _Axis.over([*x_values, *(band or ())], picture.log_x, _LEFT, _RIGHT)
    down = _Axis.over(y_values, picture.log_y, _BOTTOM, _TOP)
    if picture.y_range:
        down = _Axis(*picture.y_range, picture.log_y, _BOTTOM, _TOP)
    if band:
        left, right = map(across.place, band)
        yield (
            f'<rect x="{left}" y="{_TOP}" width="{right - left:.1f}" height="{_HEIGHT}" '
            f'fill="{_COLOURS["s2"]}" fill-opacity="0.12"/>'
        )
    for y, label in down.labels():
        yield f'<path d="M{_LEFT},{y}h{_WIDTH}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y + 4, label, "end")
    for x, label in across.labels(picture.x_ticks):
        yield _text(x, _BOTTOM + 18, label, "middle")
    yield f'<path d="M{_LEFT},{_BOTTOM}h{_WIDTH}" stroke="#666"/>'
    yield _text(_LEFT + _WIDTH / 2, _BOTTOM + 40, picture.x_label, "middle")
    yield (
        f'<text transform="translate(14 {_TOP + _HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(picture.y_label)}</text>"
    )
    for number, one in enumerate(picture.series):
        places = [(across.place(x), down.place(y)) for x, y in zip(one.x, one.y, strict=True)]
        stroke, colour = _stroke(one.colour, one.dashes), _COLOURS[one.colour]
        yield f'<polyline points="{" ".join(f"{x},{y}" for x, y in places)}" fill="none"{stroke}/>'
        yield from (f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in places)
        yield from _key(one.name, stroke, number)
    if level is not None:
        stroke = _stroke("s2", _REAL)
        yield f'<path d="M{_LEFT},{down.place(level)}h{_WIDTH}"{stroke}/>'
        yield from _key("real text", stroke, len(picture.series))


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _stroke(colour: str, dashes: str) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f' stroke="{_COLOURS[colour]}" stroke-width="2"{dashed}'


def _key(name: str, stroke: str, number: int) -> Iterator[str]:
    x, y = _RIGHT + 16, _TOP + 10 + 20 * number
    yield f'<path d="M{x},{y - 4}h22"{stroke}/>'
    yield _text(x + 28, y, name)
