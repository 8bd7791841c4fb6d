"""Documents of tokens to rows of one length.

wrap          `[BOS] L-2 tokens [EOS]`, documents end to end, nothing padded
one_per_row   `[BOS] document [EOS] [PAD] ... [PAD]`
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from flm_jax import errors

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
    _check_length(length)
    for group in _groups(documents, drop_remainder_every):
        rest = np.empty(0, np.int32)
        for stream in _streams(group, (eos_id,) if insert_eos else ()):
            stream = np.concatenate([rest, stream])
            count, inner = len(stream) // (length - 2), length - 2
            if count:
                rows_NL = np.empty((count, length), np.int32)
                rows_NL[:, 0], rows_NL[:, -1] = bos_id, eos_id
                rows_NL[:, 1:-1] = stream[: count * inner].reshape(count, inner)
                yield rows_NL
            rest = stream[count * inner :]


def one_per_row(
    documents: Iterable[Sequence[int]],
    length: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    show: Callable[[Sequence[int]], str] = str,
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

    Yields:
      int32 arrays (n, L), n >= 1.

    Raises:
      UserError: `length` is below 3, or a document has more than L-2 tokens.
    """
    _check_length(length)
    numbered = enumerate(documents)
    while group := list(itertools.islice(numbered, max(1, _BUFFER // length))):
        rows_NL = np.full((len(group), length), pad_id, np.int32)
        rows_NL[:, 0] = bos_id
        for row_L, (number, tokens) in zip(rows_NL, group, strict=True):
            if len(tokens) > length - 2:
                raise errors.UserError(
                    f"document {number} ({show(tokens)}) has {len(tokens)} tokens, too many for a "
                    f"row of length {length} with BOS and EOS; set data.length to "
                    f"{len(tokens) + 2} or more, or data.packing=wrap"
                )
            row_L[1 : 1 + len(tokens)] = tokens
            row_L[1 + len(tokens)] = eos_id
        yield rows_NL


def split_row(row_L: Iterable[int], bos_id: int, eos_id: int) -> list[list[int]]:
    """The documents, or parts of them, of one row: BOS dropped, cut at EOS, empty ones left out.

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
