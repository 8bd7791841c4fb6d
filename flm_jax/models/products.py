"""Products of the blocks, in the forms that a CPU computes fastest forward and backward.

Operands are read in a given type. A CPU keeps results in at least float32: element-wise work in
bfloat16 is what is slow there. On accelerators, where memory counts, they are rounded to that
type at once, so that what is kept for the backward pass is small.

A product of rows (N, I) and a kernel (I, O) has two gradients. That of the rows is again a product
of rows with a kernel. That of the kernel contracts both arrays over their rows, for which XLA's
form on CPUs takes up to 1.7 times as long (benchmarks/cpu.md); so there the narrower of the two is
transposed first, which costs next to nothing.

On a CPU there are forward mode, reverse mode, and reverse over forward mode, as LSD and ESD take
them, but no `jax.vmap`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero, linear_call
from jax.typing import DTypeLike

OF_ROWS = "ni,io->no"
OF_KERNEL = "ni,no->io"


def device_kind() -> str:
    """What programs are compiled for, "cpu" or "accelerator"."""
    return "cpu" if jax.default_backend() == "cpu" else "accelerator"


def rows_times(rows_NI: jax.Array, kernel_IO: jax.Array, dtype: DTypeLike) -> jax.Array:
    """rows @ kernel (N, O) of operands read in ``dtype``."""
    return contract(OF_ROWS, rows_NI, kernel_IO, dtype)


def contract(
    form: str, x: jax.Array, y: jax.Array, dtype: DTypeLike, wide: bool = False
) -> jax.Array:
    """`jnp.einsum` of two arrays read in ``dtype``.

    Each index of one is in the other or in the result, which is float32 or wider on CPUs and if
    ``wide``, else of ``dtype``.
    """
    dtype, at_least_float32 = jnp.dtype(dtype), jnp.promote_types(dtype, jnp.float32)
    result = at_least_float32 if wide or device_kind() == "cpu" else dtype
    # Ordinary derivatives are right everywhere. On a CPU they are slow for kernels, and where they
    # are products of a float32 slope with a bfloat16 operand.
    ordinary = device_kind() != "cpu" or (form != OF_ROWS and dtype == at_least_float32)
    return (_plain if ordinary else _linear_in_x)(form, dtype, result, x, y)


def _plain(form, dtype, result, x, y):
    x, y = x.astype(dtype), y.astype(dtype)
    if form != OF_KERNEL:
        return jnp.einsum(form, x, y, preferred_element_type=result)
    # Barriers, because XLA would move the transpositions into the product, where they are slow.
    apart = jax.lax.optimization_barrier
    if x.shape[1] <= y.shape[1]:
        return jnp.matmul(apart(x.T), y, preferred_element_type=result)
    return apart(jnp.matmul(apart(y.T), x, preferred_element_type=result)).T


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _linear_in_x(form, dtype, result, x, y):
    """The product as a linear function of x, which says how it is transposed."""
    of_x, of_y, out = form.replace("->", ",").split(",")

    def transposed(y, slope):
        return _plain(f"{out},{of_y}->{of_x}", dtype, result, slope, y).astype(x.dtype)

    return linear_call(lambda y, x: _plain(form, dtype, result, x, y), transposed, y, x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _linear_in_y(form, dtype, result, x, y):
    """The same as a linear function of y."""
    of_x, of_y, out = form.replace("->", ",").split(",")

    def transposed(x, slope):
        return _plain(f"{of_x},{out}->{of_y}", dtype, result, x, slope).astype(y.dtype)

    return linear_call(lambda x, y: _plain(form, dtype, result, x, y), transposed, x, y)


def _tangent(form, dtype, result, primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    value = _plain(form, dtype, result, x, y)  # an ordinary product, as policies of remat know it
    terms = []
    if not isinstance(dx, SymbolicZero):
        terms.append(_linear_in_x(form, dtype, result, dx, y))
    if not isinstance(dy, SymbolicZero):
        terms.append(_linear_in_y(form, dtype, result, x, dy))
    return value, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(value)


_linear_in_x.defjvp(_tangent, symbolic_zeros=True)
_linear_in_y.defjvp(_tangent, symbolic_zeros=True)
