"""Keys and raw random numbers, one key per sequence.

What a sequence draws depends on its own key only: not on the batch it is in, nor on the gradient
accumulation or the devices.
"""

import jax
import jax.numpy as jnp


def sequence_keys(key: jax.Array, index_B: jax.Array) -> jax.Array:
    """One key per sequence, (B,): sequence i has the same in whatever batch it is."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)


def folded(keys_B: jax.Array, number: jax.Array | int) -> jax.Array:
    """New keys (B,), of every key and one number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)


def two_each(keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two new keys of every key, (B,) each."""
    keys_B2 = jax.vmap(jax.random.split)(keys_B)
    return keys_B2[:, 0], keys_B2[:, 1]


def normals(keys_B: jax.Array, length: int, width: int) -> jax.Array:
    """Standard normals float32 (B, L, width)."""
    return jax.vmap(lambda key: jax.random.normal(key, (length, width), jnp.float32))(keys_B)


def uniforms(keys_B: jax.Array, length: int) -> jax.Array:
    """Uniforms in [0, 1), float32 (B, L)."""
    return jax.vmap(lambda key: jax.random.uniform(key, (length,), jnp.float32))(keys_B)


def random_tokens(keys_B: jax.Array, length: int, vocab_size: int) -> jax.Array:
    """Tokens int32 (B, L), all equally probable."""
    draw = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, vocab_size, jnp.int32))
    return draw(keys_B)
