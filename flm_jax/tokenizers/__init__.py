"""Tokenizers: one file per kind, one row per kind in `TOKENIZERS`."""

import dataclasses
import os

from flm_jax import errors, registry
from flm_jax.tokenizers.base import Documents, Recipe, Tokenizer, read_meta
from flm_jax.tokenizers.bert import BertRecipe
from flm_jax.tokenizers.byte_bpe import ByteBpeRecipe
from flm_jax.tokenizers.characters import CharactersRecipe
from flm_jax.tokenizers.gpt2 import Gpt2Recipe
from flm_jax.tokenizers.sentencepiece import SentencePieceRecipe
from flm_jax.tokenizers.words import WordsRecipe

TOKENIZERS: dict[str, type[Recipe]] = {
    "characters": CharactersRecipe,
    "sentencepiece": SentencePieceRecipe,
    "byte_bpe": ByteBpeRecipe,
    "gpt2": Gpt2Recipe,
    "bert-base-uncased": BertRecipe,
    "whitespace_words": WordsRecipe,
}

__all__ = ["TOKENIZERS", "Documents", "Recipe", "Tokenizer", "build", "load"]


def build(
    section: dict, documents: Documents, cache_dir: str = "", fingerprint: str = ""
) -> Tokenizer:
    """Makes, or takes from the cache, the tokenizer that a config section asks for.

    Args:
      section: `{"name": row of TOKENIZERS, "options": {...}}`; options are the fields of the
        row.
      documents: called for each pass over the training text.
      cache_dir: where trained models are kept; "" for no cache.
      fingerprint: stands for the training text, if it is known.

    Raises:
      UserError: unknown name or option, or text that this tokenizer cannot be built from.
    """
    recipe = registry.find(TOKENIZERS, section.get("name") or "", "tokenizer")
    options = dict(section.get("options") or {})
    known = [field.name for field in dataclasses.fields(recipe)]
    for option in options:
        if option not in known:
            raise errors.UserError(
                f"tokenizer {section['name']!r} has no option {option!r}; "
                f"its options are: {', '.join(known) or 'none'}"
            )
    return recipe(**options).build(documents, cache_dir, fingerprint)


def load(folder: str | os.PathLike) -> Tokenizer:
    """Reads a tokenizer that was saved with `tokenizer.save(folder)`.

    Raises:
      UserError: the folder holds no tokenizer, or a damaged one.
    """
    meta = read_meta(folder)
    tokenizer = registry.find(TOKENIZERS, meta["name"], "tokenizer").from_files(folder, meta)
    if tokenizer.fingerprint != meta["fingerprint"]:
        raise errors.UserError(
            f"the tokenizer in {folder} is not the one that was saved (fingerprint "
            f"{tokenizer.fingerprint[:12]} instead of {meta['fingerprint'][:12]}); copy it again"
        )
    return tokenizer
