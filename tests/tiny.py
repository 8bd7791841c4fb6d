"""A tiny network, batch and context shared by the tests of flows, losses, samplers and steps."""

import dataclasses
import functools
import pathlib
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config as config_lib
from flm_jax.config import ModelConfig
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.at import At
from flm_jax.flow.net import Net
from flm_jax.flow.space import Space
from flm_jax.losses.base import Batch, Loss
from flm_jax.models import dit
from flm_jax.samplers.base import Sampler
from flm_jax.sampling import Sampling

V, B, L, D = 16, 4, 6, 8


def model(vocab_size: int = V, gather: dit.Gather | None = None, **changes) -> dit.Model:
    settings = dict(width=D, depth=2, heads=2, cond_dim=4, dropout=0.0, head_chunk=8)
    return dit.build(ModelConfig(**{**settings, **changes}), vocab_size, gather)


def needs(row: Loss | Sampler) -> dict[str, bool]:
    """The architecture that a loss or a sampler asks for, as changes of `model`."""
    knobs = "two_times", "causal", "mask_token"
    return {name: wanted for name, wanted in dataclasses.asdict(row.needs).items() if name in knobs}


def at(nets: dict[str, Net], make_space: type[Space], clock: clock_lib.Clock) -> At:
    """What losses and samplers are evaluated with; ``make_space`` makes a space of the tables."""
    return At(nets, make_space({role: net.table for role, net in nets.items()}), clock)


def write(sampler: Sampler, at: At, keys: jax.Array, *, length: int, **options: Any) -> tuple:
    """(tokens, trajectory) of `Sampler.run`; sampling knobs among the options make `Sampling`."""
    names = {field.name for field in dataclasses.fields(Sampling)}
    knobs = {name: options.pop(name) for name in names & set(options)}
    written = sampler.run(at, keys, Sampling(**knobs), length, **options)
    return written.tokens_BL, written.trajectory


def params(net_model: dit.Model, seed: int = 0, scale: float = 0.4) -> dict:
    """Parameters with nothing at zero; drawn by numpy, because compiling the draw takes seconds."""
    draw = np.random.default_rng(seed)
    shapes = jax.eval_shape(net_model.init, jax.random.key(0))

    def normal(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0  # of the norms
        return jnp.asarray(centre + scale * draw.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(normal, shapes)


def batch(seed: int = 0, size: int = B, length: int = L, vocab_size: int = V) -> Batch:
    tokens = jax.random.randint(jax.random.key(seed), (size, length), 0, vocab_size)
    return Batch(
        tokens.astype(jnp.int32),
        jnp.ones((size, length)),
        jnp.arange(size, dtype=jnp.int32),
        size,
    )


def wide(draws: dict) -> dict:
    """Draws of a loss with float64 in the place of float32, inside `jax.enable_x64`."""
    kinds = {name: x for name, x in draws.items() if x is not None and name != "dropout"}
    floats = {name: x for name, x in kinds.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return draws | {name: x.astype(float) for name, x in floats.items()}


def clock() -> clock_lib.Clock:
    return clock_lib.build(V)


WORDS = "red green blue one two three cat dog sun".split()


def run_config(folder: pathlib.Path, **overrides: Any) -> config_lib.Config:
    """A whole experiment of seconds on a text file that is written to ``folder``.

    ``overrides`` are dotted names with "__" for the dots, for example ``train__steps=4``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    lines = (" ".join(draw.choice(WORDS) for _ in range(6)) for _ in range(400))
    (folder / "corpus.txt").write_text("\n".join(lines))
    tree = {
        "data": {
            "name": "text_files",
            "length": 12,
            "cache_dir": str(folder / "cache"),
            "options": {"path": str(folder / "corpus.txt")},
        },
        "tokenizer": {"name": "characters"},
        "model": {"width": 16, "depth": 1, "heads": 2, "cond_dim": 8, "remat": False},
        "optim": {"learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "train": {
            "batch_size": 8,
            "steps": 12,
            "log_every": 2,
            "eval_every": 4,
            "sample_every": 8,
            "save_every": 4,
            "keep_latest": 9,
            "eval_rows": 12,
            "eval_taus": (0.3, 0.7),
        },
        "sampler": {"steps": (1, 3), "num_samples": 4, "batch_size": 8},
    }
    for name, value in overrides.items():
        *sections, key = name.split("__")
        section = functools.reduce(dict.__getitem__, sections, tree)
        section[key] = value
    return config_lib.resolve(tree)
