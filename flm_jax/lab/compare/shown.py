"""The plan in words: every training, what it takes, and what else there is to do."""

import math
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flm_jax import config as config_lib
from flm_jax.lab.compare import methods as methods_lib
from flm_jax.lab.compare import rates, runs
from flm_jax.lab.compare.grid import WAYS
from flm_jax.lab.compare.methods import METHODS, Stage
from flm_jax.lab.compare.plan import TENTH, Plan
from flm_jax.lab.plan import program

FORWARD = 1 / 3  # of the time of a training step: asking the network, without a gradient


def text(plan: Plan, folder: pathlib.Path) -> str:
    """What will be done, before it is done."""
    asked, base = plan.asked, plan.base
    stages, seeds = plan.stages, asked.seeds
    tuning, training = tuning_minutes(plan), len(seeds) * sum(map(plan.minutes, stages))
    lines = [
        f"{counted(len(asked.methods), 'method')}, {counted(len(seeds), 'seed')}, "
        f"{counted(asked.budget_minutes, 'minute')} a method, in {folder}",
        f"  text       {text_of(base)}, rows of {base.data.length} tokens",
        f"  network    {base.model.depth} blocks, {base.model.width} wide, "
        f"{base.model.heads} heads; {base.optim.name}, batches of {base.train.batch_size} rows: "
        "the same for all",
        "",
        *table(plan, folder),
        "",
        f"  tuning     {tuning_text(plan)}",
        f"  samples    {samples_text(plan)}",
        f"  disk       {disk_text(plan)}",
    ]
    parts = [f"training {training:.1f}", *([f"tuning {tuning:.1f}"] if tuning else [])]
    if plan.rates:
        compiling, sampling = compiling_minutes(plan), sampling_minutes(plan)
        parts += [f"compiling about {compiling:.1f}", f"sampling about {sampling:.1f}"]
        whole = duration(training + tuning + compiling + sampling)
        lines += [f"  in all     {whole} and measuring, if nothing is done yet (minutes: "
                  f"{', '.join(parts)})"]  # fmt: skip
    else:
        lines += [
            f"  in all     {duration(training + tuning)} (minutes: {', '.join(parts)}), and "
            "compiling, sampling, measuring",
            "",
            "Steps follow from the time of a training step, which is not measured by --dry_run; "
            "--dry_run --time measures it.",
        ]
    return "\n".join(lines)


def text_of(base: config_lib.Config) -> str:
    """What is trained on: the data set, and what is said of it."""
    said = [f"{name}={value}" for name, value in base.data.options.items() if value != ""]
    return f"{base.data.name} ({', '.join(said)})" if said else base.data.name


def table(plan: Plan, folder: pathlib.Path) -> list[str]:
    """A line for every training of a seed."""
    lines = [
        f"  {'run':<20} {'objective':<20} {'steps':>9} {'minutes':>8} {'ms/step':>8}  starts from"
    ]
    for stage in plan.stages:
        rate = plan.rates.get(stage.method)
        steps = f"{plan.steps(stage):,}" if rate else "?"
        step = f"{1e3 * rate.step_s:.1f}" if rate else "?"
        lines.append(
            f"  {stage.name:<20} {METHODS[stage.method].loss:<20} {steps:>9} "
            f"{plan.minutes(stage):>8.2f} {step:>8}  {stage.before or 'random'}"
        )
    listed = ", ".join(map(str, plan.asked.seeds))
    lines.append(f"  each with seed {listed}: {runs.RUNS}/NAME_SEED")
    return lines


def tuning_text(plan: Plan) -> str:
    """What is tried before."""
    tried = plan.asked.learning_rates
    if len(tried) == 1:
        return f"none: learning rate {tried[0]:g} for all"
    chosen = ", ".join(f"{name} {rate:g}" for name, rate in plan.learning_rates.items())
    objectives = len(methods_lib.tuned(plan.asked.methods))
    return (
        f"learning rates {', '.join(f'{rate:g}' for rate in tried)} for each of {objectives} "
        "objectives, a tenth of its steps, seed 0, by held-out loss"
        + (f"; chosen so far: {chosen}" if chosen else "")
    )


