"""Tokenizers: one file per kind, one row per kind in `TOKENIZERS`."""

import inspect
import os

from flm_jax import errors
from flm_jax.tokenizers.base import Documents, Tokenizer, read_meta
from flm_jax.tokenizers.characters import Characters
from flm_jax.tokenizers.sentencepiece import SentencePiece

TOKENIZERS = {
    "characters": Characters,
    "sentencepiece": SentencePiece,
}

__all__ = ["TOKENIZERS", "Documents", "Tokenizer", "build", "load"]


def build(section: dict, documents: Documents, cache_dir: str = "") -> Tokenizer:
    """Makes, or takes from the cache, the tokenizer that a config section asks for.

    Args:
      section: `{"name": row of TOKENIZERS, "options": {...}}`; options are the keyword arguments of
        that kind's `build`.
      documents: called for each pass over the training text.
      cache_dir: where trained models are kept; "" for no cache.

    Raises:
      UserError: unknown name or option, or text that this tokenizer cannot be built from.
    """
    kind = _kind(section.get("name"))
    options = dict(section.get("options") or {})
    known = [p for p in inspect.signature(kind.build).parameters if p != "documents"]
    known.remove("cache_dir")
    for option in options:
        if option not in known:
            raise errors.UserError(
                f"tokenizer {section['name']!r} has no option {option!r}; "
                f"its options are: {', '.join(known) or 'none'}"
            )
    return kind.build(documents, cache_dir, **options)


def load(folder: str | os.PathLike) -> Tokenizer:
    """Reads a tokenizer that was saved with `tokenizer.save(folder)`.

    Raises:
      UserError: the folder holds no tokenizer, or a damaged one.
    """
    meta = read_meta(folder)
    tokenizer = _kind(meta["name"]).from_files(folder, meta)
    if tokenizer.fingerprint != meta["fingerprint"]:
        raise errors.UserError(
            f"the tokenizer in {folder} is not the one that was saved (fingerprint "
            f"{tokenizer.fingerprint[:12]} instead of {meta['fingerprint'][:12]}); copy it again"
        )
    return tokenizer


def _kind(name: str | None) -> type:
    if name not in TOKENIZERS:
        raise errors.UserError(f"unknown tokenizer {name!r}; choose one of {', '.join(TOKENIZERS)}")
    return TOKENIZERS[name]
