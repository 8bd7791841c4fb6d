"""Other models that a run starts from: frozen teachers, and the source of its first parameters."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax

from flm_jax import config as config_lib
from flm_jax.data import Data
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow.at import MASKED_TEACHER
from flm_jax.host import numerics
from flm_jax.inference import FlowModel, is_workdir, load, place
from flm_jax.interop import release
from flm_jax.losses.base import Loss
from flm_jax.models import transfer

THE_TEACHER = "teacher"  # the value of init_from that means config.teacher


@dataclasses.dataclass(frozen=True)
class Sources:
    """``frozen`` holds the loss's frozen networks by role; ``first`` what the run starts from.

    ``source`` is the name of ``first`` in the config.
    """

    frozen: dict[str, FlowModel]
    first: FlowModel | None
    source: str


def load_sources(experiment: Experiment, data: Data) -> Sources:
    """Loads and checks the models that a config names.

    Raises UserError if one does not exist, reads other tokens, is of the wrong kind, or does not
    fit the network that starts from it.
    """
    config, loss = experiment.config, experiment.loss
    frozen = {}
    if loss.needs.teacher:
        teacher = read(config.teacher, data, "teacher")
        check(teacher, experiment, data, "teacher", config.teacher)
        if loss.needs.residual:
            frozen["residual"], teacher = teacher, teacher.frozen.get("teacher")
            if teacher is None:
                raise UserError(
                    f"teacher={config.teacher!r} is not a run of the loss 'residual' (stage 1), "
                    f"which the loss {config.loss.name!r} compresses; train that first"
                )
        if teacher.frozen:
            raise UserError(
                f"teacher={config.teacher!r} was trained with the loss "
                f"{teacher.config.loss.name!r}: it is a correction, not a denoiser; give the "
                "denoiser that it corrects"
            )
        _check_given(teacher, loss, config)
        _check_iterations(teacher, loss, config)
        frozen["teacher"] = teacher
    if loss.needs.masked_teacher:
        frozen[MASKED_TEACHER] = read_masked(config.masked_teacher, experiment, data)
    first, source = None, config.init_from or config.teacher
    if loss.needs.starts_as:
        first = read_itself(loss, experiment, data)
    elif config.init_from == THE_TEACHER:
        first = frozen["teacher"]
    elif config.init_from:
        first = read(config.init_from, data, "init_from")
        check(first, experiment, data, "init_from", config.init_from)
    if first is not None:  # from shapes alone: nothing is computed, nothing written yet
        fresh = jax.eval_shape(experiment.model.init, numerics.key(0))
        jax.eval_shape(lambda fresh: first_params(first, fresh, loss, source), fresh)
    return Sources(frozen, first, source)


def read_masked(source: str, experiment: Experiment, data: Data) -> FlowModel:
    """The masked diffusion model that teaches; UserError if it is another kind of model."""
    masked = read(source, data, "masked_teacher")
    check(masked, experiment, data, "masked_teacher", source)
    if not masked.config.model.mask_token:
        raise UserError(
            f"masked_teacher={source!r} was trained with the loss {masked.config.loss.name!r}, not "
            "with 'masked_diffusion'; give a masked diffusion model, or name it as the teacher"
        )
    return masked


def read_itself(loss: Loss, experiment: Experiment, data: Data) -> FlowModel:
    """The model that is distilled into itself; UserError if it is another kind of model."""
    config = experiment.config
    found = read(config.teacher, data, "teacher")
    check(found, experiment, data, "teacher", config.teacher)
    if found.config.loss.name not in loss.needs.starts_as:
        raise UserError(
            f"teacher={config.teacher!r} was trained with the loss {found.config.loss.name!r}, but "
            f"loss {config.loss.name!r} distils models of {' or '.join(loss.needs.starts_as)}; "
            "give one of those"
        )
    return found


def _check_given(teacher: FlowModel, loss: Loss, config: config_lib.Config) -> None:
    """UserError if the student sees given tokens and the teacher has never seen any."""
    if loss.needs.given and not teacher.experiment.loss.needs.given:
        raise UserError(
            f"loss {config.loss.name!r} gives some tokens, but teacher={config.teacher!r} was "
            "trained without given tokens; train it with --config.loss.options.given=uniform, or "
            "learn from the data with --config.loss.options.on_diagonal=data and no teacher"
        )


def _check_iterations(teacher: FlowModel, loss: Loss, config: config_lib.Config) -> None:
    """UserError if the teacher is to be told its estimate and cannot be."""
    wanted = loss.needs.teacher_self_conditioning
    if wanted and not teacher.config.model.self_conditioning:
        raise UserError(
            f"loss.options.teacher_iterations tells the teacher its own estimate, but teacher="
            f"{config.teacher!r} was trained with model.self_conditioning=False; train it with "
            "True, or omit the option"
        )


def read(source: str, data: Data, knob: str) -> FlowModel:
    """The model at a path; an official checkpoint is read with the run's own tokenizer.

    It holds none: only the size of its vocabulary says whether they fit. UserError that names the
    knob if there is nothing.
    """
    path = place(source)
    if not path.exists():
        raise UserError(
            f"{knob}={source!r} does not exist; set --config.{knob} to the workdir of a finished "
            "run or to an official checkpoint"
        )
    if is_workdir(path) or release.is_release(path):
        return load(path)
    with tempfile.TemporaryDirectory() as folder:
        data.tokenizer.save(pathlib.Path(folder))
        return load(path, tokenizer=folder)


def check(other: FlowModel, experiment: Experiment, data: Data, knob: str, source: str) -> None:
    """UserError unless the other model reads the same tokens in rows of the same length."""
    config_lib.validate_vocabulary(other.experiment.vocab_size, experiment.vocab_size, source)
    theirs, ours = other.tokenizer.fingerprint, data.tokenizer.fingerprint
    if theirs != ours:
        raise UserError(
            f"{knob}={source!r} was trained with another tokenizer (fingerprint {theirs[:12]}, "
            f"here {ours[:12]}), so its rows of the embedding table mean other pieces; use the "
            "same tokenizer"
        )
    theirs, ours = other.config.data.length, experiment.config.data.length
    if theirs != ours:
        raise UserError(
            f"{knob}={source!r} was trained on blocks of {theirs} tokens, here data.length={ours}; "
            f"set data.length={theirs}"
        )


def first_params(first: FlowModel, fresh: Any, loss: Loss, source: str) -> Any:
    """The first parameters of a run: those of ``first``, fitted to the new network.

    A masked diffusion model gives them without its mask.

    Raises UserError if the networks differ in more than the second time or the loss weighting.
    """
    params = first.params
    if first.config.model.mask_token and not loss.needs.mask_token:
        params = transfer.without_mask(params)
    return adopt(transfer.student_from(fresh, params, loss.is_correction), fresh, source)


def adopt(params: Any, wanted: Any, source: str) -> Any:
    """``params``, if names and shapes are those of ``wanted``; else UserError naming the first."""
    have, want = (
        {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in flat}
        for flat in (jax.tree_util.tree_flatten_with_path(tree)[0] for tree in (params, wanted))
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UserError(
                f"init_from={source!r} does not fit this model: {name} is "
                f"{have.get(name, 'absent')} there but {want.get(name, 'absent')} here; use the "
                "same model section (two_times, loss_weighting and self_conditioning may differ, "
                "learned_positions may be added), or init_from='' for a student of another size"
            )
    return params
