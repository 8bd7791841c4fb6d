"""Every clash of a config explained in one go, before devices are touched or anything compiles."""

import collections.abc
import dataclasses
import importlib.util
import math
import re
from typing import Any, Protocol

from flm_jax import knobs, registry
from flm_jax.config import settings
from flm_jax.config.building import build, check_options
from flm_jax.config.settings import Config
from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.sampling import GUIDES, NO_ESTIMATE, SamplingKnobs

# What the code gives to every evaluator; the rest are its options.
EVALUATOR_GETS = ("tokenizer", "train_rows", "train_documents")

# Above it the time before the decay, which sets its length, is too short to go by.
MOST_DECAY = 0.9

_TABLES = {"data": "data set", "tokenizer": "tokenizer", "loss": "loss", "sampler": "sampler"}


class Objective(Protocol):
    """What is asked of a loss here; see `losses.base.Loss`."""

    @property
    def denoises(self) -> bool: ...

    @property
    def is_correction(self) -> bool: ...

    @property
    def needs(self) -> Needs: ...


class Writer(Protocol):
    """What is asked of a sampler here; see `samplers.base.Sampler`."""

    @property
    def needs(self) -> Needs: ...

    def steps_for(self, length: int) -> int | None: ...

    def without_effect(self, knobs: SamplingKnobs) -> dict[str, str]: ...


def validate(config: Config, tables: collections.abc.Mapping[str, Any]) -> None:
    """Raises UserError with all problems found, one sentence a line.

    Args:
      tables: the rows that names are checked against, {"loss": LOSSES, "sampler": SAMPLERS, "data":
        DATASETS, "tokenizer": TOKENIZERS, "eval": EVALS}; a table that is absent is not checked.
    """
    values = ((key, settings.value_at(config, key), field) for key, field in settings.knobs())
    problems = [sentence for value in values if (sentence := knobs.problem(*value))]
    if not problems:  # relations between values mean little while the values are wrong
        problems += _check_model(config.model)
        problems += _check_attention(config)
        problems += _check_training(config)
        problems += _check_mesh(config.mesh)
        problems += _check_decode(config.sampler)
    problems += _check_tables(config, tables)
    if problems:
        raise UserError("\n".join(problems))


def validate_section(section: Any) -> None:
    """Raises UserError unless every value of one section is within its limits."""
    values = dataclasses.asdict(section)
    found = (knobs.problem(f.name, values[f.name], f) for f in dataclasses.fields(section))
    problems = [sentence for sentence in found if sentence]
    if not problems and isinstance(section, settings.SamplerConfig):
        problems += _check_decode(section)
    if problems:
        raise UserError("\n".join(problems))


