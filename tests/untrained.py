"""Workdirs as a training run leaves them, with random parameters and no training."""

import pathlib

import jax
import numpy as np
import tiny

from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints
from flm_jax.data import load_data
from flm_jax.experiment import Experiment
from flm_jax.losses import LOSSES

STEP = 70


def workdir(
    folder: pathlib.Path, config: config_lib.Config, seed: int = 0, dumb: bool = True
) -> pathlib.Path:
    """Writes ``folder``; the raw parameters of a `dumb` one give all logits the value 0."""
    tokenizer = load_data(config.data, config.tokenizer).tokenizer
    model = Experiment(config, tokenizer.vocab_size).model
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    ema = jax.tree.map(lambda a: np.float32(rng.normal(0, 0.3, a.shape)), shapes)
    params = {**ema, "head": jax.tree.map(np.zeros_like, ema["head"])} if dumb else ema
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_lib.to_json(config))
    tokenizer.save(folder / "tokenizer")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        items = jax.tree.map(jax.numpy.asarray, {"params": params, "ema": ema})
        checkpoints.save(STEP, items, {"tokenizer": tokenizer.fingerprint}, wait=True)
    return folder


def of_loss(
    folder: pathlib.Path, loss: str, sampler: str, options: dict | None = None, **changes
) -> pathlib.Path:
    """A workdir of that loss and sampler in ``folder``/``loss``; see `tiny.run_config`."""
    row = LOSSES[loss]
    changes |= {f"model__{name}": wanted for name, wanted in tiny.needs(row()).items()}
    section = {"name": loss, "options": options or {}}
    config = tiny.run_config(folder, loss=section, sampler__name=sampler, **changes)
    return workdir(folder / loss, config)
