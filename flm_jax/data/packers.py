"""Encoded documents to rows, a class per way of packing; what is left waits for the next chunk."""

import abc
from typing import TYPE_CHECKING

import numpy as np

from flm_jax.data import workers, wrap

if TYPE_CHECKING:
    from flm_jax.data.packing import Order

_SHOWN = 40  # characters of a document in a message


class Packer(abc.ABC):
    """Rows from encoded chunks.

    Attributes:
      end: what follows the tokens of every document in a chunk.
    """

    end: tuple[int, ...] = ()

    @abc.abstractmethod
    def add(self, encoded: workers.Encoded, skipped: int) -> np.ndarray:
        """The rows that the chunk completes, without its first `skipped` tokens."""

    @abc.abstractmethod
    def place(self, count: int) -> tuple[int, int]:
        """What of the newest chunk its first `count` rows use: (documents, tokens of the next)."""

    @abc.abstractmethod
    def drop_remainder(self) -> None:
        """Forgets the tokens that fill no row."""


class _Wrap(Packer):
    """Rows that cross documents."""

    def __init__(self, order: "Order"):
        bos_id, eos_id = order.ends()
        self.end = (eos_id,)
        self._wrapper = wrap.Wrapper(order.length, bos_id, eos_id)

    def drop_remainder(self) -> None:
        self._wrapper.drop_remainder()

    def add(self, encoded: workers.Encoded, skipped: int) -> np.ndarray:
        self._ends, self._skipped = np.cumsum(encoded.lengths), skipped
        return self._wrapper.add(encoded.stream[skipped:])

    def place(self, count: int) -> tuple[int, int]:
        used = self._wrapper.used(count) + self._skipped
        documents = int(np.searchsorted(self._ends, used, side="right"))
        return documents, used - (int(self._ends[documents - 1]) if documents else 0)


class _Alone(Packer):
    """Rows of one document each, with how much of it is given where a corpus says so."""

    def __init__(self, order: "Order"):
        self._order = order

    @abc.abstractmethod
    def rows(self, documents: list[np.ndarray], first: int) -> np.ndarray:
        """int32 (documents, L); `first` is the number of the first one."""

    def add(self, encoded: workers.Encoded, skipped: int) -> np.ndarray:
        del skipped  # a row holds a whole document
        documents = np.split(encoded.stream, np.cumsum(encoded.lengths)[:-1])
        self._kept = np.arange(len(documents))
        if self._order.packing == "one_per_row_short":
            self._kept = np.flatnonzero(encoded.lengths <= self._order.length - 2)
        rows_NL = self.rows([documents[i] for i in self._kept], encoded.chunk.first)
        if not self._order.corpus.has_given:
            return rows_NL
        given_N = np.minimum(1 + encoded.given[self._kept], self._order.length)  # BOS, too
        return np.column_stack([rows_NL, given_N])

    def place(self, count: int) -> tuple[int, int]:
        return int(self._kept[count - 1]) + 1, 0

    def drop_remainder(self) -> None:
        """There is none: a row holds a whole document."""

    def show(self, tokens: wrap.Tokens) -> str:
        """How a document is named in a message."""
        text = self._order.tokenizer.decode(tokens)
        shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + " ...")
        return f"{shown} of the split {self._order.split!r}"


class _OnePerRow(_Alone):
    """Padded; what to do with a longer document says the packing."""

    def __init__(self, order: "Order"):
        super().__init__(order)
        assert order.tokenizer.pad_id is not None  # `Order.check`
        self._ids = *order.ends(), order.tokenizer.pad_id

    def rows(self, documents: list[np.ndarray], first: int) -> np.ndarray:
        length, cut = self._order.length, self._order.packing == "one_per_row_cut"
        rows = wrap.one_per_row(documents, length, *self._ids, self.show, first, cut)
        return np.concatenate([np.empty((0, length), np.int32), *rows])


class _Exact(_Alone):
    """BOS and a document that fills the row."""

    def rows(self, documents: list[np.ndarray], first: int) -> np.ndarray:
        return wrap.exact(documents, self._order.length, self._order.bos(), self.show, first)


def packer(order: "Order") -> Packer:
    if order.packing == "wrap":
        return _Wrap(order)
    return _Exact(order) if order.packing == "exact" else _OnePerRow(order)
