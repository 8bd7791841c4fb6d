"""GSM8K: 8,792 questions of school arithmetic; what models trained on TinyGSM are tested with."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from flm_jax import errors, tokenizers
from flm_jax.data.published import base as published
from flm_jax.data.tasks import questions
from flm_jax.host.download import Download

_SITE = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"


class Gsm8k(questions.Questions):
    """`question` and `answer` of train.jsonl and test.jsonl (or Parquet); no validation split."""

    name = "gsm8k"
    kind = "school arithmetic, answered in words"
    licence = "MIT"
    wanted = "train.jsonl and test.jsonl, or Parquet files with these names"
    address = "https://github.com/openai/grade-school-math"
    hub_names = ("openai/gsm8k", "gsm8k")
    downloads = tuple(Download(_SITE + name, name) for name in ("train.jsonl", "test.jsonl"))
    distinct = False
    keys = ("question", "answer")

    def recognise(self, place: pathlib.Path) -> published.Parts | None:
        found = published.below(place, *questions.ENDINGS)
        sides = {
            side: tuple(questions.Pairs(path, self.keys) for path in found if side in path.name)
            for side in ("train", "test")
        }
        return {side: parts for side, parts in sides.items() if parts} or None


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Questions as the given beginnings of rows.

    Attributes:
      tokens_NL: int32, `[BOS] question separator [PAD] ...`.
      given_NL: bool, True on the prompt.
      kept_N: int64, which of the questions they are.
    """

    tokens_NL: np.ndarray
    given_NL: np.ndarray
    kept_N: np.ndarray


def prompts(
    asked: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    length: int,
    separator: str = questions.SEPARATOR,
) -> Prompts:
    """The questions whose prompt takes at most half a row of `length`; the others are left out.

    Raises UserError for a tokenizer without BOS or padding, and if no question is left.
    """
    bos_id, pad_id = tokenizer.bos_id, tokenizer.pad_id
    if bos_id is None or pad_id is None:
        raise errors.UserError(
            f"a prompt begins with BOS and is padded, but tokenizer {tokenizer.name!r} has no "
            f"{'BOS' if bos_id is None else 'padding'}; use one that has both"
        )
    between = tokenizer.encode(separator)
    rows = [[bos_id, *ids, *between] for ids in tokenizer.encode_batch([q.strip() for q in asked])]
    kept_N = np.array([i for i, row in enumerate(rows) if len(row) <= length // 2], np.int64)
    if not len(kept_N):
        raise errors.UserError(
            f"none of the {len(rows)} questions fits into {length // 2} tokens, half of the length "
            f"{length}; raise the length"
        )
    tokens_NL = np.full((len(kept_N), length), pad_id, np.int32)
    given_NL = np.zeros((len(kept_N), length), bool)
    for place, number in enumerate(kept_N):
        row = rows[number]
        tokens_NL[place, : len(row)] = row
        given_NL[place, : len(row)] = True
    return Prompts(tokens_NL, given_NL, kept_N)
