"""Samples as files: one JSON-lines file per operating point, written first, measured afterwards.

Metrics read the file and never sample, so that texts are drawn once, kept, and measured again by
whatever metric comes later. Every line tells by itself what made it.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flm_jax.errors import UserError
from flm_jax.flow.trees import Tree
from flm_jax.host import files, progress


@dataclasses.dataclass(frozen=True)
class Artefact:
    """One operating point: `tokens_NL` int32, `texts` one per sample, `seconds` for all.

    `origin` is plain JSON data that decides the samples: weights, seed, steps, sampler, knobs.
    """

    origin: dict[str, Any]
    tokens_NL: np.ndarray
    texts: list[str]
    seconds: float


def write(path: pathlib.Path, artefact: Artefact, **facts: Any) -> None:
    """Writes one line per sample, whole or not at all; `facts` are further values of every line.

    Raises UserError if the folder cannot be written.
    """
    lines = []
    rows = zip(artefact.texts, artefact.tokens_NL, strict=True)
    for index, (text, tokens_L) in enumerate(rows):
        values = {
            "index": index,
            **artefact.origin,
            **facts,
            "seconds": artefact.seconds,
            "text": text,
            "tokens": np.asarray(tokens_L).tolist(),
        }
        lines.append(json.dumps(values, ensure_ascii=False))
    files.write_atomically(path, "\n".join(lines) + "\n")


def read(path: pathlib.Path, origin_keys: Sequence[str]) -> Artefact:
    """What `write` wrote; `origin_keys` are the keys of its origin.

    Raises UserError if the file is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # texts may hold U+2028 and its like
        rows = [json.loads(line) for line in lines if line]
        if not rows or [row["index"] for row in rows] != list(range(len(rows))):
            raise ValueError("lines are missing")
        tokens_NL = np.array([row["tokens"] for row in rows])
        if tokens_NL.ndim != 2 or tokens_NL.dtype.kind != "i":
            raise ValueError("tokens are not whole numbers")
        origins = [{key: row[key] for key in origin_keys} for row in rows]
        if any(origin != origins[0] for origin in origins):
            raise ValueError("its lines have different origins")
        texts, seconds = [str(row["text"]) for row in rows], float(rows[0]["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a whole file of samples ({error}); remove it, or choose another folder"
        ) from None
    return Artefact(origins[0], tokens_NL.astype(np.int32), texts, seconds)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In which values two origins differ: "seed: 0 instead of 1"."""
    return [f"{key}: {old[key]} instead of {new[key]}" for key in new if old.get(key) != new[key]]


def weights_sha256(params: Tree) -> str:
    """SHA-256 (hex) of names, shapes, types and values: the same for any form of a checkpoint."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    for path, leaf in progress.bar(leaves, desc="hashing weights", delay=2):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        digest.update(f"{name} {array.shape} {array.dtype}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
