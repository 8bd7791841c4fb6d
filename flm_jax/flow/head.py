"""The vocabulary head: from features to logits, and the products that its gradients are made of."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def matmul_dtype(configured: DTypeLike, *operands: DTypeLike) -> jnp.dtype:
    """The type a matrix product reads: as configured, but float64 operands stay float64."""
    if jnp.dtype(configured) == jnp.float32:
        return jnp.result_type(jnp.float32, *operands)
    return jnp.dtype(configured)


def on_last_axis(vector: jax.Array, ndim: int) -> jax.Array:
    """A vector as an array of rank ``ndim`` that varies along the last axis (no rank promotion)."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel_DV", "bias_V"],
    meta_fields=["cap", "temperature", "chunk", "dtype", "fused"],
)
@dataclasses.dataclass(frozen=True)
class Head:
    """The output layer: logits = cap * tanh((f @ kernel + bias) / cap) / temperature.

    ``cap`` 0 means no soft cap. ``chunk`` is the number of tokens (B times positions) whose
    logits may exist at once; 0 = all of them (not for the gradients of `flow/fused.py`). ``dtype``
    is the type the matrix product reads; it accumulates in at least float32. ``fused`` False leaves
    gradients of losses to ordinary differentiation: slower, for comparison.
    """

    kernel_DV: jax.Array
    bias_V: jax.Array
    cap: float = 30.0
    temperature: float = 1.0
    chunk: int = 1024
    dtype: DTypeLike = jnp.float32
    fused: bool = True

    @property
    def vocab_size(self) -> int:
        return self.kernel_DV.shape[1]

    @property
    def bound(self) -> float:
        """What no capped logit exceeds; infinite without a cap."""
        return self.cap / self.temperature if self.cap else math.inf

    def raw(self, features: jax.Array) -> jax.Array:
        """Uncapped logits (..., V), at least float32, of features (..., D)."""
        return self.product(features) + on_last_axis(self.bias_V, features.ndim)

    def product(self, features: jax.Array) -> jax.Array:
        """features (..., D) @ kernel, accumulated in at least float32."""
        dtype = matmul_dtype(self.dtype, features.dtype)
        return jnp.matmul(
            features.astype(dtype),
            self.kernel_DV.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )

    def transposed_product(self, slope: jax.Array) -> jax.Array:
        """slope (..., V) @ kernel', accumulated in at least float32: (..., D)."""
        dtype = matmul_dtype(self.dtype, slope.dtype)
        return jnp.einsum(
            "...v,dv->...d",
            slope.astype(dtype),
            self.kernel_DV.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )

    def outer_product(self, features: jax.Array, slope: jax.Array) -> jax.Array:
        """Sum over tokens of features (B, L, D) x slope (B, L, V): (D, V), at least float32."""
        dtype = matmul_dtype(self.dtype, slope.dtype)
        return jnp.einsum(
            "bld,blv->dv",
            features.astype(dtype),
            slope.astype(dtype),
            preferred_element_type=jnp.promote_types(dtype, jnp.float32),
        )

    def capped(self, raw: jax.Array) -> jax.Array:
        logits = self.cap * jnp.tanh(raw / self.cap) if self.cap else raw
        return logits / self.temperature if self.temperature != 1.0 else logits

    def slope(self, raw: jax.Array) -> jax.Array | float:
        """d capped logit / d raw one, entry by entry."""
        slope = 1.0 - jnp.tanh(raw / self.cap) ** 2 if self.cap else 1.0
        return slope / self.temperature

    def logits_tangent(self, raw: jax.Array, features_tangent: jax.Array) -> jax.Array:
        """Directional derivative of `capped` logits for a tangent of the features."""
        return self.product(features_tangent) * self.slope(raw)

    def replace(self, kernel_DV: jax.Array, bias_V: jax.Array) -> "Head":
        """A head with these arrays, all else equal."""
        return dataclasses.replace(self, kernel_DV=kernel_DV, bias_V=bias_V)
