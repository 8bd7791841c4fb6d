"""Posterior refinement (arXiv 2606.24773): write everything, keep what is sure, redo the rest.

A round predicts all open tokens, and commits

* those whose probability reaches ``threshold`` (below 0: none, 0: all), and
* the ``top_k`` most probable ones; -1 for a uniform budget: the round's share
  ceil(open / rounds left), so that the last round has no more to write than the others.

Not in the published form, and off by default: a threshold of its own for every round, and commits
that are looked at again (``reopen``).

Equal probabilities are ranked by position. The network must be trained with given tokens. Unlike
the official code it stops, and counts no evaluations, when everything is committed.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow.randomness import uniforms
from flm_jax.samplers.rounds import RoundSampler

UNIFORM_BUDGET = -1


@dataclasses.dataclass(frozen=True)
class Refinement(RoundSampler):
    """The rounds of posterior refinement.

    Attributes:
      top_k: so many of the most probable open tokens are committed in every round; -1 is the
        uniform budget, 0 leaves it to the threshold.
      thresholds: one for every round, in place of ``threshold``.
      reopen: what was committed is opened again where an evaluation between two rounds, in which
        half of it is open, finds it less probable than this; in [0, 1), 0 is off. The rounds share
        what these evaluations leave of the steps.
      rounds: a knob (`sampling.SamplingKnobs`), as the next two. They share the evaluations; there
        are no more rounds than evaluations.
      threshold: a knob.
      confidence_noise: a knob.
    """

    top_k: int = UNIFORM_BUDGET
    thresholds: tuple[float, ...] = ()
    reopen: float = 0.0
    rounds: int = 4
    threshold: float = 0.9
    confidence_noise: float = 0.0

    uses: ClassVar[frozenset[str]] = RoundSampler.uses | {
        "rounds",
        "threshold",
        "confidence_noise",
    }

    def __post_init__(self):
        super().__post_init__()
        if self.top_k < UNIFORM_BUDGET:
            raise UserError(
                f"sampler option top_k={self.top_k} must be at least -1 (-1: a uniform budget, 0: "
                "by the threshold only)"
            )

        if len(self.thresholds) not in (0, self.rounds):
            raise UserError(
                f"sampler option thresholds={self.thresholds} has {len(self.thresholds)} values, "
                f"but there are rounds={self.rounds}; give one for every round"
            )
        if not all(-1.0 <= value <= 1.0 for value in self.thresholds):
            raise UserError(
                f"sampler option thresholds={self.thresholds} must have values from -1 (by the "
                "budget only) to 1"
            )
        if not 0.0 <= self.reopen < 1.0:
            raise UserError(
                f"sampler option reopen={self.reopen} must be a probability in [0, 1); 0 is off"
            )

    @property
    def doubt(self) -> float:
        return self.reopen

    def rounds_for(self, steps: int, length: int) -> int:
        return min(self.rounds, (steps + 1) // 2 if self.reopen else steps)

    def commit(
        self, which: jax.Array, rounds: int, open_BL: jax.Array, p_BL: jax.Array, keys_B: jax.Array
    ) -> jax.Array:
        score_BL = jnp.log(p_BL)
        if self.confidence_noise:
            u_BL = jnp.maximum(uniforms(keys_B, p_BL.shape[1]), jnp.finfo(jnp.float32).tiny)
            score_BL = score_BL - self.confidence_noise * jnp.log(-jnp.log(u_BL))
        chosen_BL = rank(open_BL, score_BL) < self.budget(open_BL, rounds - which)[:, None]
        if self.thresholds:
            threshold = jnp.asarray(self.thresholds, jnp.float32)[which]
            chosen_BL |= (threshold >= 0.0) & (p_BL >= threshold)
        elif self.threshold >= 0.0:
            chosen_BL |= p_BL >= self.threshold
        return open_BL & chosen_BL

    def budget(self, open_BL: jax.Array, rounds_left: jax.Array | int) -> jax.Array:
        """How many tokens a round commits at least, int32 (B,); this round is one of those left."""
        open_B = jnp.sum(open_BL, axis=1, dtype=jnp.int32)
        if self.top_k == UNIFORM_BUDGET:
            return -(-open_B // rounds_left)
        return jnp.minimum(open_B, self.top_k)


def rank(open_BL: jax.Array, score_BL: jax.Array) -> jax.Array:
    """The place of every open position by descending score, int (B, L); then the others.

    Of equal scores the lower position comes first.
    """
    order_BL = jnp.argsort(jnp.where(open_BL, -score_BL, jnp.inf), axis=1, stable=True)
    return jnp.argsort(order_BL, axis=1)
