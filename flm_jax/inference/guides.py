"""Guides and rewards of a model's samples: what was asked for, loaded and checked.

A guide is a word of `sampling.GUIDES`, another model, or the path of one: a run's workdir, at a
certain training step as in ``runs/q@1000``, or an official checkpoint.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flm_jax.errors import UserError
from flm_jax.flow.at import GUIDE, STUDENT
from flm_jax.host import sharding
from flm_jax.inference import choose_sampler
from flm_jax.inference.programs import Programs
from flm_jax.samplers.base import Sampler
from flm_jax.samplers.reward import Reward
from flm_jax.sampling import GUIDES, NOTHING_GIVEN, Sampling

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel

_ANOTHER = "another model"  # the word for one that is given as an object


@dataclasses.dataclass(frozen=True, eq=False)
class Guided:
    """Another model that guides, the word that it was asked for by, the programs of both.

    ``params`` are its parameters by role, on the devices of the model that it guides.
    """

    word: str
    model: "FlowModel"
    programs: Programs
    params: dict[str, Any]


def in_words(knobs: Mapping[str, Any]) -> tuple["FlowModel | None", dict[str, Any]]:
    """The model among sampling knobs, if the guide is one, and the knobs with a word for it."""
    from flm_jax.inference.model import FlowModel

    guide = knobs.get("guide")
    if isinstance(guide, FlowModel):
        return guide, {**knobs, "guide": _ANOTHER}
    if guide is not None and not isinstance(guide, str):
        raise UserError(f"guide={guide!r} must be {', '.join(GUIDES)}, a model or its path")
    return None, dict(knobs)


def rewarded(sampling: Sampling, reward: Reward | None) -> Sampling:
    """The same with the reward; UserError for one without a strength, or a strength without one."""
    strength = sampling.reward_scale or sampling.reward_length
    if reward is None and strength:
        name = "reward_scale" if sampling.reward_scale else "reward_length"
        raise UserError(
            f"{name}={strength:g} is the strength of a reward, but there is none; give a function, "
            "model.generate(reward=...) in Python"
        )
    if reward is not None and not callable(reward):
        raise UserError(f"reward={reward!r} must be a function of what is predicted of the texts")
    if reward is not None and not strength:
        raise UserError(
            "a reward without reward_scale or reward_length has no effect; set for example "
            "reward_scale=1"
        )
    return dataclasses.replace(sampling, reward=reward)


def guided(
    model: "FlowModel",
    rule: Sampler,
    sampling: Sampling,
    other: "FlowModel | None",
    *,
    some_given: bool,
) -> Guided | None:
    """The other model that guides, and its programs, kept as ``model.guided``; None without one.

    Args:
      other: the model that was given as one.
      some_given: whether some tokens of the texts are.

    Raises UserError for a guide that does not fit model, sampler or texts.
    """
    if not sampling.guided:
        return None
    some_given |= rule.needs.given
    if sampling.guide == NOTHING_GIVEN:
        what = f"guide={NOTHING_GIVEN!r} is the model without the given tokens"
        if not some_given:
            raise UserError(f"{what}, but nothing is given; give a prompt or an infill text")
        choose_sampler.check_trained(model.experiment, what)
    if sampling.guide in GUIDES:
        return None
    kept = model.guided
    if kept is None or (kept.model is not other if other else kept.word != sampling.guide):
        other = other or _load(sampling.guide)
        experiments = {STUDENT: model.experiment, GUIDE: other.experiment}
        mesh, params = model.programs.mesh, other.params
        if mesh is not None:
            params = sharding.place(params, sharding.shardings(params, mesh))
        programs = Programs(experiments, model.tokenizer, mesh)
        kept = Guided(sampling.guide, other, programs, {GUIDE: params})
    _check(model, rule, kept, some_given)
    model.guided = kept
    return kept


def _load(word: str) -> "FlowModel":
    """The model at PATH or PATH@STEP."""
    from flm_jax.inference import loading

    path, at, step = word.rpartition("@")
    chosen = bool(path) and at == "@" and step.isdecimal()
    try:
        return loading.load(path, step=int(step)) if chosen else loading.load(word)
    except UserError as error:
        words = ", ".join(GUIDES)
        raise UserError(f"guide={word!r}, not one of {words}, is read as a path: {error}") from None


def _check(model: "FlowModel", rule: Sampler, guided: Guided, some_given: bool) -> None:
    """UserError unless the guide predicts the same texts at the same times as the model."""
    other = guided.model
    begin = f"guide={guided.word!r}"
    if other.frozen or not other.experiment.has_denoiser:
        raise UserError(
            f"{begin} does not predict a text from a noised one ({other.kind}); give a denoiser or "
            "a flow map"
        )
    sizes = [one.experiment.model.vocab_size for one in (model, other)]
    if sizes[0] != sizes[1] or model.tokenizer.fingerprint != other.tokenizer.fingerprint:
        raise UserError(
            f"{begin} has another vocabulary ({sizes[1]} tokens, this model {sizes[0]}); give a "
            "model with the same tokenizer"
        )
    if rule.needs.two_times and not other.config.model.two_times:
        raise UserError(
            f"{begin} is a denoiser, but {rule.kind} makes the jumps of a flow map; give a flow "
            "map, or sample with euler or churn"
        )
    if other.config.clock != model.config.clock:
        raise UserError(
            f"{begin} has the clock {other.config.clock.name!r}, this model "
            f"{model.config.clock.name!r}; give a model with the same clock"
        )
    if some_given and not other.experiment.loss.needs.given:
        raise UserError(
            f"{begin} was not trained for given tokens (loss {other.config.loss.name!r}), and some "
            "are given; give another model, or guide='dropout'"
        )
