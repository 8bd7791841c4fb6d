"""What the page needs to know of a tokenizer to read what is typed (web/tokenizer.js)."""

from typing import Any

from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.characters import Characters
from flm_jax.tokenizers.sentencepiece import SentencePiece
from flm_jax.tokenizers.words import Words

NORMAL, UNKNOWN, USER_DEFINED, BYTE = 1, 2, 4, 6  # types of pieces, as SentencePiece has them


def described(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its kind and tables; of a tokenizer that the page cannot be, why nothing can be typed."""
    if isinstance(tokenizer, Characters | Words):
        ids = {piece: tokenizer.encode(piece)[0] for piece in tokenizer.pieces}
        return {"kind": tokenizer.name, "ids": ids, "unknown": 3}
    if isinstance(tokenizer, SentencePiece):
        return _of_sentencepiece(tokenizer)
    return {"why": f"The page has no {tokenizer.name} tokenizer"}


def _of_sentencepiece(tokenizer: SentencePiece) -> dict[str, Any]:
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto.FromString(tokenizer.model)  # pyright: ignore
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    plain = not (
        normalizer.precompiled_charsmap
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces
        or trainer.treat_whitespace_as_suffix
    )
    if trainer.model_type != trainer.UNIGRAM or not plain:
        return {"why": "The page reads SentencePiece models of the type unigram that keep the text"}
    kinds = [piece.type for piece in model.pieces]
    if USER_DEFINED in kinds:
        return {"why": "The page reads no SentencePiece model with symbols that a user defined"}
    return {
        "kind": "unigram",
        "ids": {p.piece: i for i, p in enumerate(model.pieces) if p.type == NORMAL},
        "scores": [piece.score for piece in model.pieces],
        "unknown": kinds.index(UNKNOWN),
        "bytes": [i for i, kind in enumerate(kinds) if kind == BYTE] if BYTE in kinds else None,
        "prefix": normalizer.add_dummy_prefix,
        "stand_in": tokenizer.stand_in,
    }
