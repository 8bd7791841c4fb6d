"""Evaluate a model: samples at several numbers of steps, then every metric that can be computed.

    flm evaluate --checkpoint=runs/q --steps=1,8,32 --num_samples=256
    flm evaluate --checkpoint=owt_flm.ckpt --steps=1024 --num_samples=1024 \
        --scorer=models/gpt2-large --output=results.json

Texts are written to files first (--samples, or beside --output) and the metrics read those; files
that are already there from the same weights, seed and options are not sampled again. Always:
entropy within a sample and time per sample. With --scorer (a GPT-2 folder in the Hugging Face
layout): generative perplexity, the official one and a clean one. Where the training text can be
loaded (a workdir of ours): text statistics, n-gram samplers and held-out text beside them, and the
held-out loss at fixed times.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import flags, logging

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.cli import flags as command_line
from flm_jax.config.coercion import coerce
from flm_jax.data import Data, load_data
from flm_jax.errors import UserError
from flm_jax.evals import artefact, comparison, gpt2
from flm_jax.evals import base as evals
from flm_jax.evals.artefact import Artefact
from flm_jax.host import files, memory, numerics
from flm_jax.inference.heldout import HeldOut
from flm_jax.sampling import settled


@dataclasses.dataclass(frozen=True)
class Options:
    """What to evaluate and how; None = from the config of the model. See the flags.

    ``knobs`` are sampling knobs by name (`flm_jax.sampling`).
    """

    checkpoint: str
    steps: tuple[int, ...] | None = None
    num_samples: int = 64
    seed: int = 0
    batch_size: int | None = None
    sampler: str = ""
    knobs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    step: int | None = None
    tokenizer: str | None = None
    length: int | None = None
    heads: int | None = None
    logit_cap: float | None = None
    teacher: str | None = None
    scorer: str | None = None
    output: str | None = None
    samples: str | None = None


_LOADED = ("weights", "step", "teacher", *inference.OF_OFFICIAL)


@numerics.pinned()
def evaluate(options: Options) -> dict:
    """Samples, measures, prints the table, writes ``options.output``; returns what it holds.

    Raises UserError for anything wrong with the options, before sampling where it can be known.
    """
    output = _output_path(options.output)
    values = dataclasses.asdict(options)
    asked = {name: values[name] for name in _LOADED}
    model = inference.load(options.checkpoint, **asked)
    counts = model.config.sampler.steps if options.steps is None else options.steps
    counts = tuple(dict.fromkeys(counts))
    _sampler(model, options, counts)  # before anything is sampled
    scorer = gpt2.load(options.scorer) if options.scorer else None
    data = training_data(model)
    with _samples_folder(options.samples, output) as folder:
        weights = artefact.weights_sha256(model.params)
        found = {n: draw(model, n, options, weights, folder) for n in counts}
        results = comparison.table(model.tokenizer, found, data, scorer)
        known = data is not None and model.experiment.has_denoiser
        results["held_out"] = held_out_loss(model, data, options) if known else None
        kept = options.samples or output
        results["samples"] = [str(folder / _file_name(n)) for n in counts] if kept else []
    results = {
        "checkpoint": options.checkpoint,
        "weights": options.weights,
        "weights_sha256": weights,
        "step": model.step,
        "command": " ".join(sys.argv),
        "device": jax.devices()[0].device_kind,
        "num_samples": options.num_samples,
        "seed": options.seed,
        "scorer": options.scorer,
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


def draw(
    model: inference.FlowModel, steps: int, options: Options, weights: str, folder: pathlib.Path
) -> Artefact:
    """The samples of one operating point, from its file; sampled first if there is none.

    Raises UserError if the file holds samples of another origin.
    """
    path = folder / _file_name(steps)
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
        print(f"the samples of {steps} steps are those of {path}", file=sys.stderr)
        return stored
    samples = model.generate(
        options.num_samples,
        steps,
        options.seed,
        batch_size=options.batch_size,
        sampler=options.sampler,
        **options.knobs,
    )
    made = Artefact(origin, samples.tokens, samples.texts, samples.seconds)
    artefact.write(path, made, checkpoint=options.checkpoint, checkpoint_step=model.step)
    return artefact.read(path, list(origin))


def training_data(model: inference.FlowModel) -> Data | None:
    """The corpus the model was trained on, in its own tokens; None (and a notice) without it."""
    what = "text statistics and held-out loss are left out"
    section = dataclasses.asdict(model.config.data)
    if not section["name"]:
        logging.warning("the checkpoint does not name its training text, so %s", what)
        return None
    try:
        return load_data(section, {}, tokenizer=model.tokenizer)
    except UserError as error:
        logging.warning("the training text cannot be loaded (%s), so %s", error, what)
        return None


def held_out_loss(model: inference.FlowModel, data: Data, options: Options) -> dict:
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
    model: inference.FlowModel, options: Options, counts: tuple[int, ...]
) -> config_lib.Sampler:
    """The sampler section as it is used; UserError for values out of range."""
    own = {"steps": counts, "num_samples": options.num_samples, "batch_size": options.batch_size}
    return model.sampler(options.sampler, {}, {**options.knobs, **own})[1]


def _origin(model: inference.FlowModel, options: Options, steps: int) -> dict[str, Any]:
    """Name, options and knobs of the sampler as they are used; what decides a sample."""
    section = _sampler(model, options, (steps,))
    origin = {"name": section.name, "options": dict(section.options), **section.changed()}
    cap = model.config.model.logit_cap  # not a weight, and can be chosen for an official file
    if cap != config_lib.Model().logit_cap:
        origin["logit_cap"] = cap
    return origin | {"length": model.config.data.length}


def _output_path(output: str | None) -> pathlib.Path | None:
    if output is None:
        return None
    path = pathlib.Path(output).expanduser()
    if os.path.isdir(path):  # not pathlib's, which raises an error for a name that is too long
        raise UserError(f"--output={output} is a folder; give the name of a file")
    if not os.path.isdir(path.absolute().parent):
        raise UserError(f"--output={output}: there is no folder {path.parent}; make it first")
    files.check_writable(path)
    return path


@contextlib.contextmanager
def _samples_folder(given: str | None, output: pathlib.Path | None) -> Iterator[pathlib.Path]:
    """--samples, else a folder beside --output, else one that is removed at the end."""
    if given is None and output is None:
        with tempfile.TemporaryDirectory() as folder:
            yield pathlib.Path(folder)
        return
    beside = output and output.with_name(f"{output.stem}_samples")
    folder = pathlib.Path(given).expanduser() if given else beside
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"--samples={folder} is a file; give the name of a folder")
    files.check_writable(folder / _file_name(1))
    yield folder


def _file_name(steps: int) -> str:
    return f"steps_{steps:05d}.jsonl"


def _report(results: dict) -> str:
    lines = ["", evals.format_table(results)]
    held_out = results["held_out"]
    if held_out is not None and held_out["mean"] is not None:
        taus = held_out["taus"]
        lines.append(
            f"\nheld-out loss {held_out['mean']:.4f} nats per token, mean over {len(taus)} times "
            f"tau from {min(taus):g} to {max(taus):g}, {held_out['rows']} rows"
        )
    return "\n".join(lines)


def define_flags() -> None:
    """The flags of the tool; in a function, because other tools have flags of the same names."""
    text, number, whole = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
    text("checkpoint", None, "workdir of a training run, or official .ckpt, .safetensors or folder")
    text("steps", None, "numbers of network evaluations, for example 1,8,32")
    whole("num_samples", 64, "texts per number of steps")
    whole("seed", 0, "root of the noise; sample i is the same in any batch")
    whole("batch_size", None, "texts written at one time")
    text("sampler", "", "sampler by name; '' = that of the config")
    command_line.sampling_flags()
    text("weights", None, "ema (the default), raw, or ema:DECAY of an official .ckpt")
    whole("step", None, "checkpoint of a workdir; the newest by default")
    text("tokenizer", None, "of an official checkpoint: gpt2, bert-base-uncased, or a folder")
    whole("length", None, "tokens per text of an official checkpoint")
    whole("heads", None, "attention heads of an official checkpoint")
    number("logit_cap", None, "of an official checkpoint; 0 = none, as in February 2026")
    text(
        "teacher",
        None,
        "where the denoiser of a correction (loss residual) is now, if it was moved",
    )
    text("scorer", None, "folder with a GPT-2 (config.json, model.safetensors, vocabulary files)")
    text("output", None, "write the results as JSON to this file")
    text("samples", None, "folder for the samples; by default beside --output, else not kept")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options are written --name=value")
    names = [field.name for field in dataclasses.fields(Options) if field.name != "knobs"]
    values = {name: flags.FLAGS[name].value for name in names}
    if not values["checkpoint"]:
        raise UserError("--checkpoint=PATH is missing; give a run's --workdir or a .ckpt file")
    if values["steps"] is not None:
        values["steps"] = coerce(values["steps"], tuple[int, ...], "--steps")
    memory.keep_small()
    evaluate(Options(**values, knobs=command_line.given_sampling()))


if __name__ == "__main__":
    define_flags()
    command_line.run_main(main)
