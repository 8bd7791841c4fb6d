"""The kinds of samples that a flow map learns from, and which rows of a batch are of which kind.

    diagonal   tau_s = tau_t: the map is the denoiser itself
    interior   tau_s < tau_t
    boundary   tau_s = 0, tau_t = 1: the whole way in one jump
    at zero    tau_s = tau_t = 0: nothing but noise beside the given tokens (`losses/any_order.py`)

Rows take their kind by their place in the global batch, in this order, so that neither devices nor
accumulation matter and no sample is lost.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

DIAGONAL, OFF_DIAGONAL, AT_ZERO = range(3)  # groups of kinds that have one target each


class Kinds(NamedTuple):
    """How many samples of a global batch are of each kind."""

    diagonal: int
    interior: int
    boundary: int
    at_zero: int = 0

    @classmethod
    def of(
        cls,
        global_size: int,
        diagonal_fraction: float,
        boundary_fraction: float,
        at_zero_fraction: float = 0.0,
    ) -> "Kinds":
        """The kinds of a global batch.

        ``diagonal_fraction`` is a share of the samples that are not at zero, ``boundary_fraction``
        one of those that are off the diagonal, too (the official option ``boundary_prob`` is its
        inverse).
        """
        share, rest = at_zero_fraction, 1.0 - at_zero_fraction
        at_zero = int(global_size * share)
        share += rest * diagonal_fraction
        diagonal = int(global_size * share) - at_zero
        share += rest * (1.0 - diagonal_fraction) * boundary_fraction
        boundary = int(global_size * share) - at_zero - diagonal
        return cls(diagonal, global_size - at_zero - diagonal - boundary, boundary, at_zero)

    @property
    def off_diagonal(self) -> int:
        """Samples whose two times differ."""
        return self.interior + self.boundary

    @property
    def groups(self) -> tuple[int, int, int]:
        """Samples of each group: on the diagonal, off it, at zero."""
        return self.diagonal, self.off_diagonal, self.at_zero

    def group_of(self, index_B: jax.Array) -> jax.Array:
        """The group of samples, given their places in the global batch, int32 (B,)."""
        first, second = self.diagonal, self.diagonal + self.off_diagonal
        return (index_B >= first).astype(jnp.int32) + (index_B >= second)

    def is_diagonal(self, index_B: jax.Array) -> jax.Array:
        """Which samples are diagonal, given their places in the global batch."""
        return index_B < self.diagonal

    def times(
        self, diagonal_N: jax.Array, tau_s_N: jax.Array, tau_t_N: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(tau_s, tau_t) of all samples, (N,) each.

        A sample takes what was drawn for its kind: one time of ``diagonal_N``, or a start and an
        end; those of boundary samples are 0 and 1, and both are 0 at zero.
        """
        row_N = jnp.arange(sum(self))
        on_N, fixed_N = self.is_diagonal(row_N), row_N >= self.diagonal + self.interior
        end_N = (row_N < sum(self) - self.at_zero).astype(tau_t_N.dtype)  # of the fixed ones
        tau_s_N = jnp.where(on_N, diagonal_N, jnp.where(fixed_N, 0.0, tau_s_N))
        tau_t_N = jnp.where(on_N, diagonal_N, jnp.where(fixed_N, end_N, tau_t_N))
        return jnp.clip(tau_s_N, 0.0, 1.0), jnp.clip(tau_t_N, 0.0, 1.0)

    def parts(self, rows: int) -> tuple[slice, ...]:
        """The rows of a batch that may be of each group.

        A micro-batch of so many rows takes every n-th row of the global batch, so the groups lie
        one behind the other; where their number does not divide evenly, one row is in two parts
        and `join` picks.
        """
        micro_batches = sum(self) // rows
        ends = list(itertools.accumulate(self.groups, initial=0))
        parts = (
            slice(first // micro_batches, -(-last // micro_batches) if last > first else 0)
            for first, last in itertools.pairwise(ends)
        )
        return tuple(part if part.stop > part.start else slice(0, 0) for part in parts)

    def join(self, index_B: jax.Array, values: Sequence[jax.Array | None]) -> jax.Array:
        """The values of all rows (B, L), from those of the `parts`; None where a part is empty."""
        rows, group_B1 = len(index_B), self.group_of(index_B)[:, None]
        joined = None
        for group, (part, own) in enumerate(zip(self.parts(rows), values, strict=True)):
            if own is None:
                continue
            if len(own) < rows:
                own = jnp.pad(own, ((part.start, rows - part.stop), (0, 0)))
            joined = own if joined is None else jnp.where(group_B1 == group, own, joined)
        if joined is None:
            raise ValueError("a batch has at least one row")
        return joined


def boundary_notices(
    batch_size: int, diagonal_fraction: float, boundary_fraction: float
) -> list[str]:
    """Says so if numbers of samples, rounded down, leave no boundary one though some are wanted."""
    diagonal, interior, boundary, _ = Kinds.of(batch_size, diagonal_fraction, boundary_fraction)
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
