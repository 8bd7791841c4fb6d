"""A trained model read from disk: a run of ours or an official checkpoint."""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
from absl import logging

from flm_jax import config as config_lib
from flm_jax import shipped
from flm_jax.checkpoint import Checkpoints, checkpoints_of, fetched, is_address
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.host import folders, hub, numerics
from flm_jax.inference.model import FlowModel
from flm_jax.interop import release, settings
from flm_jax.tokenizers import Tokenizer

RAW, EMA = "raw", "ema"
TOKENIZER_FOLDER = "tokenizer"
# What a workdir knows by itself.
OF_OFFICIAL = ("tokenizer", "length", "heads", "logit_cap", "attention_cap", "clock")


@numerics.pinned()
def load(
    path: str | pathlib.Path,
    weights: str | None = None,
    step: int | None = None,
    tokenizer: str | pathlib.Path | None = None,
    length: int | None = None,
    heads: int | None = None,
    logit_cap: float | None = None,
    attention_cap: float | None = None,
    clock: str | None = None,
    teacher: str | pathlib.Path | None = None,
) -> FlowModel:
    """The model of a training run of ours, or of an official checkpoint.

    Args:
      path: the run's ``--workdir``; the name of a model that comes with the package, as "stories"
        (`flm_jax.shipped`); a folder of `flm export --format=hub`; an official Lightning ``.ckpt``,
        ``.safetensors`` file, or folder with config.json and model.safetensors; or
        hf://USER/REPO[@REVISION], which is one of these folders on a hub (`host.hub`). A workdir
        may be in a bucket: gs:// or s3://BUCKET/FOLDER. Nothing in such a file is ever executed.
      weights: "ema" (the default), "raw" (the trained parameters), or "ema:DECAY": one of several
        EMAs of an official .ckpt, or of a run with `optim.ema_decays`. Where an official file has
        no EMA, the default falls back to raw weights.
      step: a certain checkpoint of a workdir; the newest good one by default.
      tokenizer: for official checkpoints that do not tell it: gpt2, bert-base-uncased, or a folder
        (see `interop.settings.text_setup`).
      length: tokens of a text, likewise.
      heads: attention heads, likewise.
      logit_cap: for official checkpoints; 0 = none, as in the code of February 2026. Default 30.
      attention_cap: for official masked diffusion models that do not tell it: 0 = none (the code of
        MDLM), or 50 (that of FLM).
      clock: for official flow maps that do not tell it: "identity" (FMLM+) or "decoding_accuracy".
      teacher: where the denoiser of a correction (loss "residual") is now, if it has been moved.

    Raises UserError if there is no such model, it is damaged, or something must be asked for.
    """
    source = place(path)
    asked = tokenizer, length, heads, logit_cap, attention_cap, clock
    if is_workdir(source):
        given = [n for n, value in zip(OF_OFFICIAL, asked, strict=True) if value is not None]
        if given:
            raise UserError(f"{path} is a workdir, which knows its {given[0]}; omit {given[0]}")
        numerics.check_devices()
        return _load_workdir(source, weights or EMA, step, teacher)
    if release.is_release(source):
        known = dict(zip(OF_OFFICIAL, asked, strict=True)) | {"step": step, "teacher": teacher}
        for name in [name for name, value in known.items() if value is not None]:
            raise UserError(f"{path} is one model, which knows its {name}; omit {name}")
        numerics.check_devices()
        return _load_release(source, weights)
    for name, value in (("step", step), ("teacher", teacher)):
        if value is not None:
            raise UserError(f"{path} is not a workdir, so {name}={value} cannot be chosen; omit it")
    numerics.check_devices()
    return _load_official(source, weights, *asked)


def place(path: str | pathlib.Path) -> pathlib.Path:
    """Where a model is on this machine: hf://USER/REPO is downloaded, ~ replaced.

    The name of a shipped model means that one, unless there is a file or folder of this name. For a
    run in a bucket there is a local folder that stands for it; its checkpoints stay there.
    """
    if is_address(path):
        return fetched(str(path))
    if hub.is_address(path):
        return hub.fetch(str(path))
    return shipped.find(path) or folders.expanded(path)


def is_workdir(path: pathlib.Path) -> bool:
    """Whether a path is a run's workdir (not an official checkpoint); UserError if neither."""
    if not path.exists():
        raise UserError(
            f"there is no file or folder {path}; give the --workdir of a training run, an "
            f"official checkpoint, or a model that is here already: {', '.join(shipped.names())}"
        )
    if not path.is_dir() or (path / "model.safetensors").is_file():
        return False
    from flm_jax.interop import hub_layout

    hub_layout.refuse_other_weights(path)
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} holds no config.json and no model.safetensors; give the --workdir of a "
            "training run or an official checkpoint"
        )
    return True


