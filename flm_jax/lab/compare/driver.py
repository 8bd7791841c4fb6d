"""A comparison from the plan to the report: what is there is kept, what is missing is made.

Killed anywhere and called again it goes on: the plan is a file, trainings resume, samples and
measures are files that are written whole. After every seed there is a report.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.data import Data, load_data
from flm_jax.errors import UserError
from flm_jax.host import compiled, distributed, files, numerics
from flm_jax.lab.compare import asked as asked_lib
from flm_jax.lab.compare import drawing, frontier, measuring, rates, runs, shown, timing
from flm_jax.lab.compare import plan as plan_lib
from flm_jax.lab.compare.asked import Asked, Drawing, Judging
from flm_jax.lab.compare.drawing import FINAL, PILOT, Trained
from flm_jax.lab.compare.plan import Plan
from flm_jax.lab.compare.results import Drawn, Point
from flm_jax.lab.compare.runs import Training

SAMPLES, REAL = "samples", "real"  # folders of a comparison


@numerics.pinned()
def compare(
    asked: Asked, folder: pathlib.Path, *, dry_run: bool = False, time: bool = False
) -> None:
    """Trains what is not trained yet, draws, measures, and writes the report.

    Args:
      dry_run: only the plan is shown; with ``time`` it is made for that, and kept.

    Raises UserError for whatever can be known to be wrong, before anything is trained.
    """
    folder = folder.absolute()
    asked_lib.check(asked)
    plan = plan_lib.read(folder, asked) or plan_lib.fresh(asked)
    check(plan, folder)
    if time or not dry_run:
        files.check_writable(folder / plan_lib.FILE)
        plan = timed(plan)
        plan_lib.write(folder, plan)
    say(shown.text(plan, folder))
    if dry_run:
        return
    with kept_programs(folder):
        data = load_data(plan.base.data, plan.base.tokenizer)
        reference = make_reference(data, folder, asked.judging)  # refuses judges before hours pass
        plan = tune(plan, folder)
        found, points, times = [], None, {}
        for seed in asked.seeds:
            train(plan, folder, seed)
            trained = [of_run(folder, method, seed) for method in asked.methods]
            if points is None:
                points = choose(trained, asked.drawing, reference)
                times = timing.milliseconds(trained, points, folder)
            found += final(trained, points, asked.drawing)
            report(folder, found, reference, shown.facts(plan, folder), times)


def compare_runs(
    given: Sequence[str], folder: pathlib.Path, draws: Drawing, judging: Judging, data: str = ""
) -> None:
    """The same of networks that are trained, one row for each.

    Args:
      data: the text to compare with; "" = what they were trained on.
    """
    asked_lib.once("evaluations", draws.evaluations)
    folder = folder.absolute()
    files.check_writable(folder / "results.json")
    trained = [
        Trained(name, inference.load(path).config.seed, path, folder / SAMPLES / name)
        for path, name in zip(given, names(given), strict=True)
    ]
    text = text_of(given, data)
    with kept_programs(folder):
        reference = make_reference(text, folder, judging)
        points = choose(trained, draws, reference)
        times = timing.milliseconds(trained, points, folder)
        found = final(trained, points, draws)
        report(folder, found, reference, {"runs": list(given)}, times)


def timed(plan: Plan) -> Plan:
    """The plan with the rate of every method."""
    missing = plan.without_rate()
    if not missing:
        return plan
    here = rates.device()
    if plan.rates and plan.device != here:
        raise UserError(
            f"a step of {', '.join(missing)} must be timed where those of the others were, on "
            f"{plan.device}, and this is {here}; omit them, or choose another --workdir"
        )
    plan = plan if plan.rates else plan.settled(here)
    return dataclasses.replace(plan, rates={**plan.rates, **rates.measured(plan.base, missing)})


def check(plan: Plan, folder: pathlib.Path) -> None:
    """UserError if the config of any training does not fit together."""
    for stage in plan.stages:
        source = f"{runs.RUNS}/{stage.before}" if stage.before else ""
        rate = plan.asked.learning_rates[0]
        runs.check(Training(folder, "", stage.method, 0, 100, rate, source), plan.base)


def tune(plan: Plan, folder: pathlib.Path) -> Plan:
    """The plan with a learning rate for every objective; each choice is kept at once."""
    for stage in plan.to_tune():
        tried = {}
        for rate in plan.asked.learning_rates:
            source = ""
            if stage.before:
                source = trial(stage.before, plan.learning_rate(stage.before))
            name, steps = trial(stage.method, rate), plan.tuning_steps(stage)
            one = Training(folder, name, stage.method, 0, steps, rate, source, trial=True)
            say(f"\ntrying {stage.method} with learning rate {rate:g}: {steps:,} steps")
            runs.train(one, plan.base)
            tried[rate] = one.held_out()
        plan = plan.with_choice(stage.method, tried)
        listed = ", ".join(f"{rate:g} (held-out loss {tried[rate]:.4f})" for rate in tried)
        say(f"{stage.method}: learning rate {plan.learning_rate(stage.method):g} of {listed}")
        plan_lib.write(folder, plan)
    return plan


def trial(method: str, rate: float) -> str:
    """The name of the run that tries a learning rate."""
    return f"{runs.TUNING}/{method}_{rate:g}"


def train(plan: Plan, folder: pathlib.Path, seed: int) -> None:
    """All trainings of a seed."""
    for number, stage in enumerate(plan.stages, 1):
        one = training(plan, folder, stage.name, seed)
        what = "is finished" if one.finished else f"{one.steps:,} steps, in {one.workdir}"
        say(f"\n=== {number} of {len(plan.stages)}, seed {seed}: {stage.name} {what}")
        runs.train(one, plan.base)


def training(plan: Plan, folder: pathlib.Path, name: str, seed: int) -> Training:
    """The training of a stage, by its name."""
    stage = next(one for one in plan.stages if one.name == name)
    source = run_name(stage.before, seed) if stage.before else ""
    rate = plan.learning_rate(stage.method)
    steps = plan.steps(stage)
    return Training(folder, run_name(name, seed), stage.method, seed, steps, rate, source)


def run_name(stage: str, seed: int) -> str:
    return f"{runs.RUNS}/{stage}_{seed}"


def of_run(folder: pathlib.Path, method: str, seed: int) -> Trained:
    """The network of a method, trained with that seed."""
    name = run_name(method, seed)
    return Trained(method, seed, str(folder / name), folder / SAMPLES / f"{method}_{seed}")


def choose(
    trained: Sequence[Trained], draws: Drawing, reference: measuring.Reference
) -> list[Point]:
    """The points of all methods that are worth more samples."""
    say("\n=== samples at every setting")
    found = [
        one
        for network in trained
        for one in drawing.draw(
            network, drawing.every_point(network, draws), draws.pilot_samples, PILOT
        )
    ]
    say("measuring them")
    chosen = ""
    if distributed.is_main():
        measured = [measuring.measure(one, reference) for one in found]
        points = frontier.choose(measured, measuring.real(reference))
        chosen = json.dumps([dataclasses.astuple(point) for point in points])
    return [
        Point(method, count, sampler, tuple((name, value) for name, value in settings))
        for method, count, sampler, settings in json.loads(distributed.told("points", chosen))
    ]


def final(trained: Sequence[Trained], points: Sequence[Point], draws: Drawing) -> list[Drawn]:
    """The samples of every network at the chosen points of its method."""
    say("\n=== samples at the best settings")
    return [
        one
        for network in trained
        for one in drawing.draw(
            network, [x for x in points if x.method == network.method], draws.num_samples, FINAL
        )
    ]


def make_reference(data: Data, folder: pathlib.Path, judging: Judging) -> measuring.Reference:
    """Judges, real text, and where measurements of it are kept."""
    judges, truth = judging.judges, judging.truth
    return measuring.reference(data, folder / REAL, judges=judges, truth=truth)


def report(
    folder: pathlib.Path,
    found: Sequence[Drawn],
    reference: measuring.Reference,
    about: Mapping[str, Any],
    latencies: measuring.Latencies | None = None,
) -> None:
    """Process 0 measures and writes; the others wait."""
    say("\n=== measuring")
    if distributed.is_main():
        named = {"title": folder.name, "about": about, "latencies": latencies}
        measuring.report(folder, found, reference, **named)
        print(f"report: {folder / 'report.html'}", flush=True)
    distributed.meet("the report")


def names(paths: Sequence[str]) -> list[str]:
    """A name for every run: that of its folder, with more of the path where two have the same."""
    parts = [pathlib.Path(path).absolute().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UserError(f"{', '.join(paths)}: a run is named twice; name every run once")
    count = 1
    while len({own[-count:] for own in parts}) < len(parts):
        count += 1
    return ["_".join(own[-count:]) for own in parts]


def text_of(given: Sequence[str], data: str) -> Data:
    """The text to compare some runs with, which all have the same tokens."""
    models = [inference.load(path) for path in given]
    first = models[0]
    for path, model in zip(given, models, strict=True):
        if model.tokenizer.fingerprint != first.tokenizer.fingerprint:
            raise UserError(
                f"{path} has other tokens than {given[0]}, so that no likelihood of theirs can be "
                "compared; give runs with one tokenizer"
            )
    section = next((one.config.data for one in models if one.config.data.name), None)
    if data:
        section = config_lib.changed(first.config, asked_lib.text(first.config, data)).data
    if section is None:
        raise UserError(
            f"none of {', '.join(given)} says what it was trained on; give --data=TEXT, the text "
            "to compare with"
        )
    return load_data(section, {}, tokenizer=first.tokenizer)


@contextlib.contextmanager
def kept_programs(folder: pathlib.Path) -> Iterator[None]:
    """Inside it, compiled programs are kept for the next call."""
    with compiled.kept_in(folder / runs.COMPILED):
        yield


def say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
