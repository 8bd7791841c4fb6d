"""Log-log plots as a stand-alone SVG file: measured costs and the slopes they follow."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 380, 260  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 26, 40
COLOURS = ("#1f6fb4", "#c8541b", "#3a8f3a", "#7d4ba3")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot; ``lines`` maps a name to points (x, y), both positive, in the order of x."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def draw(panels: Sequence[Panel], columns: int = 2) -> str:
    """All panels side by side as one SVG."""
    rows = -(-len(panels) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * WIDTH} {rows * HEIGHT}" '
        f'width="{columns * WIDTH}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        x, y = (i % columns) * WIDTH, (i // columns) * HEIGHT
        parts.append(f'<g transform="translate({x},{y})">{_panel(panel)}</g>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Exponent of the power law between the last two points; None if there are fewer."""
    if len(points) < 2 or points[-1][0] == points[-2][0]:
        return None
    (x0, y0), (x1, y1) = points[-2:]
    return math.log(y1 / y0) / math.log(x1 / x0)


def _range(values: list[float]) -> tuple[float, float]:
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.06 * (high - low), 0.05)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside, thinned to powers of ten if they are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    fine = [
        m * 10.0**p for p in powers for m in (1, 2, 5) if low <= math.log10(m * 10.0**p) <= high
    ]
    coarse = [10.0**p for p in powers if low <= p <= high]
    return coarse if len(fine) > 8 and len(coarse) > 1 else fine


def _panel(panel: Panel) -> str:
    title = f'<text x="{LEFT}" y="16" font-weight="bold">{html.escape(panel.title)}</text>'
    every = [point for line in panel.lines.values() for point in line]
    if not every:
        return f'{title}<text x="{LEFT}" y="{HEIGHT / 2}">nothing fitted</text>'
    (x_low, x_high), (y_low, y_high) = _range([x for x, _ in every]), _range([y for _, y in every])

    def across(x):
        share = (math.log10(x) - x_low) / (x_high - x_low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def down(y):
        share = (math.log10(y) - y_low) / (y_high - y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [title]
    for x in _ticks(x_low, x_high):
        parts.append(f'<path d="M{across(x)} {TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{across(x)}" y="{bottom + 14}" text-anchor="middle">{x:,g}</text>')
    for y in _ticks(y_low, y_high):
        parts.append(f'<path d="M{LEFT} {down(y)}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{down(y) + 4}" text-anchor="end">{y:,g}</text>')
    parts.append(
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{html.escape(panel.x_label)}</text>"
    )
    for i, (name, points) in enumerate(panel.lines.items()):
        if not points:
            continue
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{across(x)},{down(y)}" for x, y in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        parts += [f'<circle cx="{across(x)}" cy="{down(y)}" r="2.6" fill="{colour}"/>'
                  for x, y in points]  # fmt: skip
        power = slope(points)
        law = "" if power is None else f", exponent {power:.2f} at the end"
        parts.append(
            f'<text x="{LEFT + 6}" y="{TOP + 12 + 13 * i}" fill="{colour}">'
            f"{html.escape(name)}{law}</text>"
        )
    return "".join(parts)
