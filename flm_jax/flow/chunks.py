"""Cutting (B, L, ...) arrays into slices of positions, so that logits exist for a few tokens only.

Slices run along L and keep the batch whole: a batch sharded over devices stays where it is.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Chunks:
    """``count`` slices of ``width`` positions; the last one is filled up with zeros."""

    batch: int
    length: int
    count: int
    width: int

    @staticmethod
    def of(arrays: Any, tokens: int) -> "Chunks":
        """Slices of at most ``tokens`` tokens, but of at least one position."""
        batch, length = jax.tree.leaves(arrays)[0].shape[:2]
        count = -(-length // max(1, min(length, tokens // batch)))
        return Chunks(batch, length, count, -(-length // count))

    def split(self, arrays: Any) -> Any:
        """Every leaf (B, L, ...) -> (count, B, width, ...)."""
        pad = self.count * self.width - self.length

        def cut(x):
            x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(self.batch, self.count, self.width, *x.shape[2:]), 1, 0)

        return jax.tree.map(cut, arrays)

    def join(self, arrays: Any) -> Any:
        """Every leaf (count, B, width, ...) -> (B, L, ...)."""

        def glue(x):
            x = jnp.moveaxis(x, 0, 1)
            return x.reshape(self.batch, self.count * self.width, *x.shape[3:])[:, : self.length]

        return jax.tree.map(glue, arrays)


def over_chunks(f: Callable[..., Any], chunk: int, *arrays: Any) -> Any:
    """``f(*arrays)`` computed over slices of positions (axis 1), at most ``chunk`` tokens each.

    ``chunk`` 0 is no limit: one slice, also where the sizes are not known yet (`jax.export`).
    Every leaf of ``arrays`` and of the result is (B, L, ...). Slices are recomputed in the backward
    pass. What ``f`` closes over (the head) may be differentiated.
    """
    if chunk == 0:
        return f(*arrays)
    chunks = Chunks.of(arrays, chunk)
    if chunks.count == 1:
        return f(*arrays)
    body = jax.checkpoint(lambda xs: f(*xs), prevent_cse=False)
    return chunks.join(jax.lax.map(body, chunks.split(arrays)))


def tokens_for(vocab_size: int, megabytes: int) -> int:
    """The number of tokens whose float32 logits fill that much memory (MiB); at least one."""
    return max(1, megabytes * 2**20 // (4 * vocab_size))
