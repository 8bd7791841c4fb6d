"""A split of a corpus, tokenised and packed into rows once: found in the cache, or made."""

import dataclasses
import os
import pathlib
import shutil
import time

import numpy as np

from flm_jax import errors, tokenizers
from flm_jax.data import base, packers, shards, workers, wrap
from flm_jax.data.rows import FORMAT_VERSION, TOKENIZER_FOLDER, Rows, combined
from flm_jax.host import folders, progress

_CODE_VERSION = 1  # raise it when the same text and options would give other rows
PACKINGS = ("wrap", "one_per_row", "one_per_row_cut", "one_per_row_short", "exact")
_SPACE_MARGIN = 1.02
# Lengths of documents are counted in bins that grow by a quarter of a doubling.
LENGTH_EDGES = (0, *sorted({int(2 ** (quarter / 4)) for quarter in range(128)}))


@dataclasses.dataclass(frozen=True)
class Order:
    """What rows are wanted; the same order always finds the same folder.

    Attributes:
      length: L, BOS and EOS included.
      drop_remainder_every: see `wrap.wrap`; only where rows cross documents.
      packing: "wrap" (rows cross documents), "one_per_row" (padded; longer documents are refused,
        cut or left out) or "exact" (all documents are of one length); see `wrap`.
    """

    corpus: base.Corpus
    tokenizer: tokenizers.Tokenizer
    split: str
    length: int
    drop_remainder_every: int = 0
    packing: str = "wrap"

    def check(self) -> None:
        """Raises UserError for what cannot be packed."""
        base.check_split(self.corpus, self.split)
        if self.length < wrap.SHORTEST:
            raise errors.UserError(
                f"length is {self.length}, but a row holds BOS, text and EOS; set data.length to "
                f"{wrap.SHORTEST} or more"
            )
        if self.packing not in PACKINGS:
            raise errors.UserError(
                f"packing {self.packing!r} is not known; use {' or '.join(PACKINGS)}"
            )
        if self.packing != "wrap" and self.drop_remainder_every:
            raise errors.UserError(
                f"data.drop_remainder_every={self.drop_remainder_every} has no meaning with "
                f"data.packing={self.packing}, which leaves no remainders; set it to 0"
            )
        if self.packing.startswith("one_per_row") and self.tokenizer.pad_id is None:
            raise errors.UserError(
                f"data.packing={self.packing} needs padding, but tokenizer "
                f"{self.tokenizer.name!r} has no padding token; use data.packing=wrap, or "
                "tokenizer characters or whitespace_words"
            )
        if self.packing == "wrap" and self.corpus.has_given:
            raise errors.UserError(
                f"documents of data set {self.corpus.name!r} begin with a given part, which rows "
                "that cross documents would lose; set data.packing=one_per_row (or exact, where "
                "all are of one length)"
            )
        if self.packing == "exact":
            self.bos()
        else:
            self.ends()

    def bos(self) -> int:
        """BOS; raises UserError for a tokenizer without."""
        if self.tokenizer.bos_id is None:
            raise errors.UserError(
                f"rows begin with BOS, but tokenizer {self.tokenizer.name!r} has none; choose one "
                "that has it"
            )
        return self.tokenizer.bos_id

    def ends(self) -> tuple[int, int]:
        """(BOS, EOS); raises UserError for a tokenizer that lacks one of them."""
        bos_id, eos_id = self.tokenizer.bos_id, self.tokenizer.eos_id
        if bos_id is None or eos_id is None:
            raise errors.UserError(
                f"rows begin with BOS and end with EOS, but tokenizer {self.tokenizer.name!r} has "
                f"no {'EOS' if eos_id is None else 'BOS'}; choose one that has both"
            )
        return bos_id, eos_id

    @property
    def dtype(self) -> np.dtype:
        given = self.length + 1 if self.corpus.has_given else 0  # a column with lengths
        return shards.dtype_of(max(self.tokenizer.vocab_size, given))

    @property
    def columns(self) -> int:
        """Of a stored row: see `Rows`."""
        return self.length + self.corpus.has_given

    def facts(self) -> dict:
        """What decides the content of the folder; part of its manifest."""
        return {
            "format_version": FORMAT_VERSION,
            "code_version": _CODE_VERSION,
            "corpus": self.corpus.name,
            "split": self.split,
            "corpus_fingerprint": self.corpus.fingerprint(self.split),
            "tokenizer": self.tokenizer.name,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "length": self.length,
            "drop_remainder_every": self.drop_remainder_every,
            "packing": self.packing,
            "dtype": self.dtype.name,
            "shard_rows": max(1, shards.SHARD_BYTES // (self.length * self.dtype.itemsize)),
            **({"given": True} if self.corpus.has_given else {}),
        }


def pack(
    corpus: base.Corpus,
    tokenizer: tokenizers.Tokenizer,
    split: str,
    length: int,
    cache_dir: str | os.PathLike = "",
    drop_remainder_every: int = 0,
    packing: str = "wrap",
) -> Rows:
    """The rows of a split, from the cache or made in this process; see `prepare_split`."""
    order = Order(corpus, tokenizer, split, length, drop_remainder_every, packing)
    return prepare_split(order, cache_dir)[0]


def prepare_split(
    order: Order, cache_dir: str | os.PathLike = "", processes: int = 0
) -> tuple[Rows, bool]:
    """Tokenises a split and packs it into rows, goes on where a killed run ended, or finds it.

    The folder is byte for byte the same for any number of processes and interruptions. Another
    process that makes it at the same time is waited for.

    Args:
      cache_dir: see `base.cache_folder`; the rows lie in a folder of its folder `rows`.
      processes: that tokenise; 0 = this one.

    Returns:
      (Rows, whether something had to be done).

    Raises:
      UserError: as `Order.check`, less text than one row, a document too long for its row, too
        little space, damaged rows in the cache, or a folder that cannot be written.
    """
    order.check()
    facts = order.facts()
    root = base.cache_folder(cache_dir)
    try:
        return shards.found_or_made(
            root,
            f"{order.corpus.name}-{order.split}-{order.length}",
            facts,
            lambda folder: _make(order, facts, folder, processes),
            "preparing",
        )
    except OSError as error:
        raise errors.UserError(
            f"cannot write packed rows to {root / 'rows'}: {error.strerror or error}; free some "
            f"space, or set data.cache_dir or ${folders.CACHE_VARIABLE} to a folder you can write "
            "to"
        ) from error


def _make(order: Order, facts: dict, folder: pathlib.Path, processes: int) -> None:
    part = folder.with_name(f"{folder.name}.part")
    if shards.publish_again(part, folder):
        return
    writer = shards.Writer(part, facts["shard_rows"], order.columns, order.dtype)
    try:
        counts = _Counts.of(writer.place)
        counts = _write(order, writer, counts, processes)
        if not writer.rows:
            raise _too_short(order, counts)
        order.tokenizer.save(part / TOKENIZER_FOLDER)
        made = writer.shards()
        rows = {
            "rows": writer.rows,
            "tokens": writer.rows * order.length,
            "documents": counts.document,
            "text_tokens": counts.text_tokens,
            "document_lengths": {"edges": LENGTH_EDGES, "counts": counts.lengths},
            "shards": made,
            "sha256": combined([shard["sha256"] for shard in made]),
        }
        shards.publish(part, folder, facts | rows)
    finally:
        writer.close()
        if not writer.finished:  # nothing to go on from
            shutil.rmtree(part, ignore_errors=True)


@dataclasses.dataclass
class _Counts:
    """What has been packed: documents before number `document`, and `token` tokens of that one.

    Attributes:
      text_tokens: of the documents before `document`, without EOS.
      lengths: how many of them fall in each bin of LENGTH_EDGES.
    """

    document: int
    token: int
    text_tokens: int
    lengths: list[int]

    @classmethod
    def of(cls, place: dict) -> "_Counts":
        return cls(**place) if place else cls(0, 0, 0, [0] * len(LENGTH_EDGES))

    def after(self, lengths: np.ndarray, token: int = 0) -> "_Counts":
        """Counts with documents of these lengths (int, without EOS) more."""
        bins = np.searchsorted(LENGTH_EDGES, lengths, side="right") - 1
        more = np.bincount(bins, minlength=len(LENGTH_EDGES))
        return _Counts(
            self.document + len(lengths),
            token,
            self.text_tokens + int(lengths.sum()),
            [int(old + new) for old, new in zip(self.lengths, more, strict=True)],
        )


def _write(order: Order, writer: shards.Writer, counts: _Counts, processes: int) -> _Counts:
    """Packs the documents behind `counts` into `writer`; returns the counts of all documents."""
    source, packer = order.corpus.source(order.split), packers.packer(order)
    todo = workers.chunks(source, counts.document, order.drop_remainder_every)
    encode = workers.Encode(order.tokenizer, order.corpus.parts, packer.end, order.dtype)
    with _Progress(order, len(source), counts.document, processes) as progress:
        for encoded in workers.in_order(todo, encode, processes):
            lengths = encoded.lengths - len(packer.end)
            rows_NL = packer.add(encoded, counts.token)
            done = (counts.document + len(lengths)) / len(source)
            expected = int((writer.rows + len(rows_NL)) / done)
            start = 0
            while start < len(rows_NL):
                if not writer.open_rows:
                    _check_space(order, writer, expected)
                stop = min(len(rows_NL), start + writer.room)
                writer.add(rows_NL[start:stop])
                start = stop
                if not writer.room:
                    documents, token = packer.place(stop)
                    writer.finish(dataclasses.asdict(counts.after(lengths[:documents], token)))
            progress.update(len(lengths), len(encoded.stream) - counts.token)
            counts = counts.after(lengths)
            if encoded.chunk.ends_group:
                packer.drop_remainder()
    if writer.open_rows:
        writer.finish(dataclasses.asdict(counts))
    return counts


def _check_space(order: Order, writer: shards.Writer, expected: int) -> None:
    """Raises UserError unless there is room for all rows to come, when `expected` is their sum."""
    size = (expected - writer.rows) * order.length * order.dtype.itemsize
    shards.check_space(writer.folder, int(_SPACE_MARGIN * size))


class _Progress:
    """A bar over documents that also tells tokens per second."""

    def __init__(self, order: Order, total: int, first: int, processes: int):
        by = f", {processes} processes" if processes > 1 else ""
        self._bar = progress.bar(
            desc=f"packing {order.corpus.name} {order.split}{by}",
            unit="doc",
            total=total,
            initial=first,
            delay=2,
        )
        self._start, self._tokens = time.perf_counter(), 0

    def update(self, documents: int, tokens: int) -> None:
        self._tokens += tokens
        spent = max(1e-6, time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"{self._tokens / spent:,.0f} tokens/s", refresh=False)
        self._bar.update(documents)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()


def _too_short(order: Order, counts: _Counts) -> errors.UserError:
    if order.packing == "one_per_row_short":
        return errors.UserError(
            f"each of the {counts.document} documents in the {order.split!r} split of "
            f"{order.corpus.name!r} has more than {order.length - 2} {order.tokenizer.name} "
            "tokens, so all are left out; raise data.length, or set data.packing=one_per_row_cut"
        )
    have = counts.document + counts.text_tokens
    every = order.drop_remainder_every
    limit = f" in any {every} documents" if every and counts.document > every else ""
    return errors.UserError(
        f"the {order.split!r} split of {order.corpus.name!r} has {counts.document} documents and "
        f"{have} {order.tokenizer.name} tokens, not enough{limit} for one row of length "
        f"{order.length}; set data.length to {max(wrap.SHORTEST, have + 2)} or less, or give "
        "more text"
    )
