"""Checkpoints to other layouts: official PyTorch files to a workdir of ours, and back."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from absl import logging

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.checkpoint import CHECKPOINTS_FOLDER, Checkpoints, checkpoints_of
from flm_jax.errors import UserError
from flm_jax.host import command, files, numerics, progress
from flm_jax.interop import hub_layout, official, release, settings
from flm_jax.models import dit, transfer
from flm_jax.options import Reading

STEP = 0  # of an imported checkpoint: training steps done here
# What the official layout cannot say, so that its readers assume these values.
_FIXED = (
    "model.logit_cap",
    "model.attention_cap",
    "model.causal",
    "model.mask_token",
    "model.learned_positions",
    "model.self_conditioning",
    "model.input_scale",
    "model.norm",
    "model.mlp",
    "model.qk_norm",
    "clock.name",
)


@numerics.pinned()
def convert(source: str, destination: str, asked: Reading = Reading()) -> pathlib.Path:  # noqa: B008  (frozen)
    """Writes ``destination`` from ``source``; returns its path.

    Raises UserError, and writes nothing, if the source cannot be converted or the destination is
    there already (an empty folder may be).
    """
    come, go = inference.place(source), pathlib.Path(destination).expanduser()
    files.check_new(go)
    values = dataclasses.asdict(asked)
    if inference.is_workdir(come):
        given = [name for name in inference.OF_OFFICIAL if values[name] is not None]
        if given:
            raise UserError(f"{come} is a workdir, which knows its {given[0]}; omit it")
        return _export(come, go, asked)
    if release.is_release(come):
        raise UserError(
            f"{come} is a model that flm export --format=hub wrote, which load, generate and "
            "evaluate read as it is; convert its workdir"
        )
    if asked.step is not None:
        raise UserError(f"{come} is not a workdir, so step={asked.step} cannot be chosen")
    return _import(come, go, asked)


def _import(source: pathlib.Path, destination: pathlib.Path, asked: Reading) -> pathlib.Path:
    """Official -> workdir with the items params (raw, where the file has them) and ema."""
    settings.check_logit_cap(asked.logit_cap)
    found = official.read(source, asked.weights, asked.heads)
    tokenizer, section, length = settings.text_setup(found, asked.tokenizer, asked.length)
    caps = asked.logit_cap, asked.attention_cap
    config = settings.config_of(found, section, length, *caps, asked.clock)
    items = {"ema": found.params()}
    if found.weights.startswith("ema"):
        items["params"] = official.read(source, "raw", asked.heads).params()
    else:
        items["params"] = items["ema"]
    kept = {name: found.config[name] for name in ("algo", "model") if name in found.config}
    meta = {
        "config": config_lib.to_dict(config),
        "tokenizer": tokenizer.fingerprint,
        "source": {"name": source.name, "ema": found.weights},
        "official": kept,
    }
    for notice in found.notices:
        logging.warning("%s", notice)
    with files.appearing(destination) as folder:
        (folder / "config.json").write_text(config_lib.to_json(config), encoding="utf-8")
        tokenizer.save(folder / inference.TOKENIZER_FOLDER)
        with Checkpoints(folder / CHECKPOINTS_FOLDER) as checkpoints:
            for _ in progress.bar(range(1), desc="writing", delay=2):
                arrays = jax.tree.map(jnp.asarray, items)
                checkpoints.save(STEP, arrays, meta, wait=True)
    following = command.pasteable("generate", f"--checkpoint={destination}", "--steps=32")
    print(
        f"wrote {destination}: {dit.count_parameters(items['ema']):,} parameters, "
        f"ema = {found.weights}, tokenizer {tokenizer.name}, length {length}\n"
        f"write texts:  {following}"
    )
    return destination


def _export(source: pathlib.Path, destination: pathlib.Path, asked: Reading) -> pathlib.Path:
    """Workdir -> model.safetensors and config.json, with our tokenizer folder beside them."""
    model = inference.load(source, asked.weights, asked.step)
    config, default = model.config, config_lib.Config()
    any_order = config.loss.name == "any_order"  # the official name of which tells the clock, too
    for key in _FIXED:
        if any_order and key == "clock.name":
            continue
        ours, theirs = (config_lib.value_at(c, key) for c in (config, default))
        if ours != theirs:
            raise UserError(
                f"{source} was trained with {key}={ours}, which the official layout cannot say "
                f"(its readers take {theirs}); only models with the official value can be exported"
            )
    with Checkpoints(checkpoints_of(source)) as checkpoints:
        # Not of model.step: a training may have deleted that, and all steps say the same of this.
        _, meta = checkpoints.restore_meta(asked.step)
    given = meta.get("official") or {}
    carried = {
        **given,
        "model": {**(given.get("model") or {}), "dropout": config.model.dropout},
    }
    if any_order:
        named = {"name": official.ANY_ORDER, "skip_time_reparam": config.clock.name == "identity"}
        carried["algo"] = {**(given.get("algo") or {}), **named}
    with files.appearing(destination) as folder:
        hub_layout.write(
            folder / "model",
            jax.device_get(transfer.untied(model.params)),
            heads=config.model.heads,
            length=config.data.length,
            config=carried,
        )
        for file in (folder / "model").iterdir():
            file.rename(folder / file.name)
        (folder / "model").rmdir()
        model.tokenizer.save(folder / settings.TOKENIZER_FOLDER)
    print(
        f"wrote {destination}: {dit.count_parameters(model.params):,} parameters "
        f"({asked.weights or 'ema'}, step {model.step}) in the official layout; "
        "the folder tokenizer in it is ours and needed only here"
    )
    return destination
