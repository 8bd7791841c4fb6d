"""Documents to tokens, in this process or in several, with results in the order of the corpus."""

import collections
import dataclasses
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flm_jax import errors, tokenizers

DOCUMENTS, CHARACTERS = 1000, 1 << 19  # a chunk has at most so many, but at least one document
_AHEAD = 3  # chunks per process that are being worked on or wait


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
    crew: list[_Process] = []
    waiting: collections.deque[_Process] = collections.deque()
    try:
        for number, chunk in enumerate(todo):
            if number < workers:
                crew.append(_Process(encode))
            process = crew[number % workers]
            process.send(chunk)
            waiting.append(process)
            if len(waiting) == workers * _AHEAD:
                yield waiting.popleft().receive()
        while waiting:
            yield waiting.popleft().receive()
    finally:
        for process in crew:
            process.stop()


class _Process:
    """One worker: chunks go in, results come out in the same order."""

    def __init__(self, encode: Encode):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, encode), daemon=True)
        self._process.start()
        theirs.close()  # so that the worker's end is the only one, and its death is noticed

    def send(self, chunk: Chunk) -> None:
        try:
            self._connection.send(chunk)
        except OSError:
            raise self._died() from None

    def receive(self) -> Encoded:
        try:
            result = self._connection.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(result, errors.UserError):
            raise result
        if isinstance(result, str):
            raise RuntimeError(f"a tokenizing process failed:\n{result}")
        return result

    def stop(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _died(self) -> errors.UserError:
        self._process.join(5)
        return errors.UserError(
            f"a tokenizing process died (exit code {self._process.exitcode}), perhaps for lack of "
            "memory; run again with fewer --workers, what is done is kept"
        )


def _work(connection, encode: Encode) -> None:
    """The life of a worker. It ends when its parent does, however that came about."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread here, many processes
    todo: queue.Queue[Chunk] = queue.Queue()
    threading.Thread(target=_receive, args=(connection, todo), daemon=True).start()
    while True:
        chunk = todo.get()
        try:
            result = encode(chunk)
        except errors.UserError as error:
            result = error
        except Exception:
            result = traceback.format_exc()
        try:
            connection.send(result)
        except OSError:
            return


def _receive(connection, todo: queue.Queue) -> None:
    """Takes chunks at once, so that the parent never waits for its pipe while we wait for ours."""
    while True:
        try:
            todo.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)
