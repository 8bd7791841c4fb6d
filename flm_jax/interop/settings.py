"""Tokenizer and config for an official network, so that it can be used like a run of ours."""

import math
import pathlib
from typing import Any

from flm_jax import config as config_lib
from flm_jax import tokenizers
from flm_jax.errors import UserError
from flm_jax.host import folders
from flm_jax.interop.official import ANY_ORDER, Official
from flm_jax.models.layers import LOSS_WEIGHT_HIDDEN
from flm_jax.tokenizers.base import META_FILE

TOKENIZER_FOLDER = "tokenizer"
_OTHERS = ("ar", "d3pm", "sedd", "udlm")  # methods of the official code
OFFICIAL = "official"  # the stage of an official network's config
_FROM_FILES = ("gpt2", "bert-base-uncased")  # those that need no training text
# A file that tells which tokenizer a folder of published vocabulary files belongs to.
_VOCABULARY_FILES = {
    "vocab.txt": "bert-base-uncased",
    "vocab.json": "gpt2",
    "encoder.json": "gpt2",
    "tokenizer.json": "gpt2",
}


def text_setup(
    found: Official, asked: str | None = None, length: int | None = None
) -> tuple[tokenizers.Tokenizer, dict[str, Any], int]:
    """(tokenizer, its config section, block length) of an official network.

    `asked` is a name (gpt2, bert-base-uncased), a folder with the vocabulary files of one of them,
    a folder that a tokenizer of ours was saved to, or a workdir. Without it: the folder `tokenizer`
    beside the weights, or what the vocabulary size tells.

    Raises UserError if nothing tells, or if the vocabularies differ in size.
    """
    folder = _tokenizer_folder(found, asked)
    if folder is not None and (folder / META_FILE).is_file():
        tokenizer = tokenizers.load(folder)
        section, length = found.text_setup(tokenizer.name, length)
    else:
        name = _name_of(folder, asked)
        section, length = found.text_setup(name, length)
        if section["name"] not in _FROM_FILES:
            raise UserError(
                f"tokenizer={asked!r} is neither a folder with a tokenizer nor one of "
                f"{', '.join(_FROM_FILES)}; give the folder that it was saved to, for example the "
                "workdir of its run"
            )
        options = section["options"] | ({"folder": str(folder)} if folder is not None else {})
        recipe = config_lib.build(tokenizers.TOKENIZERS, section["name"], options, "tokenizer")
        tokenizer = recipe.build(lambda: ())
    config_lib.validate_vocabulary(found.vocab_size, tokenizer.vocab_size, str(found.path))
    if length < 3:
        raise UserError(f"length={length} must be at least 3: BOS, one token, EOS")
    return tokenizer, section, length


def check_logit_cap(logit_cap: float | None) -> None:
    """UserError for a cap that no network can have; None is the official one."""
    if logit_cap is not None and not 0 <= logit_cap < math.inf:
        raise UserError(
            f"logit_cap={logit_cap} must be a finite number of at least 0; 0 is no cap, as in the "
            "official code of February 2026, and 30 the cap of all other official code"
        )


