"""What the vocabulary head is trained towards: losses of a chunk of logits, with their derivatives.

`flow/fused.py` sums the slopes up as soon as they exist, so that no logits are kept.
"""

import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from flm_jax.flow.head import Head
from flm_jax.flow.vocabulary import SAFE_BOUND, softmax_parts

Arrays = Any  # a tree of arrays, every leaf with a (B, L) grid, or a chunk (b, l) of it


class Objective(Protocol):
    """A loss of the logits; a pytree, whose gradients are those of its arrays."""

    def tokenwise(self) -> Arrays:
        """Its arrays, to be cut into chunks."""
        ...

    def value_and_slope(
        self, arrays: Arrays, raw: jax.Array, head: Head
    ) -> tuple[jax.Array, jax.Array]:
        """Of a chunk: the losses (b, l), their derivatives in the raw logits (b, l, V)."""
        ...


class Target(Protocol):
    """What an objective aims at, one V-vector per position; a `Combination`."""

    def tokenwise(self) -> Arrays:
        """Its arrays, to be cut into chunks."""
        ...

    def chunk(self, arrays: Arrays) -> jax.Array:
        """The target of a chunk, (b, l, V)."""
        ...


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens_BL"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class TokenCrossEntropy:
    """-log p of known tokens, p the softmax of the capped logits."""

    tokens_BL: jax.Array

    def tokenwise(self) -> Arrays:
        return self.tokens_BL

    def value_and_slope(
        self, arrays: Arrays, raw: jax.Array, head: Head
    ) -> tuple[jax.Array, jax.Array]:
        tokens, logits = arrays, head.capped(raw)
        top, weight, total = softmax_parts(logits, head.bound)
        vocabulary = jnp.arange(logits.shape[-1], dtype=tokens.dtype)[None, None, :]
        hit = vocabulary == tokens[..., None]
        if head.fused:  # and so never differentiated
            picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1, mode="clip")[..., 0]
        else:  # a masked sum, because the gradient of a gather is a slow scatter
            picked = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
        if head.bound <= SAFE_BOUND:
            # A quotient keeps the digits of small losses, a difference does not.
            value = jnp.log(total[..., 0] * jnp.exp(-picked))
        else:
            value = jnp.log(total[..., 0]) - (picked - top[..., 0])
        return value, (weight / total - jnp.where(hit, 1.0, 0.0)) * head.slope(raw)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["target"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """-sum_V target * log p; the target (a `Combination`) need not sum to 1."""

    target: Target

    def tokenwise(self) -> Arrays:
        return self.target.tokenwise()

    def value_and_slope(
        self, arrays: Arrays, raw: jax.Array, head: Head
    ) -> tuple[jax.Array, jax.Array]:
        target, logits = self.target.chunk(arrays), head.capped(raw)
        top, weight, total = softmax_parts(logits, head.bound)
        mass = jnp.sum(target, axis=-1, keepdims=True)
        value = mass * jnp.log(total) - jnp.sum(target * (logits - top), axis=-1, keepdims=True)
        return value[..., 0], (weight * (mass / total) - target) * head.slope(raw)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["target", "coefficient_BL"],
    meta_fields=["of_logits"],
)
@dataclasses.dataclass(frozen=True)
class SquaredError:
    """sum_V (coefficient * p - target)**2, or of the raw logits (no cap) in the place of p."""

    target: Target
    coefficient_BL: jax.Array
    of_logits: bool = False

    def tokenwise(self) -> Arrays:
        return self.coefficient_BL, self.target.tokenwise()

    def value_and_slope(
        self, arrays: Arrays, raw: jax.Array, head: Head
    ) -> tuple[jax.Array, jax.Array]:
        coefficient, target = arrays[0][..., None], self.target.chunk(arrays[1])
        if self.of_logits:
            error = coefficient * raw - target
            return jnp.sum(error**2, axis=-1), 2.0 * coefficient * error
        _, weight, total = softmax_parts(head.capped(raw), head.bound)
        p = weight / total
        error = coefficient * p - target
        slope = 2.0 * coefficient * error
        slope = p * (slope - jnp.sum(p * slope, axis=-1, keepdims=True))
        return jnp.sum(error**2, axis=-1), slope * head.slope(raw)
