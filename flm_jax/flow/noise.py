"""The noise of the projected space: drawn where the networks see it, never over the vocabulary.

With T = [E_1 E_2 ...] (V, W) the embedding tables of all networks side by side, dense noise eps is
seen as

    eps @ T ~ N(0, T'T)   =   z @ R',   z ~ N(0, I_W),   R = chol(T'T + eta * I)

A small eta keeps the factor finite when tables coincide (student = teacher at the start of
distillation).

**Gradient.** With g the cotangent of ``z @ R'``, the gradient of the dense objective in
expectation is ``dT = T R^-T (z'g)``, summed over tokens: given z, the dense noise has mean ``z
R^-1 T'``, and the rest of it is invisible to every network (Rao-Blackwell: variance falls by
about V / W). Differentiating through the Cholesky factor would be another, wrong direction for
objectives with stopped gradients, because a square root is defined only up to a rotation.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

HIGHEST = jax.lax.Precision.HIGHEST  # the default on accelerators is TF32 or bfloat16
JITTER = 1e-5  # eta relative to the mean diagonal of the Gram matrix
JITTER_TRIES = 6


def wide(table: jax.Array) -> jax.Array:
    """The table in at least float32."""
    return table.astype(jnp.promote_types(table.dtype, jnp.float32))


def gram(tables: Sequence[jax.Array]) -> jax.Array:
    """T'T (W, W) of tables (V, D) side by side; at least float32, full precision.

    One product for every pair, read from where the tables are: nothing else of the vocabulary's
    size exists. Where a tensor axis shares the vocabulary, every device sums its part; an fsdp axis
    shares the columns, and the tables are gathered.
    """
    tables = [wide(table) for table in tables]
    # As one operation, without a transposed copy: the sums are then the same ones whether it is
    # compiled alone or within a program. Two factors of a nearly singular matrix that differ in
    # the last digit of its entries differ in the third digit of their last columns.
    blocks = [
        [jnp.einsum("vi,vj->ij", a, b, precision=HIGHEST) for b in tables[i:]]
        for i, a in enumerate(tables)
    ]
    rows = [
        jnp.concatenate([*(blocks[j][i - j].T for j in range(i)), *blocks[i]], axis=1)
        for i in range(len(tables))
    ]
    return jnp.concatenate(rows, axis=0)


def cholesky_factor(gram_WW: jax.Array) -> jax.Array:
    """Lower R (W, W) with R R' = T'T + eta * diag(u), finite; of T'T.

    eta is the smallest of 1e-5, 1e-4 ... that suffices. u is the mean diagonal of T'T, but for each
    column at most ten times its own: or else one huge column would add noise to all others. Float32
    or float64.
    """
    # A table of zeros (a hand-made or broken one) still gets a finite, tiny factor.
    diagonal_W = jnp.maximum(jnp.diagonal(gram_WW), jnp.finfo(gram_WW.dtype).tiny * 1e6)
    unit_W = jnp.minimum(jnp.mean(diagonal_W), 10.0 * diagonal_W)

    def attempt(jitter):
        return jnp.linalg.cholesky(gram_WW + jitter * jnp.diag(unit_W))

    def failed(carry):
        jitter, factor = carry
        return ~jnp.all(jnp.isfinite(factor)) & (jitter < JITTER * 10.0**JITTER_TRIES)

    def grow(carry):
        jitter, _ = carry
        return jitter * 10.0, attempt(jitter * 10.0)

    jitter = jnp.asarray(JITTER, gram_WW.dtype)
    return jax.lax.while_loop(failed, grow, (jitter, attempt(jitter)))[1]


def factor(tables: Sequence[jax.Array]) -> jax.Array:
    """R (W, W), lower, of tables (V, D) side by side."""
    return cholesky_factor(gram(tables))


def seen(factor_WW: jax.Array, z_BLW: jax.Array) -> jax.Array:
    """z @ R' (B, L, W): what networks see of raw noise."""
    return jnp.matmul(z_BLW, factor_WW.T, precision=HIGHEST)


def raw_of_dense(tables: Sequence[jax.Array], noise_BLV: jax.Array) -> jax.Array:
    """z = n @ T @ R^-T, (B, L, W): the raw noise that is seen as dense noise n is, as eta -> 0."""
    factor_WW = factor(tables)
    seen_BLW = jnp.concatenate(
        [jnp.matmul(noise_BLV, wide(table), precision=HIGHEST) for table in tables], -1
    )
    flat = jax.scipy.linalg.solve_triangular(
        factor_WW, seen_BLW.reshape(-1, seen_BLW.shape[-1]).T, lower=True
    ).T
    return flat.reshape(seen_BLW.shape)


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["flags"])
@dataclasses.dataclass(frozen=True)
class Learned:
    """Which tables have a gradient: known while tracing, so no array among the residuals."""

    flags: tuple[bool, ...]


@jax.custom_vjp
def project_noise(tables: tuple[jax.Array, ...], z_BLW: jax.Array) -> jax.Array:
    """z @ R' (B, L, W), distributed as eps @ T; gradient in T as at the top of this file."""
    return seen(factor(tables), z_BLW)


def _project_forward(tables, z_BLW):
    learned = tuple(table.perturbed for table in tables)
    tables, z_BLW = tuple(table.value for table in tables), z_BLW.value
    factor_WW = factor(tables)
    return seen(factor_WW, z_BLW), (tables, Learned(learned), factor_WW, z_BLW)


def _project_backward(residuals, g_BLW):
    if isinstance(g_BLW, SymbolicZero):
        return None, None
    tables, learned, factor_WW, z_BLW = residuals
    correlation_WW = jnp.einsum("blw,blx->wx", z_BLW, g_BLW, precision=HIGHEST)
    mixing_WW = jax.scipy.linalg.solve_triangular(factor_WW.T, correlation_WW, lower=False)
    ends = list(itertools.accumulate(table.shape[1] for table in tables))
    rows = jnp.split(mixing_WW, ends[:-1], axis=0)
    d_tables = []
    for i, table in enumerate(tables):
        d_table = None
        if learned.flags[i]:  # one of two, when a student learns from a teacher
            columns = slice(ends[i] - table.shape[1], ends[i])
            parts = (
                jnp.matmul(wide(other), mixing[:, columns], precision=HIGHEST)
                for other, mixing in zip(tables, rows, strict=True)
            )
            d_table = functools.reduce(jnp.add, parts).astype(table.dtype)
        d_tables.append(d_table)
    return tuple(d_tables), jnp.matmul(g_BLW, factor_WW, precision=HIGHEST)


project_noise.defvjp(_project_forward, _project_backward, symbolic_zeros=True)