def tuning_minutes(plan: Plan) -> float:
    """Of what is still to be tried."""
    found = TENTH * sum(map(plan.minutes, plan.to_tune()))
    return len(plan.asked.learning_rates) * found


def compiling_minutes(plan: Plan) -> float:
    """Programs of all seeds are the same; another learning rate is another program."""
    stages: Sequence[Stage] = [*plan.stages, *plan.to_tune() * len(plan.asked.learning_rates)]
    return sum(plan.rates[stage.method].compile_s for stage in stages) / 60


def settings(plan: Plan, method: str) -> int:
    """How many knob settings a method has."""
    return min(plan.asked.drawing.points, len(WAYS[METHODS[method].loss]))


def samples_text(plan: Plan) -> str:
    """What is drawn."""
    draws = plan.asked.drawing
    counts = ", ".join(map(str, draws.evaluations))
    most = max(settings(plan, method) for method in plan.asked.methods)
    return (
        f"with {counts} evaluations: {draws.pilot_samples} at up to {counted(most, 'setting')} a "
        f"method (seed {plan.asked.seeds[0]}), then {draws.num_samples} at the best of them "
        "(all seeds)"
    )


def sampling_minutes(plan: Plan) -> float:
    """Roughly: the first draw, and half of its settings with all samples of every seed."""
    draws, base = plan.asked.drawing, plan.base
    samples = draws.pilot_samples + draws.num_samples * len(plan.asked.seeds) / 2
    seconds = 0.0
    for method in plan.asked.methods:
        if method not in plan.rates:
            continue
        # With keys and values of what is written an autoregressive network reads a text once.
        asked = 1 if METHODS[method].needs.causal else sum(draws.evaluations)
        once = FORWARD * plan.rates[method].step_s / base.train.batch_size
        seconds += settings(plan, method) * samples * asked * once
    return seconds / 60


def disk_text(plan: Plan) -> str:
    """Of checkpoints, of which every run keeps one."""
    size = rates.vocabulary(plan.base)
    kept = {
        stage.name: checkpoint_bytes(runs.of_method(plan.base, stage.method), size)
        for stage in plan.stages
    }
    tuned = [
        checkpoint_bytes(runs.of_method(plan.base, stage.method), size) for stage in plan.to_tune()
    ]
    total = len(plan.asked.seeds) * sum(kept.values())
    total += len(plan.asked.learning_rates) * sum(tuned)
    return (
        f"{gigabytes(total)} of checkpoints (one a run, {gigabytes(max(kept.values()))} at most), "
        "samples and compiled programs beside them"
    )


def checkpoint_bytes(config: config_lib.Config, vocab_size: int) -> int:
    """Parameters, moments, EMA and what the objective keeps."""
    dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
    config = config_lib.changed(config, {"model.dtype": dtype})
    state = program.build(config, vocab_size).state
    return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(state))


def facts(plan: Plan, folder: pathlib.Path) -> dict[str, Any]:
    """What the report says about how it was made."""
    return {
        "budget_minutes": plan.asked.budget_minutes,
        "device": plan.device,
        "host": platform.machine(),
        "seeds": list(plan.asked.seeds),
        "steps": {stage.name: plan.steps(stage) for stage in plan.stages},
        "ms_per_step": {name: round(1e3 * rate.step_s, 3) for name, rate in plan.rates.items()},
        "learning_rates": {x.method: plan.learning_rate(x.method) for x in plan.stages},
        "config": config_lib.to_dict(plan.base),
    }


def counted(number: float, what: str) -> str:
    return f"{number:g} {what}" + "s" * (number != 1)


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{max(1, round(size / 1e6))} MB"


def duration(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 100 else f"{minutes:.0f} minutes"
