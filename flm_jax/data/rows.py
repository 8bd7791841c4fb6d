"""Packed rows: a split tokenised and wrapped once, kept as a .npy file, read by index."""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import operator
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from flm_jax import errors, metrics, tokenizers
from flm_jax.data import base, wrap

_CODE_VERSION = 1  # raise it when the same text and options would give other rows
PACKINGS = ("wrap", "one_per_row")
_ROWS, _MANIFEST = "rows.npy", "manifest.json"
_TEXTS_AT_ONCE = 1000
_SHOWN = 40  # characters of a document in a message
_CHECKED_FULLY = 256 << 20  # bytes; hashing larger files at each start would take too long


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of L tokens on disk, memory-mapped at first use; picklable, so workers can have it.

    Attributes:
      path: the .npy file, uint16 or int32, (rows, L).
      manifest: what was written beside it: corpus, split, fingerprints, rows, length, tokens,
        documents, sha256.
    """

    path: pathlib.Path
    manifest: dict = dataclasses.field(hash=False)

    @property
    def length(self) -> int:
        return self.manifest["length"]

    @property
    def tokens(self) -> int:
        """Tokens in all rows, BOS and EOS included."""
        return len(self) * self.length

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tokens in order."""
        return self.manifest["sha256"]

    @functools.cached_property
    def _array(self) -> np.ndarray:
        return np.load(self.path, mmap_mode="r")

    def __getstate__(self) -> dict:
        return {"path": self.path, "manifest": self.manifest}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return self.manifest["rows"]

    def __getitem__(self, index) -> np.ndarray:
        """int32 copy: one row (L) for an integer, rows (n, L) for a slice or an index array."""
        try:
            index = operator.index(index)
        except TypeError:
            pass
        return self._array[index].astype(np.int32)


