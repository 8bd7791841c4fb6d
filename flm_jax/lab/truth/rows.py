"""Rows drawn from a known model, in the format of `flm prepare`: token ids, never decoded.

Text that is decoded and tokenised again has another distribution, and so another likelihood: what a
model is trained on here is what the truth wrote, token for token. Row i of a split depends on the
seed, the split and i only, so a command that was killed goes on where it was, and more rows begin
with the same ones.
"""

import pathlib
import shutil

import numpy as np

from flm_jax.data import base, shards
from flm_jax.data.packing import LENGTH_EDGES
from flm_jax.data.rows import FORMAT_VERSION, TOKENIZER_FOLDER, Rows, combined
from flm_jax.errors import UserError
from flm_jax.evals.base import KnownTruth
from flm_jax.host import progress

_CODE_VERSION = 1  # raise it when the same truth and seed would draw other rows
_BLOCK = 1024  # rows between two writes
SHARD_ROWS = 8 * _BLOCK  # a kill costs one shard, and drawing is slow
_FIRST = {split: number << 28 for number, split in enumerate(base.SPLITS)}  # no row in two splits
MOST_ROWS = 1 << 28
PACKING = "drawn"  # a row is BOS and text; nothing ends it


def write(
    truth: KnownTruth,
    path: str,
    data_dir: str,
    split: str,
    count: int,
    length: int,
    seed: int,
) -> tuple[Rows, bool]:
    """The rows of a split below ``data_dir``: found, or drawn; goes on with what is there.

    ``path`` is where the truth was read from: evaluations look for it there.

    Returns (rows, whether something had to be drawn). Raises UserError for sizes that cannot be,
    damaged rows, and a folder that cannot be written.
    """
    if not 0 < count <= MOST_ROWS:
        raise UserError(f"--rows={count} must be from 1 to {MOST_ROWS:,}")
    if length < 3:
        raise UserError(f"a length of {length} is too short; give at least 3: BOS and two tokens")
    dtype = shards.dtype_of(truth.tokenizer.vocab_size)
    facts = {
        "format_version": FORMAT_VERSION,
        "code_version": _CODE_VERSION,
        "corpus": "truth",
        "truth": truth.fingerprint,
        "seed": seed,
        "split": split,
        "tokenizer": truth.tokenizer.name,
        "tokenizer_fingerprint": truth.tokenizer.fingerprint,
        "length": length,
        "packing": PACKING,
        "dtype": dtype.name,
        "shard_rows": SHARD_ROWS,
    }
    root = base.cache_folder(data_dir)
    try:
        return shards.found_or_made(
            root,
            f"truth-{split}-{length}-{count}",
            facts,
            lambda folder: _draw(truth, path, facts, folder, count, dtype),
            "drawing",
        )
    except OSError as error:
        raise UserError(
            f"cannot write rows to {root / 'rows'}: {error.strerror or error}; free some space, or "
            "give another folder as --data_dir"
        ) from error


def _draw(
    truth: KnownTruth,
    path: str,
    facts: dict,
    folder: pathlib.Path,
    count: int,
    dtype: np.dtype,
) -> None:
    part, length = folder.with_name(f"{folder.name}.part"), facts["length"]
    if shards.publish_again(part, folder):
        return
    writer = shards.Writer(part, SHARD_ROWS, length, dtype)
    first = _FIRST[facts["split"]]
    try:
        with progress.bar(
            desc=f"drawing {facts['split']}", total=count, initial=writer.rows, unit="row"
        ) as bar:
            while writer.rows < count:
                stop = min(writer.rows + min(_BLOCK, writer.room), count)
                indices = first + np.arange(writer.rows, stop)
                drawn = truth.sample(indices, length, facts["seed"])
                writer.add(drawn)
                bar.update(len(drawn))
                if not writer.room or writer.rows == count:
                    writer.finish({"row": writer.rows})
        truth.tokenizer.save(part / TOKENIZER_FOLDER)
        made = writer.shards()
        counts = [0] * len(LENGTH_EDGES)
        counts[np.searchsorted(LENGTH_EDGES, length - 1, side="right") - 1] = count
        rows = {
            "truth_name": truth.name,
            "truth_path": path,
            "rows": count,
            "tokens": count * length,
            "documents": count,
            "text_tokens": count * (length - 1),
            "document_lengths": {"edges": LENGTH_EDGES, "counts": counts},
            "shards": made,
            "sha256": combined([shard["sha256"] for shard in made]),
        }
        shards.publish(part, folder, facts | rows)
    finally:
        writer.close()
        if not writer.finished:
            shutil.rmtree(part, ignore_errors=True)
