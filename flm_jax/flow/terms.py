"""What a `Combination` is a sum of: a coefficient times one vector over the vocabulary per token.

Every kind of vector is a class. Only the last one is an array (B, L, V); of the others a chunk of
tokens exists at a time:

    Probability     p, the softmax of capped logits
    Tangent         dp, the derivative of p along the tangent of its features
    RawLogits       features @ kernel + bias: no cap, no temperature
    OneHotTokens    e_token
    DenseArray      an array (B, L, V) that is already there, as a state in one-hot space is
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp

from flm_jax.flow.chunks import over_chunks
from flm_jax.flow.head import on_last_axis
from flm_jax.flow.logits import LazyLogits
from flm_jax.flow.objectives import Arrays
from flm_jax.flow.vocabulary import products, side_by_side, softmax_parts

STATIC = {"static": True}  # of a field that is a constant for jit


@dataclasses.dataclass(frozen=True)
class Term(abc.ABC):
    """The contract of the kinds; ``coefficient`` is a scalar, (B,) or (B, L)."""

    coefficient: jax.Array | float

    @property
    @abc.abstractmethod
    def source(self) -> LazyLogits | jax.Array:
        """What its vectors are made of."""

    @property
    @abc.abstractmethod
    def chunk_size(self) -> int:
        """How many tokens a chunk may have."""

    @abc.abstractmethod
    def tokenwise(self) -> Arrays:
        """The coefficient (B, L), then what its vectors are made of, one (B, L, ...) each."""

    @abc.abstractmethod
    def chunk(self, arrays: Arrays) -> jax.Array:
        """The dense term (b, l, V) of a chunk of `tokenwise`."""

    @abc.abstractmethod
    def mean(self, *tables: jax.Array) -> jax.Array:
        """The term @ [T1 T2 ...], (B, L, W), with no more passes over V than it needs."""

    def joins(self, other: "Term") -> bool:
        """Whether both are multiples of the same vector; by identity, as arrays are traced."""
        return type(self) is type(other) and self.source is other.source

    def joined(self, other: "Term") -> Self:
        """The sum of two terms that join."""
        coefficient_BL = self.tokenwise()[0] + other.tokenwise()[0]
        return dataclasses.replace(self, coefficient=coefficient_BL)

    def coefficient_BL(self, like: jax.Array) -> jax.Array:
        """The coefficient, at least float32, on the grid of an array (B, L, ...)."""
        x = jnp.asarray(self.coefficient)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if x.ndim < 2:
            x = x[:, None] if x.ndim else x[None, None]
        return jnp.broadcast_to(x, like.shape[:2])

    def chunked_mean(
        self,
        factored: Callable[[Arrays], tuple[jax.Array, jax.Array]],
        tables: tuple[jax.Array, ...],
    ) -> jax.Array:
        """`mean` over chunks, of which ``factored`` makes (b, l, 1) times an array (b, l, V).

        The factor is applied after the product, where a token has W entries instead of V.
        """
        tokenwise = self.tokenwise()
        wide = at_least_float32(tokenwise[1], *tables)

        def chunk(arrays):
            factor, vectors = factored(arrays)
            return factor * products(vectors, wide)

        return over_chunks(chunk, self.chunk_size, tokenwise)


@dataclasses.dataclass(frozen=True)
class OfLogits(Term, abc.ABC):
    """What the kinds made of a network's logits have in common."""

    logits: LazyLogits

    @property
    def source(self) -> LazyLogits:
        return self.logits

    @property
    def chunk_size(self) -> int:
        return self.logits.head.chunk

    def tokenwise(self) -> Arrays:
        features = self.logits.features_BLD
        return self.coefficient_BL(features), features


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probability(OfLogits):
    """coefficient * p."""

    def chunk(self, arrays: Arrays) -> jax.Array:
        (coefficient, features), head = arrays, self.logits.head
        return coefficient[..., None] * jax.nn.softmax(head.capped(head.raw(features)))

    def mean(self, *tables: jax.Array) -> jax.Array:
        head = self.logits.head

        def factored(arrays):
            coefficient, features = arrays
            _, weight, total = softmax_parts(head.capped(head.raw(features)), head.bound)
            return coefficient[..., None] / total, weight

        return self.chunked_mean(factored, tables)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tangent(OfLogits):
    """coefficient * dp, with dp = p * (slope - sum(p * slope)) and slope that of the logits."""

    def tokenwise(self) -> Arrays:
        return *super().tokenwise(), self.logits.tangent_BLD

    def chunk(self, arrays: Arrays) -> jax.Array:
        (coefficient, features, tangent), head = arrays, self.logits.head
        raw = head.raw(features)
        p, slope = jax.nn.softmax(head.capped(raw)), head.logits_tangent(raw, tangent)
        return coefficient[..., None] * (p * (slope - jnp.sum(p * slope, -1, keepdims=True)))

    def mean(self, *tables: jax.Array) -> jax.Array:
        head = self.logits.head

        def factored(arrays):
            coefficient, features, tangent = arrays
            raw = head.raw(features)
            _, weight, total = softmax_parts(head.capped(raw), head.bound)
            slope = head.logits_tangent(raw, tangent)
            weight = weight * (slope - jnp.sum(weight * slope, -1, keepdims=True) / total)
            return coefficient[..., None] / total, weight

        return self.chunked_mean(factored, tables)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RawLogits(OfLogits):
    """coefficient * (features @ kernel + bias)."""

    def chunk(self, arrays: Arrays) -> jax.Array:
        coefficient, features = arrays
        return coefficient[..., None] * self.logits.head.raw(features)

    def mean(self, *tables: jax.Array) -> jax.Array:
        """Linear: the product of kernel and tables is no larger than one of them."""
        (coefficient_BL, features_BLD), head = self.tokenwise(), self.logits.head
        features_BLD, kernel_DV, bias_V, *wide = at_least_float32(
            features_BLD, features_BLD, head.kernel_DV, head.bias_V, *tables
        )
        both_DW, bias_W = products(kernel_DV, wide), products(bias_V, wide)
        mean_BLW = jnp.matmul(features_BLD, both_DW) + on_last_axis(bias_W, 3)
        return coefficient_BL[..., None] * mean_BLW


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneHotTokens(Term):
    """coefficient * e_token."""

    tokens_BL: jax.Array
    vocab_size: int = dataclasses.field(metadata=STATIC)
    tokens_per_chunk: int = dataclasses.field(metadata=STATIC)

    @property
    def source(self) -> jax.Array:
        return self.tokens_BL

    @property
    def chunk_size(self) -> int:
        return self.tokens_per_chunk

    def tokenwise(self) -> Arrays:
        return self.coefficient_BL(self.tokens_BL), self.tokens_BL

    def chunk(self, arrays: Arrays) -> jax.Array:
        coefficient, tokens = arrays
        vocabulary = jnp.arange(self.vocab_size, dtype=tokens.dtype)[None, None, :]
        return jnp.where(vocabulary == tokens[..., None], coefficient[..., None], 0.0)

    def mean(self, *tables: jax.Array) -> jax.Array:
        coefficient_BL, tokens_BL = self.tokenwise()
        return coefficient_BL[..., None] * side_by_side(table[tokens_BL] for table in tables)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DenseArray(Term):
    """coefficient * an array."""

    array_BLV: jax.Array
    tokens_per_chunk: int = dataclasses.field(metadata=STATIC)

    @property
    def source(self) -> jax.Array:
        return self.array_BLV

    @property
    def chunk_size(self) -> int:
        return self.tokens_per_chunk

    def tokenwise(self) -> Arrays:
        return self.coefficient_BL(self.array_BLV), self.array_BLV

    def chunk(self, arrays: Arrays) -> jax.Array:
        coefficient, array = arrays
        return coefficient[..., None] * array

    def mean(self, *tables: jax.Array) -> jax.Array:
        def factored(arrays):
            coefficient, array = arrays
            return coefficient[..., None], at_least_float32(array, array)[0]

        return self.chunked_mean(factored, tables)


def at_least_float32(like: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
    """The arrays in the type of ``like``, but at least float32."""
    wide = jnp.promote_types(like.dtype, jnp.float32)
    return [array.astype(wide) for array in arrays]
