"""Documents to tokens, in this process or in several, with results in the order of the corpus."""

import collections
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from flm_jax import errors, tokenizers
from flm_jax.host import processes

DOCUMENTS, CHARACTERS = 1000, 1 << 19  # a chunk has at most so many, but at least one document
_AHEAD = 3  # chunks per process that are being worked on or wait
_encode: "Encode"  # of a worker


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Neighbouring documents, the unit of work.

    Attributes:
      first: number of the first one.
      texts: as the corpus gives them.
      ends_group: whether the remainder is dropped behind the last one; see `wrap.wrap`.
    """

    first: int
    texts: list[str]
    ends_group: bool = False


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The tokens of a chunk.

    Attributes:
      chunk: without its texts.
      stream: int (tokens), all documents end to end, EOS behind each if that was asked for.
      lengths: int64 (documents), tokens of each in `stream`.
      given: int64 (documents), how many tokens of each are its given part.
    """

    chunk: Chunk
    stream: np.ndarray
    lengths: np.ndarray
    given: np.ndarray


@dataclasses.dataclass(frozen=True)
class Encode:
    """Chunk -> Encoded; picklable.

    Attributes:
      parts: text -> the pieces that are tokenised one by one; all but the last are given.
      end: ids behind each document.
      dtype: of the stream.
    """

    tokenizer: tokenizers.Tokenizer
    parts: Callable[[str], tuple[str, ...]]
    end: tuple[int, ...]
    dtype: np.dtype

    def __call__(self, chunk: Chunk) -> Encoded:
        parts = [self.parts(text) for text in chunk.texts]
        pieces = iter(self.tokenizer.encode_batch([*itertools.chain.from_iterable(parts)]))
        documents, given = [], np.zeros(len(parts), np.int64)
        for number, some in enumerate(parts):
            *before, last = itertools.islice(pieces, len(some))
            given[number] = sum(map(len, before))
            documents.append([*itertools.chain(*before), *last] if before else last)
        added = len(self.end)
        lengths = np.fromiter((len(d) + added for d in documents), np.int64, len(documents))
        flat = itertools.chain.from_iterable(
            itertools.chain.from_iterable((document, self.end) for document in documents)
        )
        stream = np.fromiter(flat, self.dtype, int(lengths.sum()))
        return Encoded(dataclasses.replace(chunk, texts=[]), stream, lengths, given)


def chunks(source: Sequence[str], first: int, group: int = 0) -> Iterator[Chunk]:
    """The documents from number `first` on; no chunk crosses a multiple of `group`, 0 = none."""
    number, total = first, len(source)
    while number < total:
        start, texts, characters = number, [], 0
        stop = min(total, start + DOCUMENTS)
        if group:
            stop = min(stop, (start // group + 1) * group)
        while number < stop and characters < CHARACTERS:
            text = source[number]
            texts.append(text)
            characters += len(text)
            number += 1
        yield Chunk(start, texts, bool(group) and number % group == 0)


def in_order(todo: Iterator[Chunk], encode: Encode, workers: int) -> Iterator[Encoded]:
    """`map(encode, todo)`, in `workers` other processes; 0 = in this one.

    The corpus is read here, the processes detokenise and tokenize. At most a few chunks per process
    are on the way, so the memory does not grow with the corpus.

    With workers the main module must be importable without side effects: they are spawned.

    Raises:
      UserError: as `encode` does, or a process died.
    """
    if not workers:
        yield from map(encode, todo)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (encode,)
    )
    waiting: collections.deque[concurrent.futures.Future[Encoded]] = collections.deque()
    try:
        for chunk in todo:
            waiting.append(pool.submit(_encoded, chunk))
            if len(waiting) == workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise errors.UserError(
            "a tokenizing process died, perhaps for lack of memory; run again with fewer "
            "--workers, what is done is kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(encode: Encode) -> None:
    """Makes a worker ready. It ends when its parent does, however that came about."""
    global _encode
    _encode = encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread here, many processes
    processes.end_with_parent()


def _encoded(chunk: Chunk) -> Encoded:
    """What a worker does with a chunk; the tokenizer, which is large, came once."""
    return _encode(chunk)
