"""Documents of tokens to rows of one length.

wrap          `[BOS] L-2 tokens [EOS]`, documents end to end, nothing padded (`Wrapper`: in pieces)
one_per_row   `[BOS] document [EOS] [PAD] ... [PAD]`
exact         `[BOS] document`, all documents of one length
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from flm_jax import errors

Tokens = Sequence[int] | np.ndarray  # of one document

SHORTEST = 3  # BOS, one token, EOS
_BUFFER = 1 << 20  # tokens gathered before they are cut


def wrap(
    documents: Iterable[Sequence[int]],
    length: int,
    bos_id: int,
    eos_id: int,
    drop_remainder_every: int = 0,
    insert_eos: bool = True,
) -> Iterator[np.ndarray]:
    """Cuts the stream doc EOS doc EOS ... into pieces of L-2 and puts BOS and EOS around each.

    Rows cross document boundaries. What is left at the end is dropped.

    Args:
      documents: tokens of each document, without special tokens.
      length: L, the length of a row.
      bos_id: first token of every row.
      eos_id: ends every row, and every document unless `insert_eos` is False.
      drop_remainder_every: throw the remainder away after this many documents; 0 = only at the end.
        The official code does it every 1000 documents (and per worker).
      insert_eos: False for documents that end in EOS already, or are to run together.

    Yields:
      int32 arrays (n, L), n >= 1.

    Raises:
      UserError: `length` is below 3.
    """
    wrapper = Wrapper(length, bos_id, eos_id)
    for group in _groups(documents, drop_remainder_every):
        for stream in _streams(group, (eos_id,) if insert_eos else ()):
            rows_NL = wrapper.add(stream)
            if len(rows_NL):
                yield rows_NL
        wrapper.drop_remainder()


class Wrapper:
    """`wrap` for a stream that arrives in pieces: what fills no row yet is kept for the next piece.

    Raises UserError when `length` is below 3.
    """

    def __init__(self, length: int, bos_id: int, eos_id: int):
        _check_length(length)
        self._length, self._bos_id, self._eos_id = length, bos_id, eos_id
        self._rest = np.empty(0, np.int32)
        self._before = 0  # tokens that were kept when the newest piece came

    def add(self, stream: np.ndarray) -> np.ndarray:
        """The rows, int32 (n, L) with n >= 0, that `stream` (int, the ends are in it) completes."""
        self._before = len(self._rest)
        stream = np.concatenate([self._rest, stream])
        inner = self._length - 2
        count = len(stream) // inner
        rows_NL = np.empty((count, self._length), np.int32)
        rows_NL[:, 0], rows_NL[:, -1] = self._bos_id, self._eos_id
        rows_NL[:, 1:-1] = stream[: count * inner].reshape(count, inner)
        self._rest = stream[count * inner :].astype(np.int32)
        return rows_NL

    def used(self, count: int) -> int:
        """Tokens of the newest piece that its first `count` >= 1 rows hold."""
        return count * (self._length - 2) - self._before

    def drop_remainder(self) -> None:
        """Forgets what fills no row."""
        self._rest = self._rest[:0]


def one_per_row(
    documents: Iterable[Tokens],
    length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    show: Callable[[Tokens], str] = str,
    first: int = 0,
    cut: bool = False,
) -> Iterator[np.ndarray]:
    """Puts each document in a row of its own: `[BOS] document [EOS] [PAD] ... [PAD]`.

    The padding is text like any other, for training and sampling alike: no mask hides it. So the
    lengths of documents are learnt too, and a sample tells where it ends.

    Args:
      documents: tokens of each document, without special tokens.
      length: L, the length of a row.
      bos_id: first token of every row.
      eos_id: follows every document.
      pad_id: fills the row.
      show: how a document that is too long is named in the error.
      first: the number of the first document, for the error.
      cut: take the first L-2 tokens of a longer document.

    Yields:
      int32 arrays (n, L), n >= 1.

    Raises:
      UserError: `length` is below 3, or a document has more than L-2 tokens and is not cut.
    """
    _check_length(length)
    numbered = enumerate(documents, first)
    while group := list(itertools.islice(numbered, max(1, _BUFFER // length))):
        rows_NL = np.full((len(group), length), pad_id, np.int32)
        rows_NL[:, 0] = bos_id
        for row_L, (number, tokens) in zip(rows_NL, group, strict=True):
            if cut:
                tokens = tokens[: length - 2]
            if len(tokens) > length - 2:
                raise errors.UserError(
                    f"document {number} ({show(tokens)}) has {len(tokens)} tokens, too many for a "
                    f"row of length {length} with BOS and EOS; set data.length to "
                    f"{len(tokens) + 2} or more, or data.packing=wrap"
                )
            row_L[1 : 1 + len(tokens)] = tokens
            row_L[1 + len(tokens)] = eos_id
        yield rows_NL


def exact(
    documents: Sequence[Tokens],
    length: int,
    bos_id: int,
    show: Callable[[Tokens], str] = str,
    first: int = 0,
) -> np.ndarray:
    """Puts each document behind a BOS, and nothing behind it: int32 (documents, L).

    The arguments are those of `one_per_row`. Raises UserError for a document that has not L-1
    tokens.
    """
    rows_NL = np.full((len(documents), length), bos_id, np.int32)
    for row_L, (number, tokens) in zip(rows_NL, enumerate(documents, first), strict=True):
        if len(tokens) != length - 1:
            raise errors.UserError(
                f"document {number} ({show(tokens)}) has {len(tokens)} tokens, but with "
                f"data.packing=exact and data.length={length} all have {length - 1}; set "
                f"data.length to {len(tokens) + 1}, or data.packing=one_per_row"
            )
        row_L[1:] = tokens
    return rows_NL


def split_row(row_L: Iterable[int], bos_id: int, eos_id: int) -> list[list[int]]:
    """The documents, or parts of them, of one row: BOS dropped, cut at EOS, empty ones omitted.

    The first part may be the end of a document, the last part its beginning.
    """
    parts: list[list[int]] = [[]]
    for position, token in enumerate(row_L):
        if token == eos_id and position:
            parts.append([])
        elif token != bos_id or position:
            parts[-1].append(int(token))
    return [part for part in parts if part]


def _check_length(length: int) -> None:
    if length < SHORTEST:
        raise errors.UserError(
            f"length is {length}, but a row holds BOS, text and EOS; use at least {SHORTEST}"
        )


def _groups(documents: Iterable[Sequence[int]], size: int) -> Iterator[Iterable[Sequence[int]]]:
    if not size:
        yield documents
        return
    documents = iter(documents)
    while group := list(itertools.islice(documents, size)):
        yield group


def _streams(documents: Iterable[Sequence[int]], end: Sequence[int]) -> Iterator[np.ndarray]:
    """The documents with `end` behind each, as int32 arrays of about _BUFFER tokens."""
    buffer: list[Sequence[int]] = []
    held = 0
    for tokens in documents:
        buffer += [tokens, end]
        held += len(tokens) + len(end)
        if held >= _BUFFER:
            yield _flat(buffer, held)
            buffer, held = [], 0
    if buffer:
        yield _flat(buffer, held)


def _flat(buffer: list[Sequence[int]], held: int) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(buffer), np.int32, held)
