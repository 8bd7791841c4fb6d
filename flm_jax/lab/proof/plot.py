"""A picture of the proof: the share of right texts against the number of network evaluations."""

from collections.abc import Mapping, Sequence

import numpy as np

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#ff7f0e", "#17becf", "#7f7f7f")
DASHES = ("", "5 4", "2 3", "9 3 2 3")  # of the ways in which one method writes


def picture(curves: Mapping[str, Sequence[tuple[int, float]]], task: str) -> str:
    """An SVG of curves of (evaluations, share), evaluations on a log scale.

    A method has one colour; its other ways of writing ("flm, grid 4") are dashed.
    """
    left, top, inner_w, inner_h = 60, 40, 420, 280
    width, height = 700, max(380, top + 22 * len(curves) + 30)
    numbers = sorted({steps for points in curves.values() for steps, _ in points})
    most = max(numbers, default=2)

    def place(steps: int, share: float) -> tuple[float, float]:
        x = left + inner_w * np.log2(steps) / max(np.log2(most), 1.0)
        return round(float(x), 1), round(top + inner_h * (1.0 - share), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22">{task}: share of right texts against network evaluations</text>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = place(1, share)
        parts.append(f'<path d="M{left},{y} h{inner_w}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 45}" y="{y + 4}">{100 * share:.0f} %</text>')
    for steps in numbers:
        if not steps & (steps - 1):  # a power of two: others would stand in its place
            x, y = place(steps, 0.0)
            parts.append(f'<text x="{x - 5}" y="{y + 20}">{steps}</text>')
    ways: dict[str, list[str]] = {}
    for curve in curves:
        ways.setdefault(curve.partition(", ")[0], []).append(curve)
    for i, (curve, points) in enumerate(curves.items()):
        method = curve.partition(", ")[0]
        colour = COLOURS[list(ways).index(method) % len(COLOURS)]
        dash = DASHES[ways[method].index(curve) % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        stroke = f'fill="none" stroke="{colour}" stroke-width="2"{dashed}'
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in sorted(points)))
        parts.append(f'<polyline points="{line}" {stroke}/>')
        for point in points:
            x, y = place(*point)
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        x, y = left + inner_w + 20, top + 10 + 22 * i
        parts.append(f'<path d="M{x},{y - 4} h22" {stroke}/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{curve}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
