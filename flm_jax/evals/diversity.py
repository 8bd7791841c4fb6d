"""How different samples are from each other: what an entropy within a sample cannot see.

Both measures depend on how many samples are compared, so they are taken over groups of exactly
``group`` samples and averaged over as many disjoint groups as there are. With fewer samples than a
group they are undefined (nan), never computed on less.
"""

import importlib.util
import math
from collections.abc import Iterable, Iterator

import numpy as np
from absl import logging

from flm_jax.errors import UserError
from flm_jax.evals.base import Column, Evaluator
from flm_jax.tokenizers import Tokenizer

GROUP = 48
LENGTHS = (1, 2, 3, 4)
MOST_GROUPS = 4  # of self-BLEU, which takes a second for each


class Diversity(Evaluator):
    """Distinct-1 to distinct-4 and self-BLEU between samples.

    distinct-n is the number of different n-grams of tokens in a group over the number of all of
    them. self-BLEU is the mean BLEU-4 of every sample's text with the others of its group as
    references, by sacrebleu (extra ``evals``); without that library it is left out.

    Attributes:
      group: samples that are compared with each other.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        train_rows: np.ndarray | None = None,
        train_documents: Iterable[str] = (),
        group: int = GROUP,
        bleu: bool = True,
    ):
        """
        Args:
          group: samples that are compared with each other.
          bleu: self-BLEU, too, if its library is there.
        """
        del train_rows, train_documents
        if group < 2:
            raise UserError(f"eval_options.diversity.group={group} must be at least 2")
        self._tokenizer, self.group = tokenizer, group
        self._with_bleu = bleu and importlib.util.find_spec("sacrebleu") is not None
        self.columns = tuple(_column(n, group) for n in LENGTHS)
        if self._with_bleu:
            self.columns += (_bleu_column(group),)
        elif bleu:
            logging.log_first_n(
                logging.WARNING, "self-BLEU is left out: pip install 'flm_jax[evals]'", 1
            )

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values for int rows (N, L)."""
        tokens_NL = np.asarray(tokens_NL)
        groups = [
            tokens_NL[first : first + self.group]
            for first in range(0, len(tokens_NL) - self.group + 1, self.group)
        ]
        for n in LENGTHS:
            yield f"distinct_{n}", _mean([distinct(group, n) for group in groups])
        if self._with_bleu:
            texts = [[self._tokenizer.decode(row.tolist()) for row in g] for g in groups]
            yield "self_bleu", _mean([self_bleu(group) for group in texts[:MOST_GROUPS]])


def distinct(tokens_NL: np.ndarray, n: int) -> float:
    """Different n-grams over all n-grams of the rows, their first token (BOS) left out.

    nan if the rows are too short to have any.
    """
    inner = np.asarray(tokens_NL)[:, 1:]
    if inner.shape[1] < n:
        return math.nan
    grams = np.lib.stride_tricks.sliding_window_view(inner, n, axis=1).reshape(-1, n)
    return len(np.unique(grams, axis=0)) / len(grams)


def self_bleu(texts: list[str]) -> float:
    """Mean BLEU-4, 0 to 1, of each text with all others as references."""
    from sacrebleu.metrics.bleu import BLEU

    # The references of all hypotheses are the same texts but one, so they are cut into n-grams
    # once; smoothing as sacrebleu has it for sentences.
    bleu = BLEU(effective_order=True)
    scores = [
        bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)
    ]
    return float(np.mean(scores)) / 100.0


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _column(n: int, group: int) -> Column:
    return Column(
        f"distinct_{n}",
        f"distinct-{n}",
        f"Different {n}-grams of tokens among {group} samples, as a share of all. Lower than that "
        "of real text: the samples repeat each other. Higher: their words do not fit together.",
        "data",
    )


def _bleu_column(group: int) -> Column:
    return Column(
        "self_bleu",
        "self-BLEU",
        f"Mean BLEU-4 of a sample with {group - 1} others as references. Higher than that of real "
        "text: the samples repeat each other.",
        "data",
    )
