"""Statistics of generated blocks that need no other model: words, novelty, entropies.

A row is ``[BOS] piece [EOS]``, the piece being a window of documents joined by EOS. So the first
and the last stretch of text of a row may be cut; words and documents at a cut are not judged.
"""

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flm_jax.evals import base
from flm_jax.evals.base import Column
from flm_jax.host import progress

COLUMNS = (
    Column(
        "words_known",
        "known words",
        "Share of the words (split at spaces) that occur in the training text; "
        "words cut by the edge of a block are left out. A model that repeats a few words has many: "
        "look at the entropy in a sample, too.",
        "higher",
        "share",
    ),
    Column(
        "novel",
        "new documents",
        "Share of the complete documents (those not cut by the edge of a block) that do not occur "
        "in the training text. Low means copying; high says nothing about quality.",
        "data",
        "share",
    ),
    Column(
        "documents_per_row",
        "documents / block",
        "Complete documents in a block, on average: does the text end where it should?",
        "data",
    ),
    Column(
        "unigram_entropy",
        "unigram entropy",
        "Entropy of a token, in nats, all rows pooled. Too low: a few tokens dominate.",
        "data",
        "nats",
    ),
    Column(
        "bigram_entropy",
        "bigram entropy",
        "Entropy of a token given the one before it, in nats, all rows pooled. Too high: "
        "neighbours do not fit together. Counted from few tokens it comes out too low, for every "
        "row of this table alike.",
        "data",
        "nats",
    ),
    Column(
        "sample_entropy",
        "entropy in a sample",
        "Entropy of the tokens within one block, in nats, averaged over blocks, special tokens "
        "included (the entropy that papers on flow language models report). Too low: repetition.",
        "data",
        "nats",
    ),
    Column(
        "distinct_rows",
        "distinct blocks",
        "Share of blocks that are different from all earlier ones.",
        "data",
        "share",
    ),
)


class TextStatistics(base.Evaluator):
    """Evaluator for blocks of tokens, judged against the training text.

    `train_rows` (int, (R, L)) are training blocks in the same form as the rows to judge;
    `train_documents` are the training documents as text, of which the first
    `base.TRAINING_DOCUMENTS` count (so in a larger corpus "new" means new to these). Both define
    the known words (rows give them as the tokenizer spells them), both define which documents
    exist. Only hashes are kept.
    """

    columns = COLUMNS

    def __init__(self, tokenizer, train_rows: np.ndarray, train_documents: Iterable[str]):
        self._tokenizer = tokenizer
        self._separators = sorted(tokenizer.specials)
        self._words: set[int] = set()
        self._documents: set[int] = set()
        first = itertools.islice(train_documents, base.TRAINING_DOCUMENTS)
        size = operator.length_hint(train_documents)
        total = min(size, base.TRAINING_DOCUMENTS) if size else None
        for document in progress.bar(first, total=total, desc="indexing documents", delay=2):
            words = document.split()
            self._documents.add(hash(" ".join(words)))
            self._words.update(map(hash, words))
        for row in progress.bar(np.asarray(train_rows), desc="indexing blocks", delay=2):
            words, documents = self._read(row)
            self._documents.update(map(hash, documents))
            self._words.update(map(hash, words))

    def __call__(self, tokens_NL: np.ndarray) -> Iterator[tuple[str, float]]:
        """Yield the values of `COLUMNS` for int rows (N, L); nan where nothing can be counted."""
        tokens_NL = np.asarray(tokens_NL)
        if tokens_NL.ndim != 2 or 0 in tokens_NL.shape:
            raise ValueError(f"samples must have shape (N, L), both at least 1: {tokens_NL.shape}")
        known, new = [], []
        for row in tokens_NL:
            words, documents = self._read(row)
            known.extend(hash(word) in self._words for word in words)
            new.extend(hash(document) not in self._documents for document in documents)
        yield "words_known", _mean(known)
        yield "novel", _mean(new)
        yield "documents_per_row", len(new) / len(tokens_NL)
        yield "unigram_entropy", unigram_entropy(tokens_NL)
        yield "bigram_entropy", bigram_entropy(tokens_NL)
        yield "sample_entropy", sample_entropy(tokens_NL)
        yield "distinct_rows", len(np.unique(tokens_NL, axis=0)) / len(tokens_NL)

    def _read(self, row: np.ndarray) -> tuple[list[str], list[str]]:
        """Return (whole words, complete documents with single spaces) of one block."""
        inside = row[1:-1] if row[-1] in self._separators else row[1:]
        ends = np.flatnonzero(np.isin(inside, self._separators))
        pieces = np.split(inside, ends)
        texts = [self._tokenizer.decode(piece.tolist()).split() for piece in pieces]
        documents = [" ".join(words) for words in texts[1:-1] if words]
        texts[0] = texts[0][1:]
        texts[-1] = texts[-1][:-1]
        return [word for words in texts for word in words], documents


def unigram_entropy(tokens_NL: np.ndarray) -> float:
    """Entropy of the pooled tokens in nats (plug-in estimate)."""
    return _entropy(np.unique(tokens_NL, return_counts=True)[1])


def bigram_entropy(tokens_NL: np.ndarray) -> float:
    """H(next | previous) over neighbours within rows, pooled, in nats; nan for rows of length 1."""
    before, after = tokens_NL[:, :-1].ravel(), tokens_NL[:, 1:].ravel()
    if before.size == 0:
        return float("nan")
    pairs = before.astype(np.int64) * (int(tokens_NL.max()) + 1) + after
    return unigram_entropy(pairs) - unigram_entropy(before)


def sample_entropy(tokens_NL: np.ndarray) -> float:
    """Mean over rows of the entropy in nats of the row's own tokens, special tokens included."""
    return float(np.mean([unigram_entropy(row) for row in tokens_NL]))


def _entropy(counts: np.ndarray) -> float:
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else float("nan")
