"""Samples of a model at several numbers of steps, then every metric that can be computed."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.data import Data, load_data
from flm_jax.errors import UserError
from flm_jax.evals import artefact, comparison, gpt2
from flm_jax.evals import base as evals
from flm_jax.evals.artefact import Artefact
from flm_jax.evals.comparison import Comparison, Written
from flm_jax.evals.generative_perplexity import GenerativePerplexity
from flm_jax.host import command, files, numerics
from flm_jax.inference import likelihood
from flm_jax.inference.heldout import HeldOut
from flm_jax.inference.programs import counted
from flm_jax.inference.truths import known_truth
from flm_jax.options import Evaluation
from flm_jax.sampling import knob_fields, settled


@numerics.pinned()
def evaluate(options: Evaluation) -> dict:
    """Samples, measures, prints the table, writes ``options.output``; returns what it holds.

    Raises UserError for anything wrong with the options, before sampling where it can be known.
    """
    output = files.output("--output", options.output) if options.output else None
    model = inference.load(**options.loading())
    points = operating_points(model, options)  # before anything is sampled
    scorer = gpt2.load(options.scorer) if options.scorer else None
    data = training_data(model)
    corpora = likelihood.corpora(model, data, options)
    truth = known_truth(options.truth, data)
    others = comparison.standard(model.tokenizer, data)
    if scorer is not None:
        others.append(GenerativePerplexity(scorer, model.tokenizer))
    length = model.config.data.length
    compared = Comparison(model.tokenizer, length, data, truth, others, options.splits)
    with _samples_folder(options.samples, output) as folder:
        weights = artefact.weights_sha256(model.params)
        results = compared.table([_written(model, p, weights, folder) for p in points])
        results["held_out"] = None
        if data is not None and model.experiment.has_denoiser:
            results["held_out"] = held_out_loss(model, data, options)
        results["bounds"] = [
            {"corpus": name} | likelihood.of_held_out(model, corpus, options).facts()
            for name, corpus in corpora.items()
        ]
        kept = options.samples or output
        results["samples"] = [str(folder / point.file) for point in points] if kept else []
    results = {
        "checkpoint": options.checkpoint,
        "weights": options.weights,
        "weights_sha256": weights,
        "step": model.step,
        "command": command.this(),
        "device": jax.devices()[0].device_kind,
        "num_samples": options.num_samples,
        "seed": options.seed,
        "scorer": options.scorer,
        "truth": None if truth is None else truth.name,
        **results,
    }
    try:  # saved before it is shown, and shown if it cannot be saved
        if output is not None:
            files.write_atomically(output, json.dumps(results, indent=1, allow_nan=False))
    finally:
        print(_report(results))
    if output is not None:
        print(f"wrote {output}")
    return results


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """One way of sampling: a number of steps, and the options with their knobs."""

    steps: int
    options: Evaluation
    swept: str = ""  # "temperature 0.7" where a knob is swept

    @property
    def method(self) -> str:
        """Name of the row, without the swept knob."""
        return counted(self.steps)

    @property
    def file(self) -> str:
        return _file_name(self.steps, self.swept)


def operating_points(model: inference.FlowModel, options: Evaluation) -> list[OperatingPoint]:
    """Every number of steps, with every value of the swept knob.

    Raises UserError for values that the sampler cannot take.
    """
    counts = model.config.sampler.steps if options.steps is None else options.steps
    counts = tuple(dict.fromkeys(counts))
    knob, values = _sweep(options)
    made = [
        (dataclasses.replace(options, knobs={**options.knobs, knob: value}), f"{knob} {value:g}")
        for value in values
    ]
    made = made or [(options, "")]
    for chosen, _ in made:
        _sampler(model, chosen, counts)
    return [OperatingPoint(n, chosen, swept) for n in counts for chosen, swept in made]


def _sweep(options: Evaluation) -> tuple[str, list[float]]:
    """("temperature", [0.7, 1.0]) of "temperature=0.7,1"; no values without --sweep."""
    if not options.sweep:
        return "", []
    name, _, listed = options.sweep.partition("=")
    whole = {field.name: isinstance(field.default, int) for field in knob_fields()}
    if name not in whole:
        raise UserError(f"--sweep={options.sweep}: {name!r} is no knob; take {', '.join(whole)}")
    if name in options.knobs:
        raise UserError(f"--{name} and --sweep={options.sweep} both set {name}; omit one")
    try:
        values = [(int if whole[name] else float)(value) for value in listed.split(",")]
    except ValueError:
        raise UserError(
            f"--sweep={options.sweep} must be a knob and its values, as {name}=0.7,0.85,1"
        ) from None
    if len(set(values)) < len(values):
        raise UserError(f"--sweep={options.sweep} names a value twice")
    return name, values


def _written(
    model: inference.FlowModel, point: OperatingPoint, weights: str, folder: pathlib.Path
) -> Written:
    stored = draw(model, point, weights, folder)
    section = _sampler(model, point.options, (point.steps,))
    evaluations = section.sampling(point.steps).evaluations
    method = counted(point.steps, evaluations)
    name = ", ".join(filter(None, (method, point.swept)))
    return Written(name, evaluations, stored.tokens_NL, stored.seconds, method)


def draw(
    model: inference.FlowModel, point: OperatingPoint, weights: str, folder: pathlib.Path
) -> Artefact:
    """The samples of one operating point, from its file; sampled first if there is none.

    Raises UserError if the file holds samples of another origin.
    """
    path, options, steps = folder / point.file, point.options, point.steps
    origin = {
        "sampler_steps": steps,
        "seed": options.seed,
        "weights_sha256": weights,
        "sampler": _origin(model, options, steps),
    }
    if path.exists():
        stored = artefact.read(path, list(origin))
        stored.origin["sampler"] = settled(stored.origin["sampler"])
        differences = artefact.differences(stored.origin, origin)
        if len(stored.texts) != options.num_samples:
            differences.append(f"{len(stored.texts)} instead of {options.num_samples} samples")
        if differences:
            raise UserError(
                f"{path} holds other samples ({differences[0]}); remove it, or choose another "
                "--samples folder"
            )
        print(f"the samples of {point.method} are those of {path}", file=sys.stderr)
        return stored
    samples = model.generate(steps=steps, **options.drawing())
    made = Artefact(origin, samples.tokens, samples.texts, samples.seconds)
    artefact.write(path, made, checkpoint=options.checkpoint, checkpoint_step=model.step)
    return artefact.read(path, list(origin))


def training_data(model: inference.FlowModel) -> Data | None:
    """The corpus the model was trained on, in its own tokens; None (and a notice) without it."""
    what = "text statistics and held-out loss are left out"
    section = model.config.data
    if not section.name:
        logging.warning("the checkpoint does not name its training text, so %s", what)
        return None
    try:
        return load_data(section, {}, tokenizer=model.tokenizer)
    except UserError as error:
        logging.warning("the training text cannot be loaded (%s), so %s", error, what)
        return None


def held_out_loss(model: inference.FlowModel, data: Data, options: Evaluation) -> dict:
    """{"taus", "losses", "mean", "rows"}: nats per token of held-out rows at the config's times.

    Rows, noise and times are those of the training log, so the numbers can be compared with it.
    """
    size = options.batch_size or model.config.sampler.batch_size
    held_out = HeldOut(model.experiment, data.rows["valid"], size, {})
    found = held_out(model.params, {})
    losses = [found[f"eval/loss_tau_{tau:g}"] for tau in held_out.taus]
    losses = [loss if math.isfinite(loss) else None for loss in losses]
    return {
        "taus": list(held_out.taus),
        "losses": losses,
        "mean": None if None in losses else found["eval/loss"],
        "rows": len(held_out.tokens_NL),
    }


def _sampler(
    model: inference.FlowModel, options: Evaluation, counts: tuple[int, ...]
) -> config_lib.SamplerConfig:
    """The sampler section as it is used; UserError for values out of range."""
    own = {"steps": counts, "num_samples": options.num_samples, "batch_size": options.batch_size}
    chosen = options.options_of_sampler()
    return model.sampler(options.sampler, chosen, {**options.knobs, **own})[1]


def _origin(model: inference.FlowModel, options: Evaluation, steps: int) -> dict[str, Any]:
    """Name, options and knobs of the sampler as they are used; what decides a sample."""
    section = _sampler(model, options, (steps,))
    origin = {"name": section.name, "options": dict(section.options), **section.changed()}
    cap = model.config.model.logit_cap  # not a weight, and can be chosen for an official file
    if cap != config_lib.ModelConfig().logit_cap:
        origin["logit_cap"] = cap
    return origin | {"length": model.config.data.length}


@contextlib.contextmanager
def _samples_folder(given: str | None, output: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """--samples, else a folder beside --output, else one that is removed at the end."""
    if given:
        folder = pathlib.Path(given).expanduser()
    elif output is not None:
        folder = output.with_name(f"{output.stem}_samples")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield pathlib.Path(temporary)
        return
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"--samples={folder} is a file; give the name of a folder")
    files.check_writable(folder / _file_name(1))
    yield folder


def _file_name(steps: int, swept: str = "") -> str:
    return "_".join([f"steps_{steps:05d}", *swept.split()]) + ".jsonl"


def _report(results: dict) -> str:
    lines = ["", evals.format_table(results)]
    lines += ["", *results["verdict"]]
    held_out = results["held_out"]
    if held_out is not None and held_out["mean"] is not None:
        taus = held_out["taus"]
        lines.append(
            f"\nheld-out loss {held_out['mean']:.4f} nats per token, mean over {len(taus)} times "
            f"tau from {min(taus):g} to {max(taus):g}, {held_out['rows']} rows"
        )
    lines += [likelihood.sentence(found) for found in results["bounds"]]
    return "\n".join(lines)
