"""Passes a run on to Weights & Biases, in a process of its own: JSON lines from standard input.

The first line says how to begin; the others are rows of numbers, samples, the report, and the end.
Started by `flm_jax.host.wandb_feed`, without this package. Standard input that ends without a
word is a training that was killed: its run counts as failed.

On standard output comes one JSON object if something fails: {"failed": why}. What W&B itself prints
goes to standard error.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

KILLED = 1  # exit code of a training that did not say how it ended


def serve(lines: Iterable[str]) -> None:
    """Everything, from the first line to the last."""
    items = _parsed(lines)
    first = next(items, None)
    if first is None:
        return
    sys.argv = first["argv"]  # what W&B shows as the run's command
    wandb: Any = importlib.import_module("wandb")  # which may be missing where types are checked
    known = wandb.Settings.model_fields
    chosen = {name: value for name, value in first["settings"].items() if name in known}
    run = wandb.init(**first["init"], settings=wandb.Settings(**chosen))
    # Steps of ours as the axis: those of W&B only grow, and refuse a run that went back to its
    # checkpoint.
    run.define_metric("*", step_metric="step")
    code = KILLED
    for item in items:
        if item["do"] == "numbers":
            run.log(item["values"])
        elif item["do"] == "samples":
            columns = ["step", "index", "text"]
            rows = [[item["step"], i, text] for i, text in enumerate(item["texts"])]
            table = wandb.Table(columns=columns, data=rows)
            run.log({"step": item["step"], "samples": table})
        elif item["do"] == "report":
            run.log({"report": wandb.Html(item["path"], inject=False)})
        elif item["do"] == "end":
            code = item["code"]
            break
    run.finish(exit_code=code)


def _parsed(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # the training was killed while it wrote this
            return


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        serve(sys.stdin)
    except BaseException as error:
        said = " ".join(str(error).split()) or type(error).__name__
        answers.write(json.dumps({"failed": said}))
        return 1
    finally:
        answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
