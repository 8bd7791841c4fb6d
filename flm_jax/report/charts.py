"""Line charts as inline SVG that stretches with the page, with labels that do not.

A chart is drawn twice, over a linear and a logarithmic x axis; a check box (no script) shows one of
them. Long series are thinned to the extremes of some hundred bins, so a page stays small.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from flm_jax.report.markup import as_json, escape, number, short

BINS = 450
SMOOTH_FROM = 60  # points; shorter series are shown as they are


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: name, points, a colour class (or a shade 0..100 of the sequential scale).

    ``dashes`` are those of an SVG file, "5 4".
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    colour: str = "s1"
    shade: int | None = None
    dots: bool = False
    dashes: str = ""


def chart(
    identifier: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log_switch: bool = True,
    small: bool = False,
    band: tuple[float, float] | None = None,
    log_first: bool = False,
) -> str:
    """Return a <figure>: title, legend, plot with hover read-out, notes on values left out.

    `band` is a range of x that is shaded; `log_first` sets the switch to the logarithmic axis.
    """
    left_out = _left_out(series)
    series = [one for one in series if np.isfinite(one.y).any()]
    if not series:
        return f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption>' + (
            '<p class="note">no finite value was logged</p></figure>'
        )
    lines = [_Line.of(one) for one in series]
    low, high = _y_range(lines)
    views = [_view("lin", lines, low, high, x_label, band)]
    switch = ""
    if log_switch:
        views.append(_view("log", lines, low, high, x_label, band))
        switch = (
            f'<input type="checkbox" class="logx" id="{identifier}-log"{" checked" * log_first}>'
            f'<label class="switch" for="{identifier}-log">log {escape(x_label)}</label>'
        )
    legend = "".join(f'<span class="key" {_paint(one)}>{escape(one.name)}</span>' for one in series)
    smoothed = any(line.raw is not None for line in lines)
    hint = " · thin line: every value, thick line: moving average" if smoothed and not small else ""
    return (
        f'<figure class="chart{" small" if small else ""}">'
        f"<figcaption><b>{escape(title)}</b>{legend if len(series) > 1 or not small else ''}"
        f'<span class="unit">{escape(y_label)}{hint}</span></figcaption>'
        f"{switch}{''.join(views)}{left_out}</figure>"
    )


@dataclasses.dataclass(frozen=True)
class _Line:
    series: Series
    x: np.ndarray
    y: np.ndarray  # what is drawn strongly: the moving average, or the values themselves
    raw: np.ndarray | None  # what is drawn faintly

    @classmethod
    def of(cls, series: Series):
        finite = np.isfinite(series.y) & np.isfinite(series.x)
        x, y = series.x[finite], series.y[finite]
        if series.dots or len(y) < SMOOTH_FROM:
            return cls(series, x, y, None)
        return cls(series, x, moving_average(y), y)


def moving_average(y: np.ndarray) -> np.ndarray:
    """Average over 2 % of the points, over fewer near the start, where curves are steep."""
    index = np.arange(len(y))
    half = np.minimum(max(2, len(y) // 100), index // 3)
    sums = np.concatenate([[0.0], np.cumsum(y, dtype=np.float64)])
    first, last = index - half, np.minimum(index + half + 1, len(y))
    return (sums[last] - sums[first]) / (last - first)


def thin(position: np.ndarray, y: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return indices of at most 2·bins points that keep each bin's extremes (positions 0..1)."""
    if len(y) <= 2 * bins:
        return np.arange(len(y))
    bin_of = np.minimum((position * bins).astype(int), bins - 1)
    starts = np.flatnonzero(np.diff(bin_of, prepend=-1))
    ends = np.append(starts[1:], len(y))
    keep = {0, len(y) - 1}
    for start, end in zip(starts, ends, strict=True):
        keep.add(int(start + np.argmin(y[start:end])))
        keep.add(int(start + np.argmax(y[start:end])))
    return np.array(sorted(keep))


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers within [low, high]."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= count + 0.5:
            step *= factor
            break
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, int(high / step + 1e-9) + 1)]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return short labels, with more digits where they would be alike."""
    labels = [short(value) for value in values]
    if len(set(labels)) == len(labels):
        return labels
    step = min(abs(b - a) for a, b in itertools.pairwise(values))
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    return [f"{value:.{digits}f}".replace("-", "−") for value in values]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 10, 100, … within [low, high], with 2 and 5 between where there is room."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(exponents) > 4 else (1, 2, 5)
    values = [factor * 10.0**exponent for exponent in exponents for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def _y_range(lines: Sequence[_Line]) -> tuple[float, float]:
    """The range of all values; single spikes of long raw series may leave the picture."""
    shown = [line.y for line in lines]
    shown += [np.percentile(line.raw, [0.3, 99.7]) for line in lines if line.raw is not None]
    values = np.concatenate(shown)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _x_scale(lines: Sequence[_Line], view: str):
    """Return (low, high, function from x to 0..1, ticks)."""
    low = min(float(line.x[0]) for line in lines)
    high = max(float(line.x[-1]) for line in lines)
    if view == "lin":
        low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
        return low, high, lambda x: (x - low) / (high - low), ticks(low, high, 6)
    positive = [float(line.x[line.x > 0][0]) for line in lines if (line.x > 0).any()]
    low = min(positive, default=1.0)
    high = max(high, 1.1 * low)
    span = math.log(high / low)
    return low, high, lambda x: np.log(np.maximum(x, low) / low) / span, log_ticks(low, high)


def _view(
    view: str,
    lines: Sequence[_Line],
    low: float,
    high: float,
    x_label: str,
    band: tuple[float, float] | None,
) -> str:
    x_low, x_high, place, x_ticks = _x_scale(lines, view)
    y_ticks = ticks(low, high)

    def points(line, y):
        position = place(line.x)
        keep = thin(position, y)
        return keep, 1000 * position[keep], 1000 * (high - y[keep]) / (high - low)

    if band is not None:
        left, right = (min(max(float(place(np.float64(x))), 0.0), 1.0) for x in band)
        band = left, right
    faint, strong, hover = [], [], []
    for line in lines:
        if line.raw is not None:
            _, across, down = points(line, line.raw)
            faint.append(f'<path class="raw" {_paint(line.series)} d="{_path(across, down)}"/>')
        keep, across, down = points(line, line.y)
        strong.append(f'<path class="line" {_paint(line.series)} d="{_path(across, down)}"/>')
        if line.series.dots:
            dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(across, down, strict=True))
            strong.append(f'<path class="dot" {_paint(line.series)} d="{dots}"/>')
        hover.append(
            {
                "name": line.series.name,
                "colour": line.series.colour,
                "shade": line.series.shade,
                "x": [_round(x) for x in line.x[keep]],
                "y": [_round(y) for y in line.y[keep]],
            }
        )
    data = {"x": [x_low, x_high], "y": [low, high], "log": view == "log", "series": hover}
    return framed(
        view,
        [(float(place(np.float64(x))), label) for x, label in labelled(x_ticks)],
        [((high - y) / (high - low), label) for y, label in labelled(y_ticks)],
        escape(x_label),
        _summary(lines),
        "".join([*faint, *strong]),
        band,
        f'<script type="application/json">{as_json(data)}</script>',
    )


def labelled(values: Sequence[float]) -> Iterator[tuple[float, str]]:
    """Values with short labels."""
    yield from zip(values, tick_labels(values), strict=True)


def framed(
    view: str,
    x_labels: Sequence[tuple[float, str]],
    y_labels: Sequence[tuple[float, str]],
    x_name: str,
    summary: str,
    inside: str = "",
    band: tuple[float, float] | None = None,
    above: str = "",
) -> str:
    """Return a plot in its frame; places (0..1) are from the left and from the top.

    `inside` is SVG on 1000 x 1000, and `above` HTML that lies on it; `band` is shaded.
    """
    shaded = ""
    if band is not None:
        left, right = (1000 * edge for edge in band)
        shaded = (
            f'<rect class="band" data-colour="s2" x="{left:.1f}" y="0" '
            f'width="{right - left:.1f}" height="1000"/>'
        )
    grid = "".join(f'<path class="grid" d="M0 {1000 * y:.1f}H1000"/>' for y, _ in y_labels)
    y_texts = "".join(f'<span style="top:{100 * y:.2f}%">{label}</span>' for y, label in y_labels)
    x_texts = "".join(f'<span style="left:{100 * x:.2f}%">{label}</span>' for x, label in x_labels)
    return (
        f'<div class="view {view}"><div class="y">{y_texts}</div><div class="plot">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(summary)}">{shaded}{grid}{inside}</svg>{above}</div>'
        f'<div class="x">{x_texts}</div><div class="x-name">{x_name}</div></div>'
    )


def _path(across: np.ndarray, down: np.ndarray) -> str:
    if len(across) == 1:
        return f"M{across[0]:.1f} {down[0]:.1f}h0"
    inside = np.clip(down, 0, 1000)  # spikes of raw values end at the edge of the picture
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(across, inside, strict=True))


def _paint(series: Series) -> str:
    if series.shade is not None:
        return f'data-colour="shade" style="--shade:{series.shade}%"'
    return f'data-colour="{series.colour}"'


def _round(value: float) -> float:
    return float(f"{value:.5g}") if value != int(value) else int(value)


def _summary(lines: Sequence[_Line]) -> str:
    parts = (f"{line.series.name} from {short(line.y[0])} to {short(line.y[-1])}" for line in lines)
    return "; ".join(parts)


def _left_out(series: Sequence[Series]) -> str:
    notes = []
    for one in series:
        bad = one.x[~np.isfinite(one.y)]
        if len(bad):
            steps = ", ".join(number(float(step)) for step in bad[:5]) + (
                ", …" if len(bad) > 5 else ""
            )
            notes.append(f"{one.name}: not a finite number at {steps}")
    return f'<p class="note warn">{escape("; ".join(notes))}</p>' if notes else ""
