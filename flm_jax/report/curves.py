"""Everything that was logged over training steps, as charts."""

import re

import numpy as np

from flm_jax.report.charts import Series, chart
from flm_jax.report.markup import details, is_number, note, number
from flm_jax.report.strip import spread
from flm_jax.report.workdir import Run, why

MAX_OTHERS = 16
_CROSS_ENTROPY = "cross-entropy, nats per token"
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
    trained, plain, unit, lead = _quantities(run)
    training = series(run, trained, title="training")
    parts = []
    if plain or held_out is None:
        lines = [line for line in (training, held_out) if line is not None]
        if lines:
            parts.append(chart("loss", "Loss", lines, "step", unit))
    else:
        title = "Training: the objective"
        left = chart("loss", title, [training], "step", unit) if training is not None else ""
        title = "Held-out: cross-entropy"
        right = chart("held-out", title, [held_out], "step", _CROSS_ENTROPY)
        parts.append(f'<div class="pair">{left}{right}</div>')
    if held_out is None:
        parts.append(note("no held-out loss was logged (eval/loss)"))
    parts.append(_by_tau(run))
    parts.append(_others(run, trained))
    return "".join(parts), lead


def _quantities(run: Run) -> tuple[str, bool, str, str]:
    """What was minimised and what was measured on held-out rows, and whether they are the same.

    Held-out rows cost a denoiser the cross-entropy at each noise level, whatever its loss is (a
    distillation's has a target of another kind), and any other network its own loss; see
    `flm_jax.inference.heldout`.

    Returns: the logged name of the training loss, whether it is what "eval/loss" is, its unit, and
    a text that explains both.
    """
    loss = run.config.get("loss", {}).get("name", "flow_matching")
    if loss == "flow_matching":
        weighted = run.config.get("model", {}).get("loss_weighting", False)
        text = "Cross-entropy of the clean token given the noisy text, averaged over noise levels; "
        text += f"not a likelihood bound.{_guessing(run)}"
        return "nll" if weighted else "loss", True, _CROSS_ENTROPY, text  # nll has no weights
    if not _tau_names(run):
        text = f"The objective of {loss}, per token, on training rows and on held-out rows."
        return "loss", True, f"objective of {loss}, per token", text
    text = f"Training minimises the objective of {loss}; held-out is another quantity, on an axis "
    text += "of its own: the cross-entropy of the clean token given the noisy text at one time, "
    text += f"averaged over noise levels.{_guessing(run)}"
    return "loss", False, f"objective of {loss}, per token", text


def _guessing(run: Run) -> str:
    vocabulary = run.run.get("corpus", {}).get("vocab_size")
    if not is_number(vocabulary) or vocabulary <= 1:
        return ""
    return f" Guessing uniformly costs {np.log(vocabulary):.2f} nats."


def _tau_names(run: Run) -> list[str]:
    return sorted(filter(_TAU.match, _logged(run)), key=_tau_of)


def _logged(run: Run) -> set[str]:
    return {name for row in run.metrics for name in row}


def _by_tau(run: Run) -> str:
    names = _tau_names(run)
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
    found = _TAU.match(name)
    assert found is not None, name  # as `_tau_names` chooses them
    return float(found.group(1).rstrip("."))


def _others(run: Run, trained: str) -> str:
    shown = {"step", "time", trained, "eval/loss"}
    names = sorted(name for name in _logged(run) - shown if not _TAU.match(name))
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