def _load_workdir(
    folder: pathlib.Path, weights: str, step: int | None, teacher: str | pathlib.Path | None
) -> FlowModel:
    from flm_jax import tokenizers

    config = read_config(folder)
    item = item_of(weights, config)
    tokenizer = tokenizers.load(folder / TOKENIZER_FOLDER)
    experiment = Experiment(config, tokenizer.vocab_size)
    is_correction = experiment.loss.is_correction
    if teacher is not None and not is_correction:
        raise UserError(
            f"{folder} was trained with the loss {config.loss.name!r}, which writes without its "
            "teacher; omit teacher"
        )
    abstract = jax.eval_shape(experiment.model.init, numerics.key(0))
    with Checkpoints(checkpoints_of(folder)) as checkpoints:
        found, items, meta = checkpoints.restore({item: abstract}, step)
    frozen = {}
    if is_correction:
        places = [teacher] if teacher else [meta.get("teacher"), config.teacher]
        frozen["teacher"] = _load_teacher(folder, [one for one in places if one], tokenizer)
    return FlowModel(experiment, tokenizer, items[item], found, frozen=frozen)


def item_of(weights: str, config: config_lib.Config) -> str:
    """The item of a checkpoint that holds these weights; UserError if a run has none such."""
    items = {EMA: "ema", RAW: "params"}
    if config.stage != settings.OFFICIAL:  # whose EMA has the decay of its file, not of the config
        items[f"{EMA}:{config.optim.ema_decay}"] = "ema"
    items |= {f"{EMA}:{decay}": name for name, decay in config.optim.more_emas.items()}
    kind, _, decay = weights.partition(":")
    with contextlib.suppress(ValueError):
        weights = f"{kind}:{float(decay)}"
    if weights not in items:
        raise UserError(f"weights={weights!r} is unknown; choose {' or '.join(items)}")
    return items[weights]


def _load_release(folder: pathlib.Path, weights: str | None) -> FlowModel:
    found = release.read(folder)
    if weights not in (None, found.weights):
        raise UserError(f"{folder} holds the weights {found.weights!r} only; omit {weights!r}")
    experiment = Experiment(found.config, found.tokenizer.vocab_size)
    shapes = jax.eval_shape(experiment.model.init, numerics.key(0))
    release.check_shapes(found, shapes, folder)
    params = jax.tree.map(jnp.asarray, found.params)
    return FlowModel(experiment, found.tokenizer, params, found.step)


def _load_teacher(
    folder: pathlib.Path, places: list[str | pathlib.Path], tokenizer: Tokenizer
) -> FlowModel:
    """The denoiser of the correction in a workdir, at the first of the places that exists.

    An official checkpoint holds no tokenizer; it taught with that of the correction.
    """
    paths = [place(one) for one in places]
    path = next((path for path in paths if path.exists()), None)
    remedy = "say where it is now: teacher=DIR of flm_jax.load, --teacher=DIR of generate, evaluate"
    if path is None:
        tried = " and no ".join(dict.fromkeys(map(str, paths)))
        raise UserError(
            f"{folder} is the correction of a denoiser, its teacher, but there is no {tried}; "
            f"put it back, or {remedy}"
        )
    knows = is_workdir(path) or release.is_release(path)
    teacher = load(path, tokenizer=None if knows else folder / TOKENIZER_FOLDER)
    if teacher.frozen or teacher.tokenizer.fingerprint != tokenizer.fingerprint:
        what = "is a correction itself" if teacher.frozen else "has another tokenizer"
        raise UserError(f"{path} is not the denoiser that {folder} corrects, it {what}; {remedy}")
    return teacher


def _load_official(
    path: pathlib.Path,
    weights: str | None,
    tokenizer: str | pathlib.Path | None,
    length: int | None,
    heads: int | None,
    logit_cap: float | None,
    attention_cap: float | None,
    clock: str | None,
) -> FlowModel:
    from flm_jax.interop import official

    settings.check_logit_cap(logit_cap)
    found = official.read(path, weights, heads)
    asked = None if tokenizer is None else str(tokenizer)
    read, section, length = settings.text_setup(found, asked, length)
    config = settings.config_of(found, section, length, logit_cap, attention_cap, clock)
    experiment = Experiment(config, read.vocab_size)
    for notice in found.notices:
        logging.warning("%s", notice)
    params = jax.tree.map(jnp.asarray, found.params())
    return FlowModel(experiment, read, params)


def read_config(folder: pathlib.Path) -> config_lib.Config:
    """The config a workdir was made with; UserError if its file is damaged."""
    path = folder / "config.json"
    try:
        return config_lib.from_json(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it from a backup") from error
