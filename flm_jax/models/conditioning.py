"""What the times say to the blocks, at the cost of one time per sequence even where some are given.

A given token is at time 1, whatever the time of its sequence is, so a batch of B sequences has only
B + 1 different times. Embedding and modulations are computed for these, (B + 1, 1, ...) with that
of the given tokens last, and every token takes one of two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Conditioning(NamedTuple):
    """Vectors of the times, and which tokens take the last one.

    ``vectors`` is (B, 1, C), (B, L, C) for times per position, or (B + 1, 1, C) with ``given_BL``,
    a bool mask; so is everything computed from it, with its own last axis.
    """

    vectors: jax.Array
    given_BL: jax.Array | None

    def split(self, modulation: jax.Array, parts: int) -> list[jax.Array]:
        """Its parts, (B, 1, D) each, or (B, L, D) where tokens differ."""
        return [take(part, self.given_BL) for part in jnp.split(modulation, parts, axis=-1)]


def with_given(tau: jax.Array, given_BL: jax.Array | None) -> jax.Array:
    """The times (B,) and, if there are given tokens, 1 as one more, (B + 1,)."""
    if given_BL is None:
        return tau
    if tau.ndim != 1:
        raise ValueError(f"with given tokens, times are one per sequence, not {tau.shape}")
    return jnp.append(tau, jnp.ones((), tau.dtype))


def take(values: jax.Array, given_BL: jax.Array | None) -> jax.Array:
    """For each token the value of its sequence, or the last one where it is given.

    (B + 1, 1, ...) -> (B, L, ...); unchanged if nothing is given.
    """
    if given_BL is None:
        return values
    given = given_BL.reshape(given_BL.shape + (1,) * (values.ndim - 2))
    return jnp.where(given, values[-1:], values[:-1])
