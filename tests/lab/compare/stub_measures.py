"""Stand-ins for the measures of a comparison: they look at nothing, and keep what they were given.

As a program: `python stub_measures.py WORDS OF FLM`, for tests that kill it.
"""

import json
import pathlib
import sys

from flm_jax import cli
from flm_jax.lab.compare import frontier, measuring, timing


def install(put=setattr) -> None:
    """Puts them in the place of the real ones; ``put`` may be that of pytest's monkeypatch."""
    put(measuring, "reference", lambda data, cache, **named: data)
    put(measuring, "measure", lambda drawn, reference: drawn)
    put(measuring, "real", lambda reference: None)
    put(measuring, "report", report)
    put(frontier, "choose", choose)
    put(timing, "milliseconds", lambda trained, points, folder: {})


def choose(found, real):
    """Every second point."""
    return [one.point for one in found][::2]


def report(folder, drawn, reference, *, title="", about=None, latencies=None):
    rows = [
        {
            "method": one.point.method,
            "seed": one.seed,
            "evaluations": one.point.evaluations,
            "knobs": one.point.knobs,
            "used": one.evaluations,
            "file": str(one.samples.relative_to(folder)),
        }
        for one in drawn
    ]
    text = json.dumps({"title": title, "rows": rows, "about": about})
    pathlib.Path(folder, "results.json").write_text(text)


if __name__ == "__main__":
    install()
    cli.main(sys.argv[1:])
