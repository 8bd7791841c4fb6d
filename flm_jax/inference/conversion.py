"""Convert a checkpoint: official PyTorch files to a workdir of ours, or the other way round.

    flm convert lm1b_flm.ckpt runs/lm1b            official -> workdir
    flm convert FOLDER runs/owt --tokenizer=gpt2   config.json + model.safetensors
    flm convert runs/lm1b export                   workdir -> model.safetensors

SOURCE decides the direction. A workdir made so serves generate, evaluate and --config.init_from. A
.ckpt gives both the raw weights and the average; --weights says which average (ema:0.999), or that
the raw weights are to stand for it (raw). Nothing inside a file is ever executed, and DESTINATION
appears whole or not at all.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import tempfile
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from absl import flags, logging

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.checkpoint import Checkpoints
from flm_jax.cli import flags as command_line
from flm_jax.errors import UserError
from flm_jax.host import files, numerics, progress
from flm_jax.interop import hub_layout, official, settings
from flm_jax.models import dit

STEP = 0  # of an imported checkpoint: training steps done here
# What the official layout cannot say, so that its readers assume these values.
_FIXED = (
    "model.logit_cap",
    "model.attention_cap",
    "model.causal",
    "model.mask_token",
    "model.learned_positions",
    "clock.name",
)


@dataclasses.dataclass(frozen=True)
class Choices:
    """What may be asked for; None = decided by the source. See the flags."""

    weights: str | None = None
    step: int | None = None
    tokenizer: str | None = None
    length: int | None = None
    heads: int | None = None
    logit_cap: float | None = None


@numerics.pinned()
def convert(source: str, destination: str, choices: Choices = Choices()) -> pathlib.Path:  # noqa: B008  (frozen)
    """Writes ``destination`` from ``source``; returns its path.

    Raises UserError, and writes nothing, if the source cannot be converted or the destination is
    there already (an empty folder may be).
    """
    come, go = pathlib.Path(source).expanduser(), pathlib.Path(destination).expanduser()
    if os.path.exists(go) and not (go.is_dir() and not any(go.iterdir())):
        raise UserError(f"{go} exists already; choose another destination or remove it first")
    files.check_writable(go / "config.json" if os.path.isdir(go) else go)
    asked = dataclasses.asdict(choices)
    if inference.is_workdir(come):
        given = [name for name in inference.OF_OFFICIAL if asked[name] is not None]
        if given:
            raise UserError(f"{come} is a workdir, which knows its {given[0]}; leave it away")
        return _export(come, go, choices)
    if choices.step is not None:
        raise UserError(f"{come} is no workdir, so step={choices.step} cannot be chosen")
    return _import(come, go, choices)


def _import(source: pathlib.Path, destination: pathlib.Path, choices: Choices) -> pathlib.Path:
    """Official -> workdir with the items params (raw, where the file has them) and ema."""
    settings.check_logit_cap(choices.logit_cap)
    found = official.read(source, choices.weights, choices.heads)
    tokenizer, section, length = settings.text_setup(found, choices.tokenizer, choices.length)
    config = settings.config_of(found, section, length, choices.logit_cap)
    items = {"ema": found.params()}
    if found.weights.startswith("ema"):
        items["params"] = official.read(source, "raw", choices.heads).params()
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
    with _appearing(destination) as folder:
        (folder / "config.json").write_text(config_lib.to_json(config), encoding="utf-8")
        tokenizer.save(folder / inference.TOKENIZER_FOLDER)
        with Checkpoints(folder / inference.CHECKPOINTS_FOLDER) as checkpoints:
            for _ in progress.bar(range(1), desc="writing", delay=2):
                arrays = jax.tree.map(jnp.asarray, items)
                checkpoints.save(STEP, arrays, meta, wait=True)
    print(
        f"wrote {destination}: {dit.count_parameters(items['ema']):,} parameters, "
        f"ema = {found.weights}, tokenizer {tokenizer.name}, length {length}\n"
        "write texts:  flm generate "
        f"--checkpoint={shlex.quote(str(destination))} --steps=32"
    )
    return destination


def _export(source: pathlib.Path, destination: pathlib.Path, choices: Choices) -> pathlib.Path:
    """Workdir -> model.safetensors and config.json, with our tokenizer folder beside them."""
    model = inference.load(source, choices.weights, choices.step)
    config, default = model.config, config_lib.Config()
    for key in _FIXED:
        ours, theirs = (config_lib.value_at(c, key) for c in (config, default))
        if ours != theirs:
            raise UserError(
                f"{source} was trained with {key}={ours}, which the official layout cannot say "
                f"(its readers take {theirs}); only models with the official value can be exported"
            )
    with Checkpoints(inference.checkpoints_of(config, source)) as checkpoints:
        # Not of model.step: a training may have deleted that, and all steps say the same of this.
        _, meta = checkpoints.restore_meta(choices.step)
    given = meta.get("official") or {}
    carried = {
        **given,
        "model": {**(given.get("model") or {}), "dropout": config.model.dropout},
    }
    with _appearing(destination) as folder:
        hub_layout.write(
            folder / "model",
            jax.device_get(model.params),
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
        f"({choices.weights or 'ema'}, step {model.step}) in the official layout; "
        "the folder tokenizer in it is ours and needed only here"
    )
    return destination


@contextlib.contextmanager
def _appearing(destination: pathlib.Path) -> Iterator[pathlib.Path]:
    """An empty folder that becomes ``destination`` when the block ends well, else vanishes."""
    destination = pathlib.Path(os.path.realpath(destination))  # what a link points to
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{destination.name}-", dir=destination.parent, ignore_cleanup_errors=True
        ) as scratch:
            folder = pathlib.Path(scratch) / "whole"  # its mode follows the umask, unlike scratch's
            folder.mkdir()
            yield folder
            os.rename(folder, destination)
    except OSError as error:
        raise UserError(
            f"cannot write {destination} ({error.strerror or error}); free space or choose "
            "another destination"
        ) from None


def define_flags() -> None:
    """The flags of the tool; in a function, because other tools have flags of the same names."""
    flags.DEFINE_string(
        "weights", None, "official: raw, ema or ema:DECAY; of a workdir: ema (default) or raw"
    )
    flags.DEFINE_integer("step", None, "checkpoint of a workdir; the newest by default")
    flags.DEFINE_string(
        "tokenizer", None, "of an official source: gpt2, bert-base-uncased, or a tokenizer's folder"
    )
    flags.DEFINE_integer("length", None, "tokens per text of an official source")
    flags.DEFINE_integer("heads", None, "attention heads of an official source")
    flags.DEFINE_float(
        "logit_cap",
        None,
        "of an official source; 0 = none, as in the code of February 2026 (default 30)",
    )
    flags.FLAGS.set_gnu_getopt(True)


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise UserError(f"give SOURCE and DESTINATION, not {len(argv) - 1} arguments; see --help")
    names = [field.name for field in dataclasses.fields(Choices)]
    convert(argv[1], argv[2], Choices(**{name: flags.FLAGS[name].value for name in names}))


if __name__ == "__main__":
    define_flags()
    command_line.run_main(main)
