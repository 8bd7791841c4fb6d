"""Everything that was logged over training steps, as charts."""

import re

import numpy as np

from flm_jax.report.charts import Series, chart
from flm_jax.report.markup import details, is_number, note, number
from flm_jax.report.strip import spread
from flm_jax.report.workdir import Run, why

MAX_OTHERS = 12
_TAU = re.compile(r"eval/loss_tau_([0-9.]+)$")


def series(run: Run, name: str, **options) -> Series | None:
    """Return the logged values of one name over steps, None where there are none."""
    points = [(row["step"], row[name]) for row in run.metrics if is_number(row.get(name))]
    if not points:
        return None
    x, y = np.array(points, dtype=np.float64).T
    return Series(options.pop("title", name), x, y, **options)


def curves(run: Run) -> tuple[str, str]:
    """Training and held-out loss; held-out loss by noise level; everything else that was logged."""
    if not run.metrics:
        return note(why(run, "metrics.jsonl")), ""
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
    if is_number(vocabulary) and vocabulary > 1:
        lead += f" Guessing uniformly costs {np.log(vocabulary):.2f} nats."
    return "".join(parts), lead


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
    picked = [steps[i] for i in spread(len(steps), 4)]
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
    for i, name in enumerate(names[:MAX_OTHERS]):
        line = series(run, name, colour="s3")
        if line is not None:
            charts.append(
                chart(f"other-{i}", name, [line], "step", "", log_switch=False, small=True)
            )
    if not charts:
        return ""
    return details("Everything else that was logged", f'<div class="grid3">{"".join(charts)}</div>')