def config_of(
    found: Official,
    tokenizer_section: dict[str, Any],
    length: int,
    logit_cap: float | None = None,
    attention_cap: float | None = None,
    clock: str | None = None,
) -> config_lib.Config:
    """The config of an official network: its sizes, the official caps and clock, our defaults.

    `logit_cap`, `attention_cap` and `clock` replace what the official network has.

    Raises UserError if the network has a part that ours cannot have, or something must be asked
    for that no tensor tells.
    """
    sizes = found.sizes
    if found.method in _OTHERS:
        raise UserError(
            f"{found.path} was trained by the method {found.method!r}, whose networks look like "
            "those of flow language models and are none; give a checkpoint of FLM, FMLM, FMLM+, "
            "MDLM or Duo"
        )
    if sizes.loss_weighting and sizes.loss_hidden != LOSS_WEIGHT_HIDDEN:
        raise UserError(
            f"{found.path} weights its loss with {sizes.loss_hidden} hidden units where the "
            f"official network has {LOSS_WEIGHT_HIDDEN}; it comes from a changed network"
        )
    dropout = found.option("model", "dropout")
    model = {
        "width": sizes.hidden_size,
        "depth": sizes.depth,
        "heads": found.heads,
        "cond_dim": sizes.cond_dim,
        "mlp_ratio": sizes.mlp_ratio,
        "two_times": sizes.two_times,
        "loss_weighting": sizes.loss_weighting,
    }
    if isinstance(dropout, int | float) and dropout is not True and 0 <= dropout < 1:
        model["dropout"] = float(dropout)
    loss, sampler = "flow_matching", "flow_map" if sizes.two_times else "euler"
    if found.masked or found.uniform:
        kind = "masked" if found.masked else "uniform"
        loss, sampler = f"{kind}_diffusion", f"ancestral_{kind}"
        attention_cap = _cap_of(found, kind) if attention_cap is None else attention_cap
        model |= {"mask_token": found.masked, "logit_cap": 0.0}
    elif found.method == ANY_ORDER:
        loss, clock = "any_order", clock or _clock_of_any_order(found)
    for name, cap in (("logit_cap", logit_cap), ("attention_cap", attention_cap)):
        if cap is not None:
            model[name] = float(cap)
    config = config_lib.resolve(
        {
            "stage": OFFICIAL,
            "data": {"length": length},
            "tokenizer": tokenizer_section,
            "model": model,
            "clock": {"name": clock or config_lib.Config().clock.name},
            "loss": {"name": loss},
            "sampler": {"name": sampler},
        }
    )
    for section in (config.model, config.clock):
        config_lib.validate_section(section)
    return config


def _cap_of(found: Official, kind: str) -> float:
    """The cap of a diffusion model's attention scores; any-order flow maps have 50 always."""
    cap = found.option("model", "softcap")
    if isinstance(cap, int | float) and not isinstance(cap, bool) and 0 <= cap < math.inf:
        return float(cap)
    raise UserError(
        f"{found.path} is a {kind} diffusion model that does not tell the cap of its attention "
        "scores (model.softcap); give --attention_cap=0 if the code of MDLM or Duo has trained it, "
        "50 for that of FLM"
    )


def _clock_of_any_order(found: Official) -> str:
    identity = found.option("algo", "skip_time_reparam")
    if isinstance(identity, bool):
        return "identity" if identity else "decoding_accuracy"
    raise UserError(
        f"{found.path} is an any-order flow map (FMLM+) that does not tell its clock "
        "(algo.skip_time_reparam), nor do its tensors; give --clock=identity, the default of its "
        "code, or --clock=decoding_accuracy"
    )


def _tokenizer_folder(found: Official, asked: str | None) -> pathlib.Path | None:
    """The folder to read a tokenizer from, or None if `asked` is a name or nothing."""
    if asked is None:
        beside = found.path / TOKENIZER_FOLDER
        return beside if (beside / META_FILE).is_file() else None
    folder = folders.expanded(asked)
    if asked in _FROM_FILES or not folder.is_dir():
        return None
    return folder if (folder / META_FILE).is_file() else _inside_workdir(folder)


def _inside_workdir(folder: pathlib.Path) -> pathlib.Path:
    inside = folder / TOKENIZER_FOLDER
    return inside if (inside / META_FILE).is_file() else folder


def _name_of(folder: pathlib.Path | None, asked: str | None) -> str | None:
    """The tokenizer that the vocabulary files in `folder` belong to; `asked` without one."""
    if folder is None:
        return asked
    for file, name in _VOCABULARY_FILES.items():
        if (folder / file).is_file():
            return name
    raise UserError(
        f"the folder tokenizer={asked} holds no tokenizer ({META_FILE}, vocab.txt or vocab.json); "
        "give the folder that a tokenizer was saved to"
    )