def pack(
    corpus: base.Corpus,
    tokenizer: tokenizers.Tokenizer,
    split: str,
    length: int,
    cache_dir: str | os.PathLike = "",
    drop_remainder_every: int = 0,
    packing: str = "wrap",
) -> Rows:
    """Tokenises a split and packs it into rows, or finds it in the cache.

    Args:
      corpus: its documents go through `detokenize`, then the tokenizer.
      length: L, BOS and EOS included.
      cache_dir: see `base.cache_folder`; rows lie in its folder `rows`.
      drop_remainder_every: see `wrap.wrap`; only where rows cross documents.
      packing: "wrap" (rows cross documents) or "one_per_row" (padded); see `wrap`.

    Raises:
      UserError: `length` below 3, less text than one row, a document too long for its row, a
        tokenizer without padding where it is needed, or a folder that cannot be written.
    """
    base.check_split(corpus, split)
    if length < wrap.SHORTEST:
        raise errors.UserError(
            f"length is {length}, but a row holds BOS, text and EOS; set data.length to "
            f"{wrap.SHORTEST} or more"
        )
    _check_packing(packing, drop_remainder_every, tokenizer)
    facts = {
        "code_version": _CODE_VERSION,
        "corpus": corpus.name,
        "split": split,
        "corpus_fingerprint": corpus.fingerprint(split),
        "tokenizer": tokenizer.name,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "length": length,
        "drop_remainder_every": drop_remainder_every,
        "packing": packing,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = base.cache_folder(cache_dir) / "rows" / f"{corpus.name}-{split}-{length}-{key}"
    found = _open(folder, facts)
    return found if found is not None else _make(corpus, tokenizer, folder, facts)


def _open(folder: pathlib.Path, facts: dict) -> Rows | None:
    """The cached rows; None if there are none, or if they are damaged."""
    path = folder / _ROWS
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if {key: manifest.get(key) for key in facts} != facts:
            return None
        if path.stat().st_size != manifest["bytes"]:
            return None
        if manifest["bytes"] <= _CHECKED_FULLY:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
                    return None
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return Rows(path, manifest)


def _make(corpus, tokenizer, folder: pathlib.Path, facts: dict) -> Rows:
    """Writes rows and manifest into a temporary folder and renames it to `folder`."""
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = pathlib.Path(tempfile.mkdtemp(prefix="making-", dir=folder.parent))
        manifest = facts | _write(corpus, tokenizer, temporary / _ROWS, facts)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        temporary.chmod(0o755)
        _move(temporary, folder, facts)
    except OSError as error:
        raise errors.UserError(
            f"cannot write packed rows to {folder.parent}: {error.strerror or error}; free some "
            f"space, or set data.cache_dir or ${base.CACHE_VARIABLE} to a folder you can write to"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return Rows(folder / _ROWS, manifest)


def _move(temporary: pathlib.Path, folder: pathlib.Path, facts: dict) -> None:
    """Renames; another process may have been faster, and what is there may be damaged."""
    try:
        temporary.rename(folder)
    except OSError:
        if _open(folder, facts) is None:
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)


def _write(corpus, tokenizer, path: pathlib.Path, facts: dict) -> dict:
    """Streams the rows to a .npy file; returns the manifest's counts and hash."""
    length, split = facts["length"], facts["split"]
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
    counts = {"documents": 0, "text_tokens": 0}
    digest, rows = hashlib.sha256(), 0
    with path.open("wb") as file:
        file.write(_header(0, length, dtype))
        for block_NL in _blocks(_tokens(corpus, tokenizer, split, counts), tokenizer, facts):
            data = block_NL.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            rows += len(block_NL)
        size = file.tell()
        file.seek(0)
        file.write(_header(rows, length, dtype))
    if not rows:
        raise _too_short(corpus, tokenizer, facts, counts)
    return counts | {
        "rows": rows,
        "tokens": rows * length,
        "dtype": dtype.name,
        "bytes": size,
        "sha256": digest.hexdigest(),
    }


def _blocks(documents: Iterator[list[int]], tokenizer, facts: dict) -> Iterator[np.ndarray]:
    """Rows (n, L) of the documents, by the packing that is asked for."""
    length, bos_id, eos_id = facts["length"], tokenizer.bos_id, tokenizer.eos_id
    if facts["packing"] == "wrap":
        return wrap.wrap(documents, length, bos_id, eos_id, facts["drop_remainder_every"])

    def show(tokens: list[int]) -> str:
        text = tokenizer.decode(tokens)
        shown = repr(text if len(text) <= _SHOWN else text[:_SHOWN] + " ...")
        return f"{shown} of the split {facts['split']!r}"

    return wrap.one_per_row(documents, length, bos_id, eos_id, tokenizer.pad_id, show)


def _check_packing(packing: str, drop_remainder_every: int, tokenizer) -> None:
    if packing not in PACKINGS:
        raise errors.UserError(f"packing {packing!r} is not known; use {' or '.join(PACKINGS)}")
    if packing == "one_per_row" and drop_remainder_every:
        raise errors.UserError(
            f"data.drop_remainder_every={drop_remainder_every} has no meaning with data.packing="
            "one_per_row, which leaves no remainders; set it to 0"
        )
    if packing == "one_per_row" and tokenizer.pad_id is None:
        raise errors.UserError(
            f"data.packing=one_per_row needs padding, but tokenizer {tokenizer.name!r} has no "
            "padding token; use data.packing=wrap, or tokenizer characters or whitespace_words"
        )


def _header(rows: int, length: int, dtype: np.dtype) -> bytes:
    """A .npy header; numpy leaves room for the first axis to grow, so its size never changes."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": (rows, length)}
    )
    return header.getvalue()


def _tokens(corpus, tokenizer, split: str, counts: dict) -> Iterator[list[int]]:
    """Tokens of every document; `counts` is kept up to date on the way."""
    texts = iter(corpus.source(split))
    description = f"packing {corpus.name} {split}"
    with metrics.bar(desc=description, unit="doc", total=len(corpus.source(split)), delay=2) as bar:
        while batch := list(itertools.islice(texts, _TEXTS_AT_ONCE)):
            for tokens in tokenizer.encode_batch([corpus.detokenize(text) for text in batch]):
                counts["documents"] += 1
                counts["text_tokens"] += len(tokens)
                yield tokens
            bar.update(len(batch))


def _too_short(corpus, tokenizer, facts: dict, counts: dict) -> errors.UserError:
    have = counts["documents"] + counts["text_tokens"]
    every = facts["drop_remainder_every"]
    limit = f" in any {every} documents" if every and counts["documents"] > every else ""
    return errors.UserError(
        f"the {facts['split']!r} split of {corpus.name!r} has {counts['documents']} documents and "
        f"{have} {tokenizer.name} tokens, not enough{limit} for one row of length "
        f"{facts['length']}; set data.length to {max(wrap.SHORTEST, have + 2)} or less, or give "
        "more text"
    )
