"""How far a student's posterior is from a teacher's: a KL divergence over the vocabulary.

    reverse   KL(student || teacher) = sum_V s (log s - log a)
    forward   KL(teacher || student) = sum_V a (log a - log s)

An objective of `flow/objectives.py`: one chunk holds the logits of both networks. Differences of
log-probabilities are taken of logits less their logsumexp, in float32 at least: near the end of a
round the divergence is a small difference of large numbers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from flm_jax.flow.head import Head
from flm_jax.flow.objectives import Arrays
from flm_jax.flow.posterior import Posterior

REVERSE, FORWARD = "reverse", "forward"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["target"], meta_fields=["direction"]
)
@dataclasses.dataclass(frozen=True)
class Divergence:
    """The divergence from the target, the posterior of a network without gradient."""

    target: Posterior
    direction: str = REVERSE

    def tokenwise(self) -> Arrays:
        return self.target.features_BLD

    def value_and_slope(
        self, arrays: Arrays, raw: jax.Array, head: Head
    ) -> tuple[jax.Array, jax.Array]:
        theirs = self.target.head
        log_a = jax.nn.log_softmax(theirs.capped(theirs.raw(arrays)))
        log_s = jax.nn.log_softmax(head.capped(raw))
        if self.direction == FORWARD:
            a = jnp.exp(log_a)
            value = jnp.sum(a * (log_a - log_s), axis=-1)
            return value, (jnp.exp(log_s) - a) * head.slope(raw)
        s, difference = jnp.exp(log_s), log_s - log_a
        value = jnp.sum(s * difference, axis=-1, keepdims=True)
        return value[..., 0], s * (difference - value) * head.slope(raw)
