"""An n-gram language model with interpolated modified Kneser-Ney smoothing.

The best that counts alone can do, so a judge for any text without a download. In the form of
`ngram.py`, with a for the adjusted count of a gram (Chen and Goodman, 1999):

    share(h w) = (a(h w) - D(a(h w))) / sum_v a(h v)        rest(h) = sum_v D(a(h v)) / sum_v a(h v)

Of the longest grams a is how often they occur; of shorter ones it is how many different tokens they
follow, for a gram that always follows the same token is not needed by itself. Where a gram begins a
row there is no token before it, and every occurrence counts. The discounts of each k come from n_j,
the number of k-grams with a = j, by Y = n_1 / (n_1 + 2 n_2):

    D(j) = j - (j + 1) Y n_{j+1} / n_j    for j = 1, 2, and 3 for all that are larger

A text too small to have such a discount (between 0 and j) gets 1/2, 1 or 3/2.
"""

import numpy as np

from flm_jax.evals import ngram
from flm_jax.evals.ngram import Grams, Level, Ngram
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.base import sha256

ORDER = 5
_FALLBACK = (0.0, 0.5, 1.0, 1.5)  # discounts of a = 0, 1, 2, and 3 or more


def fit(tokens_NL: np.ndarray, tokenizer: Tokenizer, order: int = ORDER) -> Ngram:
    """The model of int rows (N, L), L at least 2; UserError for an order below 1."""
    size = tokenizer.vocab_size
    tokens_NL = ngram.checked(tokens_NL, size)
    counted = ngram.count(tokens_NL, order, size)
    levels, contexts = [], 1
    for grams, adjusted in zip(counted, _adjusted(counted, tokens_NL), strict=True):
        discount = discounts(adjusted)[np.minimum(adjusted, 3)]
        whole = np.bincount(grams.contexts, adjusted, contexts)
        taken = np.bincount(grams.contexts, discount, contexts)
        divisor = np.maximum(whole, 1)
        share = (adjusted - discount) / divisor[grams.contexts]
        levels.append(Level(grams, share, np.where(whole > 0, taken / divisor, 1.0)))
        contexts = len(grams.keys)
    name = f"a Kneser-Ney {order}-gram model"
    fingerprint = sha256(name, tokenizer.fingerprint, tokens_NL.tobytes())
    return Ngram(name, tokenizer, fingerprint, tuple(levels))


def discounts(adjusted: np.ndarray) -> np.ndarray:
    """What is taken from an adjusted count of 0, 1, 2, and of 3 or more: float64 (4,)."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(np.float64)
    found = np.array(_FALLBACK)
    y = n[1] / max(n[1] + 2 * n[2], 1)
    for j in (1, 2, 3):
        if n[j]:
            value = j - (j + 1) * y * n[j + 1] / n[j]
            found[j] = value if 0 <= value <= j else found[j]
    return found


def _adjusted(counted: list[Grams], tokens_NL: np.ndarray) -> list[np.ndarray]:
    """The adjusted count of every gram, level by level."""
    # The numbers of the grams that end at each predicted token that can have one.
    numbers = [grams for _, grams in ngram.numbered(counted, tokens_NL)]
    found = []
    for k, (grams, longer) in enumerate(zip(counted, counted[1:], strict=False), start=1):
        ends, longer_ends = numbers[k - 1], numbers[k]
        # A different (k + 1)-gram for every token before the k-gram that it ends with.
        inside = ends[:, ends.shape[1] - longer_ends.shape[1] :]
        of_longer = np.empty(len(longer.keys), np.int64)
        of_longer[longer_ends.ravel()] = inside.ravel()
        adjusted = np.bincount(of_longer, minlength=len(grams.keys))
        if k > 1 and ends.size:  # the k-gram at the beginning of each row
            adjusted = adjusted + np.bincount(ends[:, 0], minlength=len(grams.keys))
        found.append(adjusted)
    return [*found, counted[-1].counts]
