"""How likely GPT-2 finds generated texts: the official metric, a clean one, and sample entropy.

The official metric (algorithms.md 8.1) scores the decoded text with its special tokens written out,
cuts it at the sample's length in GPT-2 tokens, and leaves out samples beyond whole batches. The
clean one scores every token of every sample and no special token. Both are exp of the mean over
tokens. Either can be had at will by samples that repeat themselves, so the entropy belongs beside
them.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from flm_jax.evals import gpt2
from flm_jax.evals.base import Column, Evaluator
from flm_jax.host import progress
from flm_jax.tokenizers.base import Tokenizer

COLUMNS = (
    Column(
        "gen_ppl",
        "generative perplexity",
        "Perplexity of the texts under GPT-2, every token of every sample, no special tokens.",
        "data",
    ),
    Column(
        "gen_ppl_official",
        "generative perplexity (official)",
        "The same as the official code computes it: special tokens written out and scored, texts "
        "cut at the block length in GPT-2 tokens, samples beyond whole batches left out.",
        "data",
    ),
    Column(
        "sample_entropy",
        "sample entropy",
        "Entropy of the token frequencies inside each sample, averaged; low when samples repeat "
        "themselves.",
        "data",
        "nats",
    ),
)


@dataclasses.dataclass(frozen=True)
class Score:
    """`nll` is the sum over `tokens` scored tokens of `samples` scored samples."""

    nll: float
    tokens: int
    samples: int

    @property
    def perplexity(self) -> float:
        """exp(nll / tokens); nan if nothing was scored, inf beyond what a float holds."""
        if self.tokens == 0:
            return math.nan
        mean = self.nll / self.tokens
        return math.exp(mean) if mean < 700 else math.inf

    def __add__(self, other: "Score") -> "Score":
        return Score(self.nll + other.nll, self.tokens + other.tokens, self.samples + other.samples)


def official_valid(tokens_BL: np.ndarray, eos_id: int) -> np.ndarray:
    """Which next tokens count, bool (B, L-1): all but end-of-text, and the row's first one.

    A row that starts with end-of-text has its first one there, where nothing predicts it.
    """
    is_eos_BL = np.asarray(tokens_BL) == eos_id
    first_BL = is_eos_BL & (np.cumsum(is_eos_BL, axis=1) == 1)
    return (~is_eos_BL | first_BL)[:, 1:]


def official_from_ids(
    scorer: gpt2.Scorer, tokens_NL: np.ndarray, mask_NL: np.ndarray, batch_size: int = 8
) -> Score:
    """The official metric on scorer tokens that are already padded.

    `mask_NL` is 0 on padding. Rows beyond whole batches are left out; rows longer than the scorer's
    context are scored in pieces of that context, each on its own, as in the official code.
    """
    tokens_NL, mask_NL = np.asarray(tokens_NL), np.asarray(mask_NL)
    batch_size = max(1, min(batch_size, len(tokens_NL)))
    total = Score(0.0, 0, 0)
    whole = len(tokens_NL) - len(tokens_NL) % batch_size
    starts = range(0, whole, batch_size)
    context = scorer.config.positions
    for start in progress.bar(starts, desc="scoring (official)", delay=2):
        rows = slice(start, start + batch_size)
        for left in range(0, tokens_NL.shape[1] - 1, context):
            piece = tokens_NL[rows, left : left + context]
            if piece.shape[1] < 2:
                continue
            nlls = scorer.nlls(piece, mask_NL[rows, left : left + context])
            valid = official_valid(piece, scorer.eos_id)
            total += Score(float(nlls[valid].sum(dtype=np.float64)), int(valid.sum()), 0)
        total += Score(0.0, 0, batch_size)
    return total


def official(
    scorer: gpt2.Scorer, texts: Sequence[str], max_length: int, batch_size: int = 8
) -> Score:
    """The official metric on texts in which special tokens are written out.

    Texts are cut at `max_length` scorer tokens (the official code takes the model's block length)
    and padded with end-of-text to the longest; so all but the longest end in a scored end-of-text.
    """
    rows = [ids[:max_length] for ids in scorer.tokenizer.encode_batch(list(texts))]
    longest = max((len(row) for row in rows), default=0)
    tokens_NL = np.full((len(rows), longest), scorer.eos_id, np.int32)
    mask_NL = np.zeros((len(rows), longest), np.int32)
    for i, row in enumerate(rows):
        tokens_NL[i, : len(row)] = row
        mask_NL[i, : len(row)] = 1
    return official_from_ids(scorer, tokens_NL, mask_NL, batch_size)


def clean(scorer: gpt2.Scorer, texts: Sequence[str], batch_size: int = 8) -> Score:
    """Every token of every text, given an end-of-text before the text and all that precedes.

    Texts longer than the scorer's context are scored in windows that overlap by half, each token
    once. Empty texts are not counted as samples.
    """
    windows = []
    rows = [ids for ids in scorer.tokenizer.encode_batch(list(texts)) if ids]
    for row in rows:
        windows += _windows([scorer.eos_id, *row], scorer.config.positions)
    windows.sort(key=lambda window: len(window[0]))
    total = Score(0.0, 0, len(rows))
    for start in progress.bar(range(0, len(windows), batch_size), desc="scoring", delay=2):
        batch = windows[start : start + batch_size]
        length = _rounded(max(len(ids) for ids, _ in batch), scorer.config.positions)
        tokens_BL = np.full((batch_size, length), scorer.eos_id, np.int32)
        counted_BL = np.zeros((batch_size, length), bool)
        for i, (ids, new) in enumerate(batch):
            tokens_BL[i, : len(ids)] = ids
            counted_BL[i, len(ids) - new : len(ids)] = True
        nlls = scorer.nlls(tokens_BL)  # padding is on the right, so no scored token sees it
        scored = nlls[counted_BL[:, 1:]]
        total += Score(float(scored.sum(dtype=np.float64)), len(scored), 0)
    return total


def _windows(ids: list[int], context: int) -> list[tuple[list[int], int]]:
    """(ids, how many at its end are scored here) pieces of at most `context` ids."""
    pieces = [(ids[:context], min(len(ids), context) - 1)]
    stride = max(1, context // 2)
    scored = min(len(ids), context)
    while scored < len(ids):
        end = min(scored + stride, len(ids))
        pieces.append((ids[max(0, end - context) : end], end - scored))
        scored = end
    return pieces


def _rounded(length: int, context: int) -> int:
    """`length` up to a power of two (at least 16), so that few programs are compiled."""
    return min(context, max(16, 1 << (length - 1).bit_length()))


def sample_entropy(tokens_NL: np.ndarray) -> np.ndarray:
    """Entropy (nats) of the token frequencies inside each row: float64 (N,)."""
    tokens_NL = np.asarray(tokens_NL)
    entropies = np.empty(len(tokens_NL))
    for i, row in enumerate(tokens_NL):
        shares = np.unique(row, return_counts=True)[1] / max(1, row.size)
        entropies[i] = -(shares * np.log(shares)).sum()
    return np.abs(entropies)  # -0.0 of a constant row


def clean_texts(tokenizer: Tokenizer, tokens_NL: np.ndarray) -> list[str]:
    """The rows as text without special tokens; documents inside a row are joined by line breaks."""
    specials = tokenizer.specials
    texts = []
    for row in np.asarray(tokens_NL).tolist():
        documents: list[list[int]] = [[]]
        for token in row:
            if token in specials:
                documents.append([])
            else:
                documents[-1].append(token)
        decoded = (tokenizer.decode(ids).strip() for ids in documents if ids)
        texts.append("\n".join(text for text in decoded if text))
    return texts


def official_texts(tokenizer: Tokenizer, tokens_NL: np.ndarray) -> list[str]:
    """The rows as the official code decodes them; plain decoding for other tokenizers."""
    return [tokenizer.decode_official(row) for row in np.asarray(tokens_NL).tolist()]


@dataclasses.dataclass(frozen=True)
class GenerativePerplexity(Evaluator):
    """Evaluator: both generative perplexities and the sample entropy of rows of model tokens.

    `batch_size` 8 is the official one. Every call is one official batch of samples: its texts are
    padded to the longest among them.
    """

    scorer: gpt2.Scorer
    tokenizer: Tokenizer
    batch_size: int = 8

    columns = COLUMNS
    costly = True

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield (name, value) for int rows (N, L); nan where nothing could be scored."""
        length = np.shape(tokens_NL)[1]
        texts = clean_texts(self.tokenizer, tokens_NL)
        yield "gen_ppl", clean(self.scorer, texts, self.batch_size).perplexity
        written = official_texts(self.tokenizer, tokens_NL)
        score = official(self.scorer, written, length, self.batch_size)
        yield "gen_ppl_official", score.perplexity
        entropies = sample_entropy(tokens_NL)
        yield "sample_entropy", float(entropies.mean()) if entropies.size else math.nan
