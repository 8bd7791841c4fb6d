"""N-gram samplers fitted on training blocks: what cheap statistics reach with the same pieces.

Both give rows ``[BOS] piece [EOS]`` like the training blocks. They are honest: no smoothing and no
tuning, every draw is the successor of some training occurrence of the context, drawn uniformly.
Contexts do not reach over the start of a row; at a row's start the context is the shorter one that
is there. The closing EOS is set, not drawn.
"""

import copy

import numpy as np

_START = -1  # stands for "before the row"


def unigram(train_rows: np.ndarray, n: int, length: int, seed: int) -> np.ndarray:
    """Return int32 rows (n, length) whose inner tokens are independent draws from the training."""
    return markov(train_rows, n, length, seed, order=0)


def markov(train_rows: np.ndarray, n: int, length: int, seed: int, order: int = 2) -> np.ndarray:
    """Return int32 rows (n, length) from the Markov chain in which `order` tokens decide the next.

    A context can be without a successor in the training rows (if it occurs only at the end of a
    row); then its oldest token is forgotten until there is one. A last token that all training rows
    share is set, not drawn. Raises ValueError for rows that do not share their first token, and for
    tables too large for 64-bit keys.
    """
    train_rows = np.asarray(train_rows)
    _check(train_rows, length)
    generator = np.random.default_rng(seed)
    closed = int(np.ptp(train_rows[:, -1]) == 0)
    tables = [_Successors(train_rows, k, closed) for k in range(order, -1, -1)]
    # `order` columns of "before the row" let the first tokens use the same code.
    rows = np.full((n, order + length), _START, np.int64)
    rows[:, order] = train_rows[0, 0]
    for position in range(order + 1, order + length - closed):
        rows[:, position] = _draw(tables, rows[:, :position], generator.random(n))
    if closed:
        rows[:, -1] = train_rows[0, -1]
    return rows[:, order:].astype(np.int32)


def greedy(
    train_rows: np.ndarray, starts_NS: np.ndarray, length: int, order: int = 2
) -> np.ndarray:
    """Rows int32 (N, length): the given beginnings, each next token the most frequent successor.

    Of the last `order` tokens, or of fewer where these have none in the training rows; of equally
    frequent ones the smallest id. Otherwise as `markov`.
    """
    train_rows = np.asarray(train_rows)
    _check(train_rows, length)
    closed = int(np.ptp(train_rows[:, -1]) == 0)
    tables = [_Successors(train_rows, k, closed).likeliest() for k in range(order, -1, -1)]
    given = np.asarray(starts_NS)[:, :length]
    rows = np.full((len(given), order + length), _START, np.int64)
    rows[:, order : order + given.shape[1]] = given
    nothing = np.zeros(len(rows))
    for position in range(order + given.shape[1], order + length - closed):
        rows[:, position] = _draw(tables, rows[:, :position], nothing)
    if closed:
        rows[:, -1] = train_rows[0, -1]
    return rows[:, order:].astype(np.int32)


class _Successors:
    """For every context of k tokens in the training rows, the list of tokens that followed it."""

    def __init__(self, train_rows: np.ndarray, k: int, closed: int):
        self._k = k
        self._base = int(train_rows.max()) + 2
        if self._base**k > np.iinfo(np.int64).max:
            raise ValueError(f"an order of {k} is too high for token ids up to {self._base - 2}")
        start = np.full((len(train_rows), k), _START, np.int64)
        padded = np.concatenate([start, train_rows], axis=1)
        # Position 0 (BOS) is given, not drawn, and so is the last one where rows are closed by EOS.
        inner = range(k + 1, padded.shape[1] - closed)
        keys = np.concatenate([self._keys(padded[:, :position]) for position in inner])
        followers = np.concatenate([padded[:, position] for position in inner])
        order = np.argsort(keys, kind="stable")
        self._followers = followers[order]
        self._contexts, self._first, self._count = np.unique(
            keys[order], return_index=True, return_counts=True
        )

    def likeliest(self) -> "_Successors":
        """The same with one successor for each context, the most frequent."""
        context = np.repeat(np.arange(len(self._contexts)), self._count)
        pairs, times = np.unique(context * self._base + self._followers, return_counts=True)
        context, followers = np.divmod(pairs, self._base)
        order = np.lexsort((followers, -times, context))
        made = copy.copy(self)
        made._first = np.unique(context, return_index=True)[1]
        made._followers = followers[order]
        made._count = np.ones_like(made._first)
        return made

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Return the next token of each row, _START where the context has no successor."""
        keys = self._keys(rows)
        found = np.minimum(np.searchsorted(self._contexts, keys), len(self._contexts) - 1)
        pick = self._first[found] + (uniform * self._count[found]).astype(np.int64)
        return np.where(self._contexts[found] == keys, self._followers[pick], _START)

    def _keys(self, rows: np.ndarray) -> np.ndarray:
        keys = np.zeros(len(rows), np.int64)
        for column in range(rows.shape[1] - self._k, rows.shape[1]):
            keys = keys * self._base + rows[:, column] + 1
        return keys


def _draw(tables: list[_Successors], rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw the next token from the longest context that has successors."""
    tokens = tables[0].draw(rows, uniform)
    for table in tables[1:]:
        missing = np.flatnonzero(tokens == _START)
        if missing.size:
            tokens[missing] = table.draw(rows[missing], uniform[missing])
    return tokens


def _check(train_rows: np.ndarray, length: int) -> None:
    if train_rows.ndim != 2 or train_rows.shape[0] < 1 or train_rows.shape[1] < 3:
        raise ValueError(f"training rows must have shape (R, L) with L >= 3: {train_rows.shape}")
    if length < 3:
        raise ValueError(f"a block needs at least 3 tokens, not {length}")
    if np.ptp(train_rows[:, 0]):
        raise ValueError("training rows must all begin with BOS")
