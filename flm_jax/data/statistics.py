"""What packed rows look like in numbers: which tokens, how varied, how long the documents are."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np

from flm_jax import errors, tokenizers
from flm_jax.data.rows import TOKENIZER_FOLDER, Rows
from flm_jax.host import progress

MOST_ROWS = 20_000  # that are looked at
_BLOCK = 256  # rows read at one time


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counted over `looked_at` rows, spread evenly over all of them. Entropies are in nats.

    Attributes:
      counts_V: int64, how often each token occurs.
      block_entropies_N: float64, of each row that was looked at, the entropy of its own tokens,
        special tokens included: the data's value of the sample entropy of models.
    """

    looked_at: int
    counts_V: np.ndarray
    block_entropies_N: np.ndarray

    @property
    def unigram_entropy(self) -> float:
        """Entropy of a token, all rows pooled."""
        return entropy(self.counts_V)

    @property
    def used(self) -> int:
        """Tokens of the vocabulary that occur."""
        return int(np.count_nonzero(self.counts_V))

    @functools.cached_property
    def most_common(self) -> list[tuple[int, float]]:
        """The twenty commonest tokens with their shares."""
        best = np.argsort(-self.counts_V, kind="stable")[:20]
        total = self.counts_V.sum()
        return [(int(i), float(self.counts_V[i] / total)) for i in best if self.counts_V[i]]


def measure(rows: Rows, vocab_size: int) -> Statistics:
    """Reads at most MOST_ROWS rows, a few at a time.

    Raises:
      UserError: a token that the vocabulary does not have.
    """
    count = min(len(rows), MOST_ROWS)
    chosen_N = np.arange(count) * len(rows) // count
    counts_V = np.zeros(vocab_size, np.int64)
    entropies = []
    with progress.bar(desc="reading rows", total=count, unit="row", delay=2) as bar:
        for start in range(0, count, _BLOCK):
            block_NL = rows[chosen_N[start : start + _BLOCK]]
            found = np.bincount(block_NL.ravel(), minlength=vocab_size)
            if len(found) > vocab_size:
                raise errors.UserError(
                    f"{rows.path} has the token {len(found) - 1}, but its tokenizer has only "
                    f"{vocab_size} ids; prepare the rows again"
                )
            counts_V += found
            entropies += [entropy(np.unique(row, return_counts=True)[1]) for row in block_NL]
            bar.update(len(block_NL))
    return Statistics(count, counts_V, np.array(entropies))


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution that is given by counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def tokenizer_of(rows: Rows) -> tokenizers.Tokenizer:
    """The tokenizer that was saved beside the rows.

    Raises:
      UserError: it is missing, damaged, or another one.
    """
    folder = rows.path / TOKENIZER_FOLDER
    tokenizer = tokenizers.load(folder)
    check_tokenizer(rows, tokenizer, f"the tokenizer in {folder}")
    return tokenizer


def check_tokenizer(rows: Rows, tokenizer: tokenizers.Tokenizer, which: str) -> None:
    """Raises UserError, naming both fingerprints, unless the rows were made with the tokenizer."""
    made_with = rows.manifest["tokenizer_fingerprint"]
    if tokenizer.fingerprint != made_with:
        raise errors.UserError(
            f"{which} ({tokenizer.name}, fingerprint {tokenizer.fingerprint[:12]}) is not the one "
            f"that {rows.path} was made with ({rows.manifest['tokenizer']}, "
            f"{made_with[:12]}); use that one, or prepare the text again"
        )


def visible(row_L: Iterable[int], tokenizer: tokenizers.Tokenizer) -> str:
    """The text of a row with its special tokens written out."""
    return "".join(_stretches(row_L, tokenizer))


def _stretches(row_L: Iterable[int], tokenizer: tokenizers.Tokenizer) -> Iterator[str]:
    specials = tokenizer.specials
    held: list[int] = []
    for token in map(int, row_L):
        if token in specials:
            yield tokenizer.decode(held) if held else ""
            yield tokenizer.piece(token)
            held = []
        else:
            held.append(token)
    yield tokenizer.decode(held) if held else ""
