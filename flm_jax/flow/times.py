"""Drawing times: stratified uniforms over the global batch."""

import jax
import jax.numpy as jnp


def stratified(uniform_N: jax.Array, permutation_N: jax.Array) -> jax.Array:
    """One time per stratum of [0, 1), in random order: ((u_i + i) / n mod 1)[permutation].

    ``uniform_N`` are independent uniforms in [0, 1), n of them, one per sample of the *global*
    batch; the official code calls this antithetic sampling.
    """
    n = uniform_N.shape[0]
    strata = (uniform_N / n + jnp.arange(n, dtype=uniform_N.dtype) / n) % 1.0
    return strata[permutation_N]


def draw_stratified(key: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The raw numbers of `stratified`: uniforms float32 (n,) and a permutation int32 (n,)."""
    key_uniform, key_permutation = jax.random.split(key)
    return jax.random.uniform(key_uniform, (n,)), jax.random.permutation(key_permutation, n)
