"""Held-out tasks completed by a model at several numbers of steps, and how many are right."""

import dataclasses
import json

import jax.numpy as jnp

from flm_jax import inference
from flm_jax.data import load_data
from flm_jax.errors import UserError
from flm_jax.evals import base
from flm_jax.evals.tasks import Task, task
from flm_jax.host import files, numerics
from flm_jax.inference.programs import counted
from flm_jax.options import Solving
from flm_jax.samplers.base import Given

_TIME = base.Column("ms_per_task", "ms / task", "Wall time per task, without compilation.", "lower")
_EVALUATIONS = base.Column(
    "evaluations", "evaluations", "Network evaluations that were used, per task.", "lower"
)


@numerics.pinned()
def solve(options: Solving) -> dict:
    """Completes, checks, prints the table, writes ``options.output``; returns what it holds.

    Raises UserError for anything wrong with the options, before sampling where it can be known.
    """
    output = files.output("--output", options.output) if options.output else None
    model = inference.load(**options.loading())
    section = model.config.data
    if not section.name:
        raise UserError(
            "the checkpoint does not name its training data, so there is nothing to solve; give "
            "the workdir of a run"
        )
    data = load_data(section, {}, tokenizer=model.tokenizer)
    asked = task(data, options.num_samples, options.problems)
    counts = options.steps or model.config.sampler.steps
    rows = [_row(model, options, asked, steps) for steps in dict.fromkeys(counts)]
    columns = (*asked.columns, _EVALUATIONS, _TIME)
    results = {
        "checkpoint": options.checkpoint,
        "step": model.step,
        "seed": options.seed,
        "tasks": len(asked.tokens_NL),
        "left_out": asked.left_out,
        "columns": [dataclasses.asdict(column) for column in columns],
        "rows": rows,
    }
    try:  # saved before it is shown, and shown if it cannot be saved
        if output is not None:
            files.write_atomically(output, json.dumps(results, indent=1, allow_nan=False))
    finally:
        left_out = f", {asked.left_out} left out: too long" if asked.left_out else ""
        print(f"{len(asked.tokens_NL)} tasks{left_out}\n{base.format_table(results)}")
    return results


def _row(model: inference.FlowModel, options: Solving, asked: Task, steps: int) -> dict:
    drawing = {**options.drawing(), "num_samples": 1}  # of each task
    given = Given(jnp.asarray(asked.tokens_NL), jnp.asarray(asked.given_NL))
    samples = model.generate(steps=steps, given=given, **drawing)
    count = len(samples.tokens)
    values = {
        **asked.check(samples.tokens),
        _EVALUATIONS.key: samples.evaluations,
        _TIME.key: 1000 * samples.seconds / count,
    }
    return {
        "name": counted(steps),
        "kind": "model",
        "tokens": samples.tokens.size,
        "values": values,
    }
