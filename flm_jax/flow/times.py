"""Times of sequences: how they are drawn for a global batch, and what they are on both clocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.flow.clock import Clock


class Path(NamedTuple):
    """Times of some sequences, (B,) each: of the network (tau) and of the interpolation."""

    tau_s: jax.Array
    tau_u: jax.Array
    tau_t: jax.Array
    s: jax.Array
    u: jax.Array
    t: jax.Array

    @classmethod
    def through(cls, tau_s: jax.Array, tau_u: jax.Array, tau_t: jax.Array, clock: Clock) -> "Path":
        """From tau_s by way of tau_u to tau_t."""
        return cls(tau_s, tau_u, tau_t, *(clock.to_t(tau) for tau in (tau_s, tau_u, tau_t)))

    def rows(self, which: slice) -> "Path":
        """The times of some of the sequences."""
        return Path(*(x[which] for x in self))


def stratified(uniform_N: jax.Array, permutation_N: jax.Array) -> jax.Array:
    """One time per stratum of [0, 1), in random order: ((u_i + i) / n mod 1)[permutation].

    ``uniform_N`` are independent uniforms in [0, 1), n of them, one per sample of the *global*
    batch; the official code calls this antithetic sampling.
    """
    n = uniform_N.shape[0]
    strata = (uniform_N / n + jnp.arange(n, dtype=uniform_N.dtype) / n) % 1.0
    return strata[permutation_N]


def logit_normal(uniform_N: jax.Array, centre: float, spread: float) -> jax.Array:
    """sigmoid(centre + spread * z) with z ~ N(0, 1) the quantiles of uniforms in [0, 1), (N,).

    A stratum of uniforms becomes one of these times (Esser et al. 2024, arXiv 2403.03206).
    """
    return jax.nn.sigmoid(centre + spread * jax.scipy.special.ndtri(uniform_N))


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


def in_range(
    low: float, high: float, uniform_N: jax.Array, permutation_N: jax.Array | None
) -> jax.Array:
    """Times from low to high, (N,): `stratified`, or independent without a permutation."""
    unit = uniform_N if permutation_N is None else stratified(uniform_N, permutation_N)
    return unit * (high - low) + low
