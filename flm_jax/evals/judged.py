"""What a judge says of samples, and what samples say of held-out text.

Two directions of the same comparison. Nats per token under the truth praise whoever writes only
what is likely, one text again and again included. The likelihood of held-out text under an n-gram
model that is *fitted on the samples* falls for whoever leaves something out. Neither is enough
alone.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.evals import ngram
from flm_jax.evals.base import Column, Evaluator, Judge
from flm_jax.evals.causal import first_token
from flm_jax.tokenizers import Tokenizer

ORDER = 3  # of the model that is fitted on samples


class Judged(Evaluator):
    """Evaluator: nats per token and per character under a judge, and of held-out rows.

    Args:
      judge: who scores. Token for token where it reads the same tokens; always per character of
        the decoded text, so that models with other tokenizers can be compared.
      tokenizer: of the samples.
      held_out_rows: int (R, L) that neither judge nor model were fitted on; None: left out.
    """

    def __init__(self, judge: Judge, tokenizer: Tokenizer, held_out_rows: np.ndarray | None = None):
        self._judge, self._tokenizer, self._held_out = judge, tokenizer, held_out_rows
        self._same = judge.tokenizer.fingerprint == tokenizer.fingerprint
        columns = [_per_character(judge.name)]
        if self._same:
            columns.insert(0, _per_token(judge.name))
        if held_out_rows is not None:
            columns.append(_HELD_OUT)
        self.columns = tuple(columns)

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values for int rows (N, L)."""
        tokens_NL = np.asarray(tokens_NL)
        texts = [self._tokenizer.decode(row.tolist()) for row in tokens_NL]
        if self._same:
            nll_NM = self._judge.score(tokens_NL)
            yield "judge_nats", float(nll_NM.mean())
            nats, characters = float(nll_NM.sum()), sum(map(len, texts))
        else:
            nats, characters = score_texts(self._judge, texts)
        yield "judge_nats_per_character", nats / characters if characters else math.nan
        if self._held_out is not None:
            fitted = ngram.fit(tokens_NL, ORDER, self._tokenizer)
            yield "held_out_nats", float(fitted.score(self._held_out).mean())


class Remembering:
    """A judge that scores a row once, where the same rows come in many sets."""

    def __init__(self, judge: Judge):
        self.name, self.tokenizer, self.longest = judge.name, judge.tokenizer, judge.longest
        self._judge = judge
        self._known: dict[bytes, np.ndarray] = {}

    @property
    def fingerprint(self) -> str:
        """Of the judge."""
        return self._judge.fingerprint

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """See `base.Judge`."""
        rows = np.ascontiguousarray(tokens_NL)
        keys = [row.tobytes() for row in rows]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            scores = self._judge.score(rows[new])
            self._known |= {keys[i]: row for i, row in zip(new, scores, strict=True)}
        return np.stack([self._known[key] for key in keys])


def score_texts(judge: Judge, texts: Sequence[str]) -> tuple[float, int]:
    """(nats, characters) of all texts together; see `score_each`."""
    scores = score_each(judge, texts)
    return float(scores.nats_N.sum()), int(scores.characters_N.sum())


class Scores(NamedTuple):
    """Of each text: -log p, and how many of the judge's tokens and characters that is of."""

    nats_N: np.ndarray
    tokens_N: np.ndarray
    characters_N: np.ndarray


def score_each(judge: Judge, texts: Sequence[str]) -> Scores:
    """Scores of texts, each behind the judge's BOS and in its own tokens.

    What of a text is longer than the judge can read is neither scored nor counted. Texts are scored
    in one batch, filled up behind their ends.
    """
    rows, tokens_N, characters_N = encode_each(judge, texts)
    nats_N = np.zeros(len(texts))
    if rows.shape[1] > 1:
        counted = np.arange(rows.shape[1] - 1)[None] < tokens_N[:, None]
        nats_N = (judge.score(rows) * counted).sum(axis=1, dtype=np.float64)
    return Scores(nats_N, tokens_N, characters_N)


def encode_each(judge: Judge, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 rows (N, L) of the judge's tokens behind its BOS, and of each row what counts.

    That is its tokens without BOS and what fills it up, and their characters.
    """
    encoded = judge.tokenizer.encode_batch(list(texts))
    characters = list(map(len, texts))
    for i, ids in enumerate(encoded):
        if judge.longest and len(ids) >= judge.longest:
            encoded[i] = ids[: judge.longest - 1]
            lost = len(judge.tokenizer.decode(ids)) - len(judge.tokenizer.decode(encoded[i]))
            characters[i] -= lost
    tokens_N = np.array([len(ids) for ids in encoded], np.int64)
    rows = np.zeros((len(texts), 1 + max(tokens_N, default=0)), np.int32)
    rows[:, 0] = first_token(judge.tokenizer)
    for row, ids in zip(rows, encoded, strict=True):
        row[1 : 1 + len(ids)] = ids
    return rows, tokens_N, np.array(characters, np.int64)


def _per_token(judge: str) -> Column:
    return Column(
        "judge_nats",
        "nats / token",
        f"Mean -log p of a token under {judge}. Lower than that of real text: only the likely is "
        "written; look at distinct-4, too.",
        "data",
        "nats",
    )


def _per_character(judge: str) -> Column:
    return Column(
        "judge_nats_per_character",
        "nats / character",
        f"-log p of the decoded text under {judge}, per character: comparable over tokenizers.",
        "data",
        "nats",
    )


_HELD_OUT = Column(
    "held_out_nats",
    "held-out nats",
    f"Mean -log p of a token of held-out text under a {ORDER}-gram model fitted on the samples. "
    "Higher than for as much real text: the samples leave something out, or add what does not "
    "belong there.",
    "lower",
    "nats",
)
