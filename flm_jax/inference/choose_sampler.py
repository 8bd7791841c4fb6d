"""Which sampler a model is sampled with, with which knobs, and whether they fit each other."""

import contextlib
import dataclasses
import numbers
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.registry import nearest
from flm_jax.samplers import SAMPLERS
from flm_jax.samplers.base import Sampler
from flm_jax.samplers.tokens import TokenSampler
from flm_jax.sampling import knob_fields

_ON_THE_DIAGONAL = (
    "this model is a flow map, which the sampler %r uses on the diagonal only (both times equal), "
    "like the model it was distilled from: take many steps, its jumps are not used"
)
_WITH_GIVEN = ("flow_matching", "psd", "lsd", "esd")  # losses with the option given=uniform
_KINDS = {
    "denoiser": "a denoiser of one time",
    "flow map": "a flow map",
    "correction": "the correction of a denoiser",
}


def kind(experiment: Experiment) -> str:
    """denoiser, flow map, correction, or how a baseline was trained: masked diffusion, ..."""
    if experiment.loss.is_correction:
        return "correction"
    if not experiment.has_denoiser:
        return experiment.config.loss.name.replace("_", " ")
    return "flow map" if experiment.config.model.two_times else "denoiser"


def choose(
    experiment: Experiment,
    with_teacher: bool,
    name: str,
    options: dict[str, Any] | None,
    knobs: Mapping[str, Any],
    length: int | None,
) -> tuple[Sampler, config_lib.SamplerConfig]:
    """See `FlowModel.sampler`; ``with_teacher``: the model is sampled with a frozen denoiser."""
    section = experiment.config.sampler
    name = name or section.name
    known = {field.name: field.type for field in dataclasses.fields(section)}
    for knob in knobs.keys() - known.keys():
        raise UserError(f"there is no sampling knob {knob!r}{nearest(knob, known)}")
    given = {
        knob: _checked(knob, value, known[knob])
        for knob, value in knobs.items()
        if value is not None
    }
    if name == section.name:
        options = {**section.options, **(options or {})}
    chosen = dataclasses.replace(section, **given)
    config_lib.validate_section(chosen)
    rule = experiment.sampler(name, options, chosen)
    if name != section.name:  # the config's knobs were not meant for it
        left = {f.name: f.default for f in knob_fields() if f.name not in rule.uses | set(given)}
        chosen = dataclasses.replace(chosen, **left)
    chosen = dataclasses.replace(chosen, name=name, options=options or {})

    _check(experiment, with_teacher, rule, chosen, length)
    if experiment.config.model.two_times and not rule.needs.two_times:
        logging.log_first_n(logging.WARNING, _ON_THE_DIAGONAL, 1, name)
    return rule, chosen


def _check(
    experiment: Experiment,
    with_teacher: bool,
    rule: Sampler,
    chosen: config_lib.SamplerConfig,
    length: int | None,
) -> None:
    """UserError unless the sampler is made for this model, and the knobs for the sampler."""
    if not _suits(experiment, with_teacher, rule):
        this = kind(experiment)
        vectors = experiment.has_denoiser or with_teacher  # the others sample tokens
        fit = [
            name
            for name, row in SAMPLERS.items()
            if issubclass(row, TokenSampler) != vectors
            and row().needs.given <= experiment.loss.needs.given
            and _suits(experiment, with_teacher, row())
        ]
        distil = "; a flow map comes by distilling it (loss psd, lsd or esd)"
        raise UserError(
            f"the sampler {chosen.name!r} does not fit this model, "
            f"{_KINDS.get(this, f'a baseline ({this})')}; use {' or '.join(fit) or 'another one'}"
            f"{distil if rule.needs.two_times and this == 'denoiser' else ''}"
        )
    if rule.needs.given:
        check_trained(experiment, f"the sampler {chosen.name!r} gives the tokens that it commits")
    problems = config_lib.knob_problems(experiment.config, rule, chosen.name, chosen, length)
    if problems:
        unused = chosen.changed().keys() - rule.uses
        sentences = (
            sentence + (_used_by(knob) if knob in unused else "")
            for knob, sentence in problems.items()
        )
        raise UserError("\n".join(sentences))


def check_given(experiment: Experiment, rule: Sampler, mask_BL: np.ndarray) -> None:
    """UserError unless the model can write around given tokens at these places, bool (B, L)."""
    if not isinstance(rule, TokenSampler):  # those of tokens have seen such texts in training
        check_trained(experiment, "some tokens are given")
    rule.check_given(mask_BL)


def check_trained(experiment: Experiment, why: str) -> None:
    """UserError unless the model was trained with given tokens; ``why`` it should begins it."""
    if experiment.loss.needs.given:
        return
    loss = experiment.config.loss.name
    option = "--config.loss.options.given=uniform"
    if loss not in _WITH_GIVEN:
        name = "any_order" if experiment.config.model.two_times else "flow_matching"
        option = f"--config.loss.name={name}" + f" {option}" * (name == "flow_matching")
    raise UserError(
        f"{why}, but this model was not trained for given tokens (loss {loss!r}); train one with "
        f"{option}"
    )


def _suits(experiment: Experiment, with_teacher: bool, rule: Sampler) -> bool:
    return rule.needs.teacher == with_teacher and config_lib.suits(experiment.config, rule)


def _used_by(knob: str) -> str:
    """Words for the end of a sentence: which samplers use a knob."""
    users = {name: row for name, row in SAMPLERS.items() if knob in row.uses}
    listed = [name + " (for flow maps)" * row().needs.two_times for name, row in users.items()]
    return f"; samplers that use it: {', '.join(listed)}"


def whole(name: str, value: Any) -> int:
    """An argument that counts something, numpy's integers too; UserError for anything else."""
    if not isinstance(value, bool):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise UserError(f"{name}={value!r} must be a whole number, for example {name}=8")


def _number(name: str, value: Any) -> float:
    """The value of a knob, numpy's numbers too; UserError for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name}={value!r} must be a number")
    return value if isinstance(value, int) else float(value)


def _checked(name: str, value: Any, annotation: Any) -> Any:
    """The value of a field of the config's sampler section, with Python's own numbers."""
    if name == "steps":
        return tuple(whole(name, count) for count in value)
    if annotation is int:
        return whole(name, value)
    return _number(name, value) if annotation is float else value
