"""Which rows of a batch a network with self-conditioning sees its own estimate of, in training.

    half of the rows:  c = p(x_t, t, 0), a first pass without gradient
    the other half:    c = 0
    the loss is that of p(x_t, t, c)

(Analog Bits, arXiv 2208.04202; FMLM*, arXiv 2607.00714, with p in the place of a latent.) Rows are
chosen by their place in the global batch, as kinds are (`losses/kinds.py`), so that neither devices
nor accumulation matter, and the first pass is made for these rows only.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.flow.at import STUDENT, At
from flm_jax.losses.base import Batch


class Told(NamedTuple):
    """The rows that are told an estimate: those from ``first`` up to ``last`` of the global batch.

    Times of the rows must not depend on their place, except through what both halves have alike.
    """

    first: int
    last: int

    @classmethod
    def half(cls, rows: int) -> "Told":
        """Half of a global batch whose rows are alike."""
        return cls(0, rows // 2)

    def part(self, batch: Batch) -> slice:
        """The rows of a micro-batch, every n-th row of the global batch, that may be told."""
        micro_batches = batch.global_size // len(batch.index_B)
        if self.first == self.last:
            return slice(0, 0)
        return slice(self.first // micro_batches, -(-self.last // micro_batches))

    def estimate(
        self,
        at: At,
        batch: Batch,
        state: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        given_BL: jax.Array | None = None,
    ) -> jax.Array | None:
        """What the student is told of every row, a state without gradient; zeros where nothing.

        Times are those that it is asked at next, (B,). None for a network that cannot be told, or
        if no row is.
        """
        part = self.part(batch)
        if not at.student.self_conditioning or part.start == part.stop:
            return None
        state = jax.lax.stop_gradient(state)
        some = state[part]
        tau_t, given_BL = (None if x is None else x[part] for x in (tau_t, given_BL))
        stopped = at.stopped()
        posterior = stopped.ask(STUDENT, some, tau_s[part], tau_t, given_BL=given_BL)
        estimate = stopped.estimate(posterior, some, given_BL)
        index_b = batch.index_B[part]
        told_b = (index_b >= self.first) & (index_b < self.last)
        estimate = jnp.where(told_b[:, None, None], estimate, 0.0)
        return jnp.pad(estimate, ((part.start, len(state) - part.stop), (0, 0), (0, 0)))
