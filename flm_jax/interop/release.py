"""A trained model of ours as a folder for a model hub: what others need to write with it, no more.

    config.json         "model_type": "flm_jax", the config, training step, kind of weights, a hash
    model.safetensors   one set of parameters, float32 or float16, under names like
                        blocks/qkv/kernel
    tokenizer/          as tokenizers save themselves
    README.md           the model card (`flm_jax.export.hub`)

A run's workdir has more: optimizer state, several checkpoints. Such a folder may come from a
stranger, so no code is named in it: a config with classes of somebody's own modules is refused.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flm_jax import config as config_lib
from flm_jax import tokenizers
from flm_jax.config import settings
from flm_jax.errors import UserError, first_line
from flm_jax.flow.trees import Params
from flm_jax.interop import flat
from flm_jax.interop.hub_layout import CONFIG_FILE, WEIGHTS_FILE

MODEL_TYPE = "flm_jax"
TOKENIZER_FOLDER = "tokenizer"
DTYPES = "float32", "float16"
_AGAIN = "get the folder again"
# What says where things were on the machine of the training, and nothing about the model.
_PLACES = (
    "init_from",
    "teacher",
    "masked_teacher",
    "data.cache_dir",
    "train.compilation_cache",
)


@dataclasses.dataclass(frozen=True)
class Release:
    """What such a folder holds. ``weights``: "ema", "ema:DECAY" or "raw"."""

    config: config_lib.Config
    tokenizer: tokenizers.Tokenizer
    arrays: Mapping[str, np.ndarray]
    step: int
    weights: str

    @property
    def params(self) -> Params:
        return flat.nested(self.arrays)


def write(folder: pathlib.Path, release: Release, version: str, dtype: str = "float32") -> None:
    """Writes it into a folder that is there; ``version`` is that of flm_jax.

    Paths of this machine in the config are left out, or cut to their last part. ``dtype``, one of
    DTYPES, is that of the file; a model is float32 again when it is read. Raises UserError for a
    config that names somebody's own classes, and weights too large for the dtype.
    """
    from safetensors.numpy import save_file

    config = without_places(release.config)
    _check_names(config, release.tokenizer.name, "it cannot be loaded elsewhere; share the code")
    with np.errstate(over="ignore"):  # the sentence below says it
        arrays = {name: array.astype(dtype) for name, array in release.arrays.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{name} has values that {dtype} cannot hold; write the model as float32"
            )
    save_file(arrays, folder / WEIGHTS_FILE, metadata={"format": "flax"})
    (folder / WEIGHTS_FILE).chmod(0o644)  # save_file makes it private
    about = {
        "model_type": MODEL_TYPE,
        "flm_jax_version": version,
        "training_step": release.step,
        "weights": release.weights,
        "sha256": _hash(folder / WEIGHTS_FILE),
        "config": config_lib.to_dict(config),
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    release.tokenizer.save(folder / TOKENIZER_FOLDER)


def is_release(folder: pathlib.Path) -> bool:
    """Whether a folder says that it is one."""
    return _about(folder).get("model_type") == MODEL_TYPE


def read(folder: pathlib.Path) -> Release:
    """What a folder holds; UserError if it is incomplete or damaged, or names code."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    about, path = _about(folder), folder / WEIGHTS_FILE
    if not {"config", "training_step", "weights", "sha256"} <= about.keys():
        raise UserError(f"{folder / CONFIG_FILE} is damaged; {_AGAIN}")
    config = config_lib.from_json(about["config"], folder / CONFIG_FILE)
    name = str(tokenizers.read_meta(folder / TOKENIZER_FOLDER)["name"])
    _check_names(config, name, "code is not run from a model; get it from its author")
    try:
        if _hash(path) != about["sha256"]:
            raise UserError(f"{path} is not the file that was written (its SHA-256); {_AGAIN}")
        arrays = {name: array.astype(np.float32) for name, array in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); {_AGAIN}") from error
    tokenizer = tokenizers.load(folder / TOKENIZER_FOLDER)
    return Release(config, tokenizer, arrays, int(about["training_step"]), str(about["weights"]))


def check_shapes(release: Release, expected: Params, folder: pathlib.Path) -> None:
    """UserError unless its arrays are those of a network (a tree of shapes)."""
    wanted = {name: tuple(leaf.shape) for name, leaf in flat.leaves(expected)}
    found = {name: array.shape for name, array in release.arrays.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise UserError(
                f"{folder / WEIGHTS_FILE} has {name} as {found.get(name)}, where the network of "
                f"{CONFIG_FILE} has {wanted.get(name)}; {_AGAIN}"
            )


def without_places(config: config_lib.Config) -> config_lib.Config:
    """The config without paths of the machine that it was trained on."""
    default = config_lib.Config()
    changes = {key: config_lib.value_at(default, key) for key in _PLACES}
    config = config_lib.changed(config, changes)
    return config_lib.from_json(_cut(config_lib.to_dict(config)))


def cut(text: str) -> str:
    """A path from a root or a home cut to its last part, also behind --option=; else the text."""
    begin, equals, place = text.rpartition("=")
    if place[:1] not in ("/", "~", "\\") and place[1:3] not in (":\\", ":/"):
        return text
    return begin + equals + place.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _cut(value: Any) -> Any:
    """The same for all texts in what JSON holds."""
    if isinstance(value, dict):
        return {key: _cut(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cut(part) for part in value]
    return cut(value) if isinstance(value, str) else value


def _check_names(config: config_lib.Config, tokenizer: str, why: str) -> None:
    """UserError for a name MODULE:CLASS, which the registries would import."""
    for key, name in [*_names(config), ("the tokenizer's name", tokenizer)]:
        if ":" in name:
            raise UserError(f"{key} is {name}, a class of somebody's own module: {why}")


def _names(config: config_lib.Config) -> Iterator[tuple[str, str]]:
    for key, _ in settings.knobs():
        if key.rpartition(".")[2] == "name":
            yield key, config_lib.value_at(config, key)
    yield from (("evals", name) for name in config.evals)


def _about(folder: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _hash(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
