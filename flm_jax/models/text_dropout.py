"""Dropout whose masks are drawn by one key for every text, not by one for the batch.

What a text loses then depends neither on the batch that it is in nor on the devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

STREAM = "dropout"


def by_text(keys_B: jax.Array) -> Callable:
    """An interceptor (`nn.intercept_methods`) under which `nn.Dropout` draws so."""

    def intercept(
        call: Callable,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        layer = context.module
        if not isinstance(layer, nn.Dropout) or layer.deterministic or not layer.rate:
            return call(*args, **kwargs)
        # The key of the stream says only which layer this is.
        number = jax.random.bits(layer.make_rng(STREAM))
        return dropped(args[0], layer.rate, keys_B, number)

    return intercept


def dropped(x: jax.Array, rate: float, keys_B: jax.Array, number: jax.Array) -> jax.Array:
    """x (B, ...) with a share ``rate`` of every text's entries at zero, the others scaled up."""

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1.0 - rate, x.shape)
        return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))

    return jax.vmap(one)(keys_B, x)
