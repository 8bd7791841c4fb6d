"""A tiny network, batch and context shared by the tests of flows, losses, samplers and steps."""

import jax
import jax.numpy as jnp

from flm_jax.config import Model
from flm_jax.flow import clock as clock_lib
from flm_jax.losses.base import Batch
from flm_jax.models import dit

V, B, L, D = 16, 4, 6, 8


def model(vocab_size: int = V, **changes) -> dit.Model:
    settings = dict(width=D, depth=2, heads=2, cond_dim=4, dropout=0.0, head_chunk=8)
    return dit.build(Model(**{**settings, **changes}), vocab_size)


def params(net_model: dit.Model, seed: int = 0, scale: float = 0.3) -> dict:
    """Parameters with nothing at zero: fresh ones plus noise."""
    fresh = net_model.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    noisy = [
        leaf + scale * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def batch(seed: int = 0, size: int = B, length: int = L, vocab_size: int = V) -> Batch:
    tokens = jax.random.randint(jax.random.key(seed), (size, length), 0, vocab_size)
    return Batch(
        tokens.astype(jnp.int32),
        jnp.ones((size, length)),
        jnp.arange(size, dtype=jnp.int32),
        size,
    )


def clock() -> clock_lib.Clock:
    return clock_lib.build(V)
