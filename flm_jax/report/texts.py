"""Samples: the final ones per step count, the strip, and those written during training."""

from flm_jax.report.markup import details, duration, escape, is_number, note, number, plural, tabs
from flm_jax.report.strip import spread, strip
from flm_jax.report.workdir import Json, Run, why

MAX_TEXTS = 5  # shown at once; the rest opens with a click
MAX_PANELS = 12
MAX_MOMENTS = 9  # training steps whose samples are shown
LONG = 1200  # characters; longer texts are shown one panel at a time


def samples(run: Run) -> tuple[str, str]:
    """The final texts, one panel per step count (or per "name", such as real text)."""
    entries = run.results.get("samples", [])[:MAX_PANELS]
    if not entries:
        return note(why(run, "results.json", "samples")), ""
    panels = []
    for entry in entries:
        title = entry.get("name") or plural(entry["steps"], "step")
        body = _boxes(entry["texts"])
        if is_number(entry.get("seconds")):
            body = note(_time(entry.get("written", len(entry["texts"])), entry["seconds"])) + body
        panels.append((title, body))
    longest = max((len(text) for entry in entries for text in entry["texts"]), default=0)
    usual = max((i for i, entry in enumerate(entries) if entry.get("steps")), default=0)
    lead = "Unselected texts. A step is one evaluation of the network, for all tokens at once."
    return tabs("samples", panels, opened=usual, side_by_side=longest <= LONG), lead


def denoising(run: Run) -> tuple[str, str]:
    """The denoising strip."""
    data = run.results.get("strip")
    if not data:
        return note(why(run, "results.json", "a denoising strip")), ""
    return strip(data), "The network's best guess at every position while a text is written."


def progress(run: Run) -> tuple[str, str]:
    """How samples changed during training."""
    by_step: dict[int, list[Json]] = {}
    for row in run.samples:
        by_step.setdefault(row["step"], []).append(row)
    if not by_step:
        return note(why(run, "samples")), ""
    steps = sorted(by_step)
    items = []
    for step in (steps[i] for i in spread(len(steps), MAX_MOMENTS)):
        rows = by_step[step]
        taken = rows[0].get("sampler_steps")
        remark = f"<small>{plural(taken, 'sampler step')}</small>" if is_number(taken) else ""
        boxes = _boxes([row["text"] for row in rows], at_once=1)
        items.append(f"<li><h3>step {number(step)}{remark}</h3>{boxes}</li>")
    return f'<ol class="moments">{"".join(items)}</ol>', "From the same seed at each step."


def _boxes(texts: list[str], at_once: int = MAX_TEXTS) -> str:
    boxes = [f'<p class="sample">{escape(text) or "<em>empty</em>"}</p>' for text in texts]
    more = "".join(boxes[at_once:])
    return "".join(boxes[:at_once]) + (
        details(f"{len(texts) - at_once} more", more) if more else ""
    )


def _time(count: int, seconds: float) -> str:
    return f"{plural(count, 'text')} in {duration(seconds)}"
