"""Layers of the backbone, with the initialisation of the official PyTorch code."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flm_jax.flow.head import matmul_dtype, on_last_axis
from flm_jax.models import products

FREQUENCIES = 128  # of the time embedding: that many cosines, then that many sines
MAX_PERIOD = 10_000.0
LOSS_WEIGHT_HIDDEN = 128  # fixed in the official code, whatever the width of the conditioning


def uniform(bound: float) -> nn.initializers.Initializer:
    """Uniform in [-bound, bound]."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """x @ kernel + bias; weight and bias start uniform in +-1/sqrt(fan_in), or at zero."""

    features: int
    use_bias: bool = True
    zero: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        init = nn.initializers.zeros if self.zero else uniform(1.0 / math.sqrt(fan_in))
        kernel = self.param("kernel", init, (fan_in, self.features), jnp.float32)
        dtype = matmul_dtype(self.dtype, x.dtype, kernel.dtype)
        y = products.product(x.reshape(-1, fan_in), kernel, dtype)
        y = y.reshape(*x.shape[:-1], self.features)
        if self.use_bias:
            bias = self.param("bias", init, (self.features,), jnp.float32).astype(y.dtype)
            y = y + on_last_axis(bias, y.ndim)
        return y


class Norm(nn.Module):
    """Layer norm with a learned scale and no bias, in at least float32; ``rms``: without its mean.

    That is x / sqrt(mean(x^2) + eps) * scale (RMS norm, arXiv 1910.07467).
    """

    rms: bool = False
    eps: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = x if self.rms else x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + self.eps) * on_last_axis(scale, x.ndim)


def modulate(x: jax.Array, shift: jax.Array | float, scale: jax.Array | float) -> jax.Array:
    """Adaptive layer norm: x * (1 + scale) + shift, in the type of ``x``."""
    return x * (1.0 + scale) + shift


class TimeEmbedding(nn.Module):
    """Sinusoids of tau in [0, 1], not scaled (all angles are at most 1 rad), and a small MLP.

    tau (B,) or (B, L) -> (B, width) or (B, L, width), at least float32.
    """

    width: int

    @nn.compact
    def __call__(self, tau: jax.Array) -> jax.Array:
        tau = tau.astype(jnp.promote_types(tau.dtype, jnp.float32))
        index = jnp.arange(FREQUENCIES, dtype=tau.dtype)
        frequency = jnp.exp(-math.log(MAX_PERIOD) * index / FREQUENCIES)
        angle = tau[..., None] * on_last_axis(frequency, tau.ndim + 1)
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        hidden = nn.silu(Linear(self.width, name="in")(waves))
        return Linear(self.width, name="out")(hidden)


class LossWeight(nn.Module):
    """The learned log w(tau) of the loss exp(-w) * loss + w; starts at 0. (B,) -> (B,)."""

    width: int

    @nn.compact
    def __call__(self, tau: jax.Array) -> jax.Array:
        embedded = TimeEmbedding(self.width, name="time_embed")(tau)
        hidden = nn.gelu(Linear(LOSS_WEIGHT_HIDDEN, name="hidden")(embedded), approximate=False)
        return Linear(1, zero=True, name="out")(hidden)[..., 0]
