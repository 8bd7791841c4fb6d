"""rows @ kernel in the forms that a CPU computes fastest, forward and backward.

A product of rows (N, I) and a kernel (I, O) has two gradients. That of the rows is again a product
of rows with a kernel. That of the kernel contracts both arrays over their rows, for which XLA's
form on CPUs takes up to twice as long if the wider one stands on the left (benchmarks/cpu.md).

A CPU keeps results in at least float32: element-wise work in bfloat16 is what is slow there. On
accelerators, where memory counts, they are rounded to the type of the operands at once, so that
what is kept for the backward pass is small, and derivatives are the ordinary ones.

On a CPU there are forward mode, reverse mode, and reverse over forward mode, as LSD and ESD take
them, but no `jax.vmap`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.typing import DTypeLike

from flm_jax import target


def device_kind() -> str:
    """What programs are compiled for, "cpu" or "accelerator"."""
    return target.current().form


def product(rows_NI: jax.Array, kernel_IO: jax.Array, dtype: DTypeLike) -> jax.Array:
    """rows @ kernel (N, O) of operands read in ``dtype``; float32 or wider on CPUs, else that."""
    if device_kind() == "cpu":
        return _linear_in_rows(jnp.dtype(dtype), rows_NI, kernel_IO)
    return jnp.matmul(rows_NI.astype(dtype), kernel_IO.astype(dtype))


def _matmul(dtype, x, y):
    result = jnp.promote_types(dtype, jnp.float32)
    return jnp.matmul(x.astype(dtype), y.astype(dtype), preferred_element_type=result)


def _of_rows(dtype, kernel_IO, slope_NO):
    """slope @ kernel' (N, I)."""
    return _matmul(dtype, slope_NO, _transposed(dtype, kernel_IO.astype(dtype)))


def _of_kernel(dtype, rows_NI, slope_NO):
    """rows' @ slope (I, O)."""
    # Rounded before they are moved.
    rows_NI, slope_NO = rows_NI.astype(dtype), slope_NO.astype(dtype)
    if rows_NI.shape[1] <= slope_NO.shape[1]:
        return _matmul(dtype, _transposed(dtype, rows_NI), slope_NO)
    product_OI = _matmul(dtype, _transposed(dtype, slope_NO), rows_NI)
    # A barrier, because XLA would exchange the operands.
    return jax.lax.optimization_barrier(product_OI).T


def _transposed(dtype, x):
    """x' as an operand of a product: where its type is bfloat16, in memory, row after row.

    XLA has fast products of bfloat16 for operands that lie row after row only, and reads the others
    as float32. That it is to move the array, it learns from a shape that is not a transposition.
    """
    if dtype != jnp.bfloat16:
        return x.T
    return jax.lax.optimization_barrier(x.T[None]).reshape(x.T.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _linear_in_rows(dtype, rows_NI, kernel_IO):
    """The product as a linear function of the rows, which says how it is transposed."""

    def transposed(kernel_IO, slope_NO):
        return _of_rows(dtype, kernel_IO, slope_NO).astype(rows_NI.dtype)

    return linear_call(
        lambda kernel_IO, rows_NI: _matmul(dtype, rows_NI, kernel_IO),
        transposed, kernel_IO, rows_NI,
    )  # fmt: skip


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _linear_in_kernel(dtype, rows_NI, kernel_IO):
    """The same as a linear function of the kernel."""

    def transposed(rows_NI, slope_NO):
        return _of_kernel(dtype, rows_NI, slope_NO).astype(kernel_IO.dtype)

    return linear_call(
        lambda rows_NI, kernel_IO: _matmul(dtype, rows_NI, kernel_IO),
        transposed, rows_NI, kernel_IO,
    )  # fmt: skip


def _derivative(dtype, primals, tangents):
    (rows_NI, kernel_IO), (d_rows_NI, d_kernel_IO) = primals, tangents
    value_NO = _matmul(dtype, rows_NI, kernel_IO)  # ordinary, so that policies of remat know it
    terms = []
    if not isinstance(d_rows_NI, SymbolicZero):
        terms.append(_linear_in_rows(dtype, d_rows_NI, kernel_IO))
    if not isinstance(d_kernel_IO, SymbolicZero):
        terms.append(_linear_in_kernel(dtype, rows_NI, d_kernel_IO))
    return value_NO, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(value_NO)


_linear_in_rows.defjvp(_derivative, symbolic_zeros=True)
_linear_in_kernel.defjvp(_derivative, symbolic_zeros=True)