def mesh_shape(mesh: settings.MeshConfig, num_devices: int) -> tuple[int, int, int]:
    """Sizes of the axes (data, fsdp, tensor); -1 takes the devices that the others leave.

    Raises UserError if their product cannot be ``num_devices``.
    """
    sizes = dataclasses.astuple(mesh)
    fixed = math.prod(size for size in sizes if size != -1)
    text = ", ".join(f"{f.name}={s}" for f, s in zip(dataclasses.fields(mesh), sizes, strict=True))
    if -1 not in sizes:
        if fixed != num_devices:
            raise UserError(
                f"the mesh ({text}) needs {fixed} devices but there are {num_devices}; "
                "set mesh.data=-1 to use what is there"
            )
        return mesh.data, mesh.fsdp, mesh.tensor
    if num_devices % fixed:
        raise UserError(
            f"the mesh ({text}) needs a multiple of {fixed} devices but there are {num_devices}; "
            "lower mesh.fsdp or mesh.tensor to a divisor"
        )
    data, fsdp, tensor = (num_devices // fixed if size == -1 else size for size in sizes)
    return data, fsdp, tensor


def validate_devices(
    config: Config, num_devices: int, num_processes: int = 1
) -> tuple[int, int, int]:
    """Checks batch and mesh against the devices there are; returns the mesh shape.

    Raises UserError that states both values and the nearest batch sizes that work.
    """
    shape = mesh_shape(config.mesh, num_devices)
    if config.model.attention == "tokamax" and num_devices > 1:
        raise UserError(
            "model.attention='tokamax' is a kernel that is not divided over devices but there are "
            f"{num_devices}; set model.attention='auto' or 'chunked'"
        )
    rows = math.lcm(shape[0] * shape[1], num_processes)
    unit = rows * config.optim.accumulation_steps
    batch = config.train.batch_size
    if batch % unit:
        low, high = batch // unit * unit, (batch // unit + 1) * unit
        over = f"{shape[0] * shape[1]} devices along the batch (mesh.data x mesh.fsdp)"
        if num_processes > 1:
            over += f" on {num_processes} processes"
        if config.optim.accumulation_steps > 1:
            over += f" x optim.accumulation_steps={config.optim.accumulation_steps}"
        raise UserError(
            f"train.batch_size={batch} must be a multiple of {unit}, for {over}; "
            f"try {f'{low} or ' if low else ''}{high}"
        )
    return shape


def validate_vocabulary(model_vocab: int, tokenizer_vocab: int, where: str) -> None:
    """Raises UserError unless both sizes agree; ``where`` names the source of ``model_vocab``."""
    if model_vocab != tokenizer_vocab:
        raise UserError(
            f"{where} has a vocabulary of {model_vocab} entries but the tokenizer has "
            f"{tokenizer_vocab}; use the tokenizer it was trained with"
        )


def _check_model(model: settings.ModelConfig) -> list[str]:
    if model.width % model.heads:
        fits = [h for h in range(1, model.width + 1) if model.width % h == 0]
        fits = [h for h in fits if (model.width // h) % 2 == 0]
        near = min(fits, key=lambda h: abs(h - model.heads)) if fits else None
        remedy = f"try model.heads={near}" if near else "make the width even"
        return [f"model.heads={model.heads} does not divide model.width={model.width}; {remedy}"]
    if (model.width // model.heads) % 2:
        return [
            f"model.width={model.width} / model.heads={model.heads} gives heads of odd size "
            f"{model.width // model.heads}, but rotary positions need an even one; "
            f"try model.width={2 * model.width}"
        ]
    return []


def _check_attention(config: settings.Config) -> list[str]:
    model, length = config.model, config.data.length
    if model.attention == "splash" and length % 128:
        return [
            "model.attention='splash' is a kernel for lengths that are multiples of 128 but "
            f"data.length={length}; set model.attention='auto' or "
            f"data.length={-(-length // 128) * 128}"
        ]
    if model.attention == "tokamax" and importlib.util.find_spec("tokamax") is None:
        return [
            "model.attention='tokamax' needs the library tokamax, which is not installed; "
            "run pip install tokamax or set model.attention='auto'"
        ]
    return []


def _check_training(config: Config) -> list[str]:
    problems = []
    places, length = config.model.learned_positions, config.data.length
    if 0 < places < length:
        problems.append(
            f"model.learned_positions={places} is less than data.length={length}; "
            f"set model.learned_positions={length} or 0"
        )
    batch, parts = config.train.batch_size, config.optim.accumulation_steps
    if batch % parts:
        problems.append(
            f"train.batch_size={batch} is not a multiple of optim.accumulation_steps={parts}; "
            f"try train.batch_size={math.ceil(batch / parts) * parts}"
        )
    decays = (config.optim.ema_decay, *config.optim.ema_decays)
    if twice := {decay for decay in decays if decays.count(decay) > 1}:
        problems.append(
            f"{min(twice)} is more than once among optim.ema_decay and optim.ema_decays; name "
            "every decay once"
        )
    whole = config.optim.schedule in ("cosine", "linear")  # one number of steps, chosen by the user
    if whole and config.train.steps <= config.optim.warmup_steps:
        problems.append(
            f"optim.schedule={config.optim.schedule} decays after the warm-up, but train.steps="
            f"{config.train.steps} is not above optim.warmup_steps={config.optim.warmup_steps}; "
            "raise the one or lower the other"
        )
    fraction, minutes = config.optim.decay_fraction, config.train.max_minutes
    if config.optim.schedule == "stable" and minutes and fraction > MOST_DECAY:
        problems.append(
            f"train.max_minutes={minutes:g} decides the last step when the time before the decay "
            f"is over, so optim.decay_fraction={fraction:g} must be at most {MOST_DECAY:g}"
        )
    problems += [*_check_wandb(config.train.wandb), *_check_profile(config.train)]
    return problems


def _check_wandb(project: str) -> list[str]:
    if not project:
        return []
    if not re.fullmatch(r"([^/\\#?%:]+/)?[^/\\#?%:]{1,128}", project):
        return [
            f"train.wandb={project} must be PROJECT or ENTITY/PROJECT, without any other of "
            "/ \\ # ? % :; try train.wandb=flm"
        ]
    if importlib.util.find_spec("wandb") is None:
        return [
            f"train.wandb={project} needs the library wandb, which is not installed; run "
            "pip install 'flm_jax[wandb]' or set train.wandb=''"
        ]
    return []


def _check_profile(train: settings.TrainConfig) -> list[str]:
    if not train.profile_steps:
        return []
    shown = f"train.profile_steps={','.join(map(str, train.profile_steps))}"
    if len(train.profile_steps) != 2:
        return [f"{shown} must be two numbers, FIRST,COUNT; try train.profile_steps=10,3"]
    first, count = train.profile_steps
    if first < 2:
        return [f"{shown} begins with step {first}, which compiles; begin with step 2 or later"]
    if (last := first + count - 1) > train.steps:
        return [
            f"{shown} goes on to step {last}, but train.steps={train.steps}; begin earlier or "
            "trace fewer"
        ]
    return []


def _check_mesh(mesh: settings.MeshConfig) -> list[str]:
    sizes = dataclasses.asdict(mesh)
    problems = [
        f"mesh.{axis}=0 must be a number of devices, or -1 for all that remain"
        for axis, size in sizes.items()
        if size == 0
    ]
    open_axes = [f"mesh.{axis}" for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        problems.append(f"{' and '.join(open_axes)} are both -1; only one axis can take the rest")
    return problems


def _check_decode(sampler: settings.SamplerConfig) -> list[str]:
    twice = {steps for steps in sampler.steps if sampler.steps.count(steps) > 1}
    if twice:
        return [f"{min(twice)} is more than once in sampler.steps; name every number once"]
    if sampler.top_p < 1.0 and sampler.temperature == 0.0:
        return [
            f"top_p={sampler.top_p:g} has no effect on the arg max (temperature=0); "
            "set temperature=1 too"
        ]
    return []


def _check_tables(config: Config, tables: collections.abc.Mapping[str, Any]) -> list[str]:
    problems = []
    sections = {
        "data": config.data,
        "tokenizer": config.tokenizer,
        "loss": config.loss,
        "sampler": config.sampler,
    }
    needs: dict[str, Needs] = {}
    if config.data.name == "prepared" and not config.tokenizer.name:
        del sections["tokenizer"]  # it lies beside the rows
    for section, part in sections.items():
        what, table = _TABLES[section], tables.get(section)
        if table is None:
            continue
        try:
            row = registry.find(table, part.name, what)
        except UserError as error:
            problems.append(f"{section}.name: {error}")
            continue
        found = check_options(row, part.name, part.options, what)[0]
        if not found and section in ("loss", "sampler"):  # cheap to make, and they check themselves
            try:
                made = build(table, part.name, part.options, what)
            except UserError as error:
                found = [str(error)]
            else:
                needs[section] = made.needs
                check = _check_loss if section == "loss" else sampler_problems
                found = check(config, made, part.name)
        problems += found
    if len(needs) == 2 and needs["sampler"].given and not needs["loss"].given:
        problems.append(
            f"sampler {config.sampler.name!r} gives the tokens that it commits, but loss "
            f"{config.loss.name!r} trains without given tokens; set loss.options.given=uniform, "
            "or choose another sampler"
        )
    if tables.get("eval") is not None:
        problems += _check_evaluators(config, tables["eval"])
    return problems


def _check_evaluators(config: Config, table: collections.abc.Mapping[str, Any]) -> list[str]:
    problems = [
        f"eval_options.{name} is set, but evals does not name {name!r}; add it, or omit the options"
        for name in config.eval_options
        if name not in config.evals
    ]
    for name in config.evals:
        try:
            row: Any = registry.find(table, name, "evaluator")
        except UserError as error:
            problems.append(f"evals: {error}")
            continue
        if row.corpus not in ("", config.data.name):
            problems.append(
                f"evaluator {name!r} is for data.name={row.corpus!r} only but data.name="
                f"{config.data.name!r}; remove it from evals or set data.name={row.corpus!r}"
            )
        options = config.eval_options.get(name, {})
        problems += check_options(row, name, options, "evaluator", EVALUATOR_GETS)[0]
    return problems


def _check_loss(config: Config, loss: Objective, name: str) -> list[str]:
    problems = []
    if loss.needs.named_teacher and not config.teacher:
        problems.append(
            f"loss {name!r} needs a teacher; give --config.teacher=WORKDIR, that of the run which "
            "it learns from, or another checkpoint"
        )
    elif config.teacher and not loss.needs.named_teacher:
        problems.append(
            f"teacher={config.teacher!r} is set but loss {name!r} uses none; "
            "remove teacher or choose a distillation loss"
        )
    elif config.init_from == "teacher" and not config.teacher:
        problems.append(
            "init_from='teacher' starts from the network that teacher names, but teacher is "
            "empty; give --config.teacher=CHECKPOINT or set init_from=''"
        )
    if loss.needs.starts_as and config.init_from not in ("", "teacher"):
        problems.append(
            f"init_from={config.init_from!r}, but loss {name!r} distils a model into itself and "
            "starts as its teacher; set init_from=teacher"
        )
    if loss.needs.masked_teacher and not config.masked_teacher:
        problems.append(
            f"loss {name!r} with loss.options.at_zero_fraction above 0 learns from a masked "
            "diffusion model; give --config.masked_teacher=CHECKPOINT or leave the option out"
        )
    elif config.masked_teacher and not loss.needs.masked_teacher:
        problems.append(
            f"masked_teacher={config.masked_teacher!r} is set but loss {name!r} uses none; "
            "remove it, or give loss any_order --config.loss.options.at_zero_fraction=0.25"
        )
    attention = config.model.attention
    if attention in ("splash", "tokamax") and loss.needs.forward_derivatives:
        problems.append(
            f"loss {name!r} takes forward derivatives, which model.attention={attention!r} has "
            "not; set model.attention='auto' or 'chunked'"
        )
    if config.model.input_scale and not (loss.denoises or loss.is_correction):
        problems.append(
            f"model.input_scale={config.model.input_scale:g} scales noised text, which the network "
            f"of loss {name!r} never sees; set model.input_scale=0"
        )
    if config.model.tied_head and loss.is_correction:
        problems.append(
            f"loss {name!r} starts with an output layer of zeros, which no embedding table is; "
            "set model.tied_head=False"
        )
    return problems + _misfits(config, loss.needs, f"loss {name!r} trains")


def sampler_problems(config: Config, sampler: Writer, name: str) -> list[str]:
    """Why a sampler cannot run on the model of a config, one sentence each."""
    misfits = _misfits(config, sampler.needs, f"sampler {name!r} needs", _ignored(sampler))
    return [*misfits, *knob_problems(config, sampler, name).values()]


def suits(config: Config, sampler: Writer) -> bool:
    """Whether a sampler is made for models of this kind."""
    return not _misfits(config, sampler.needs, "", _ignored(sampler))


def _ignored(sampler: Writer) -> tuple[str, ...]:
    """A network of two times is a denoiser on its diagonal, so samplers of one time can use it."""
    return () if sampler.needs.two_times else ("two_times",)


def knob_problems(
    config: Config,
    sampler: Writer,
    name: str,
    section: settings.SamplerConfig | None = None,
    length: int | None = None,
) -> dict[str, str]:
    """Why a sampler cannot run with these knobs, a sentence for each by its name.

    ``section`` holds the knobs, ``length`` is that of the samples, by default those of the config.
    """
    knobs = section or config.sampler
    length = length or config.data.length
    problems = {}
    if knobs.fixed_point_iterations > 1 and not config.model.self_conditioning:
        problems["fixed_point_iterations"] = (
            f"fixed_point_iterations={knobs.fixed_point_iterations} tells a network its own "
            "estimate, but model.self_conditioning=False; set it to 1"
        )
    problems |= _steering_problems(config, knobs)
    only = sampler.steps_for(length)
    wrong = ", ".join(str(steps) for steps in knobs.steps if only not in (None, steps))
    if wrong:
        problems["steps"] = (
            f"sampler {name!r} writes {length} tokens one by one, which takes {only} steps, not "
            f"{wrong}; set sampler.steps={only}"
        )
    return problems | sampler.without_effect(knobs)


def _steering_problems(config: Config, knobs: settings.SamplerConfig) -> dict[str, str]:
    """Why guides and rewards cannot be used with these knobs, by name; see `knob_problems`."""
    problems = {}
    if knobs.guidance != 1.0 and not knobs.guide:
        problems["guidance"] = (
            f"guidance={knobs.guidance:g} needs a guide; set guide to {', '.join(GUIDES)} or a "
            "checkpoint"
        )
    if knobs.guide == NO_ESTIMATE and not config.model.self_conditioning:
        problems["guide"] = (
            f"guide={NO_ESTIMATE!r} is not told what the network is told, its own estimate, but "
            "model.self_conditioning=False; choose another guide"
        )
    if knobs.reward_scale and knobs.reward_length:
        problems["reward_scale"] = (
            f"reward_scale={knobs.reward_scale:g} and reward_length={knobs.reward_length:g} both "
            "say how far a reward moves a text; leave one at 0"
        )
    return problems


_KINDS_OF_NETWORK = {
    "two_times": ("a network of two times (a flow map)", "a network of one time"),
    "causal": ("a causal network", "a network that is not causal"),
    "mask_token": ("a network with a mask token", "a network without a mask token"),
    "self_conditioning": ("", "a network without self-conditioning"),
}


def _misfits(config: Config, needs: Needs, begin: str, ignored: tuple[str, ...] = ()) -> list[str]:
    """Where the model is of another kind than a loss or a sampler is made for."""
    problems = []
    wanted, found = dataclasses.asdict(needs), dataclasses.asdict(config.model)
    if needs.self_conditioning:  # may be there or not
        ignored = (*ignored, "self_conditioning")
    for knob, (with_it, without_it) in _KINDS_OF_NETWORK.items():
        if wanted[knob] != found[knob] and knob not in ignored:
            problems.append(
                f"{begin} {with_it if wanted[knob] else without_it} but model.{knob}="
                f"{found[knob]}; set model.{knob}={wanted[knob]} or choose another"
            )
    return problems
