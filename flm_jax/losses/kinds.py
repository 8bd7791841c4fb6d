"""The kinds of samples that a flow map learns from, and which rows of a batch are of which kind.

    diagonal   tau_s = tau_t: the map is the denoiser itself
    interior   tau_s < tau_t
    boundary   tau_s = 0, tau_t = 1: the whole way in one jump

Rows take their kind by their place in the global batch, in this order, so that neither devices nor
accumulation matter and no sample is lost.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Kinds(NamedTuple):
    """How many samples of a global batch are of each kind."""

    diagonal: int
    interior: int
    boundary: int

    @classmethod
    def of(cls, global_size: int, diagonal_fraction: float, boundary_fraction: float) -> "Kinds":
        """The kinds of a global batch.

        ``boundary_fraction`` is a share of the samples off the diagonal (the official option
        ``boundary_prob`` is its inverse).
        """
        diagonal = int(global_size * diagonal_fraction)
        share = diagonal_fraction + (1.0 - diagonal_fraction) * boundary_fraction
        boundary = int(global_size * share) - diagonal
        return cls(diagonal, global_size - diagonal - boundary, boundary)

    @property
    def off_diagonal(self) -> int:
        """Samples that are not on the diagonal."""
        return self.interior + self.boundary

    def is_diagonal(self, index_B: jax.Array) -> jax.Array:
        """Which samples are diagonal, given their places in the global batch."""
        return index_B < self.diagonal

    def times(
        self, diagonal_N: jax.Array, tau_s_N: jax.Array, tau_t_N: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(tau_s, tau_t) of all samples, (N,) each.

        A sample takes what was drawn for its kind: one time of ``diagonal_N``, or a start and an
        end; those of boundary samples are 0 and 1.
        """
        row_N = jnp.arange(sum(self))
        on_N, whole_N = self.is_diagonal(row_N), row_N >= self.diagonal + self.interior
        tau_s_N = jnp.where(on_N, diagonal_N, jnp.where(whole_N, 0.0, tau_s_N))
        tau_t_N = jnp.where(on_N, diagonal_N, jnp.where(whole_N, 1.0, tau_t_N))
        return jnp.clip(tau_s_N, 0.0, 1.0), jnp.clip(tau_t_N, 0.0, 1.0)

    def parts(self, rows: int) -> tuple[slice, slice]:
        """Rows of a batch that may be diagonal, and rows that may lie off the diagonal.

        A micro-batch of so many rows takes every n-th row of the global batch, so its diagonal rows
        come first; where their number does not divide evenly, one row is in both parts and `join`
        picks.
        """
        micro_batches = sum(self) // rows
        whole, rest = divmod(self.diagonal, micro_batches)
        return slice(0, whole + (rest > 0)), slice(whole, rows)

    def join(self, index_B: jax.Array, on: jax.Array | None, off: jax.Array | None) -> jax.Array:
        """The values of all rows (B, L), from those of the two `parts`; None is an empty one."""
        rows = len(index_B)
        if on is None:
            if off is None:
                raise ValueError("a batch has at least one row")
            return off
        if off is None:
            return on
        on = jnp.pad(on, ((0, rows - len(on)), (0, 0)))
        off = jnp.pad(off, ((rows - len(off), 0), (0, 0)))
        return jnp.where(self.is_diagonal(index_B)[:, None], on, off)


def boundary_notices(
    batch_size: int, diagonal_fraction: float, boundary_fraction: float
) -> list[str]:
    """Says so if numbers of samples, rounded down, leave no boundary one though some are wanted."""
    diagonal, interior, boundary = Kinds.of(batch_size, diagonal_fraction, boundary_fraction)
    if boundary or not interior or not boundary_fraction:
        return []

    def gives_one(fraction: float, batch: int) -> bool:
        return Kinds.of(batch, diagonal_fraction, fraction).boundary > 0

    off_diagonal = 1.0 - diagonal_fraction
    least = ((diagonal + 1) / batch_size - diagonal_fraction) / off_diagonal
    unit = 10.0 ** (math.floor(math.log10(least)) - 2)  # three digits of it, rounded up
    digits = itertools.count(math.ceil(round(least / unit, 6)))
    fraction = next(unit * n for n in digits if gives_one(unit * n, batch_size))
    size = math.ceil(1.0 / (off_diagonal * boundary_fraction))
    size += not gives_one(boundary_fraction, size)  # rounding may take a whole one away
    return [
        f"loss.options.boundary_fraction={boundary_fraction:g} of the {interior} rows off "
        f"the diagonal of train.batch_size={batch_size} gives no boundary sample (the whole "
        f"way in one jump); for one, set loss.options.boundary_fraction={fraction:.3g} or "
        f"train.batch_size={size}, or the fraction to 0 if none is wanted"
    ]
