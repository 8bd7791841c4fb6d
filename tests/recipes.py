"""The tokenizer of a config section, as `data.plan` makes it."""

import os

from flm_jax import config as config_lib
from flm_jax.tokenizers import TOKENIZERS, Documents, Tokenizer


def make_tokenizer(
    section: dict, documents: Documents, cache_dir: str | os.PathLike = "", fingerprint: str = ""
) -> Tokenizer:
    """`section` is {"name": row of TOKENIZERS, "options": {...}}; the rest is of `Recipe.build`."""
    options = section.get("options", {})
    recipe = config_lib.build(TOKENIZERS, section["name"], options, "tokenizer")
    return recipe.build(documents, cache_dir, fingerprint)
