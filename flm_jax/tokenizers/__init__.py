"""Tokenizers: one file per kind, one row per kind in `TOKENIZERS`.

A row is a `Recipe`, with the options of a config's tokenizer section as fields; its `build` makes
the `Tokenizer` of a text.
"""

import os

from flm_jax import errors, registry
from flm_jax.tokenizers.base import Documents, Recipe, Tokenizer, read_meta
from flm_jax.tokenizers.bert import BertRecipe
from flm_jax.tokenizers.byte_bpe import ByteBpeRecipe
from flm_jax.tokenizers.characters import CharactersRecipe
from flm_jax.tokenizers.gpt2 import Gpt2Recipe
from flm_jax.tokenizers.sentencepiece import SentencePieceRecipe
from flm_jax.tokenizers.sudoku import SudokuTokensRecipe
from flm_jax.tokenizers.words import WordsRecipe

TOKENIZERS: dict[str, type[Recipe]] = {
    "characters": CharactersRecipe,
    "sentencepiece": SentencePieceRecipe,
    "byte_bpe": ByteBpeRecipe,
    "gpt2": Gpt2Recipe,
    "bert-base-uncased": BertRecipe,
    "whitespace_words": WordsRecipe,
    "sudoku": SudokuTokensRecipe,
}

__all__ = ["TOKENIZERS", "Documents", "Recipe", "Tokenizer", "load"]


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
