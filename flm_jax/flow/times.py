"""Drawing times and dealing out their kinds over the global batch."""

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
    return jax.random.uniform(key_uniform, (n,), jnp.float32), jax.random.permutation(
        key_permutation, n
    )


def pairs(times_2N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(tau_s, tau_t) with tau_s <= tau_t, (N,) each: neighbours of 2N drawn times, sorted."""
    sorted_N2 = jnp.sort(times_2N.reshape(-1, 2), axis=-1)
    return sorted_N2[:, 0], sorted_N2[:, 1]


def split_counts(
    global_size: int, diagonal_fraction: float, boundary_fraction: float
) -> tuple[int, int, int]:
    """Numbers of diagonal, interior and boundary samples of a global batch; they add up to it.

    ``boundary_fraction`` is a share of the samples off the diagonal (the official option
    ``boundary_prob`` is its inverse). Rows take their kind by their place in the global batch, in
    this order, so that neither devices nor accumulation matter and no sample is lost.
    """
    diagonal = int(global_size * diagonal_fraction)
    share = diagonal_fraction + (1.0 - diagonal_fraction) * boundary_fraction
    boundary = int(global_size * share) - diagonal
    return diagonal, global_size - diagonal - boundary, boundary


def official_split(
    global_size: int,
    diagonal_fraction: float,
    boundary_prob: float,
    processes: int = 1,
    process: int = 0,
) -> tuple[int, int, int]:
    """How many diagonal, boundary and off-diagonal samples one process of the official code has.

    Parity only. Each kind's count over the global batch is shared out separately, the first
    processes taking the remainders: the three counts of a process need not add up to its batch.
    The official code then leaves rows without a kind (no loss), or cuts a random choice of the
    surplus; training here splits the global batch by index and loses nothing.
    """
    diagonal = int(global_size * diagonal_fraction)
    share = diagonal_fraction + (1.0 - diagonal_fraction) / boundary_prob
    boundary = int(global_size * share) - diagonal

    def share_of(count: int) -> int:
        return count // processes + (process < count % processes)

    rest = global_size - diagonal - boundary
    return share_of(diagonal), share_of(boundary), share_of(rest)
