"""What a network predicts: p(token | state) as a lazy distribution, never an array (B, L, V).

Everything a loss or a sampler asks of a `Posterior` is computed in float32 chunk by chunk, with
memory O(chunk * V), except through `dense`, which is for tests and small vocabularies.

Log-probabilities, cross-entropies and squared errors make their gradient in the forward pass
(`flow/fused.py`); everything else is recomputed in the backward pass (`flow/chunks.py`).
"""

import dataclasses
import functools
import math
from typing import Self

import jax
import jax.numpy as jnp

from flm_jax.flow.chunks import over_chunks
from flm_jax.flow.combination import Combination
from flm_jax.flow.logits import LazyLogits
from flm_jax.flow.objectives import TokenCrossEntropy
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.terms import Probability, RawLogits, Tangent
from flm_jax.flow.vocabulary import first_largest, nucleus, softmax_parts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior(LazyLogits):
    """p(token | state) at every position: softmax of the head's capped logits."""

    def log_prob(self, tokens_BL: jax.Array, hint_BL: jax.Array | None = None) -> jax.Array:
        """log p of the given tokens, (B, L).

        ``hint_BL``: what the values will be multiplied by, if that is known not to be one factor
        for all; see `flow/fused.py`.
        """
        return -self.loss(TokenCrossEntropy(tokens_BL), hint_BL)

    def entropy(self) -> jax.Array:
        """Entropy in nats at every position, (B, L)."""

        def chunk(logits):
            log_p = jax.nn.log_softmax(logits)
            return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

        return self.each_chunk(chunk)

    def argmax(self) -> jax.Array:
        """The most probable token, int32 (B, L)."""
        # The cap keeps the order, so that it can be left out.
        return over_chunks(
            lambda f: first_largest(self.head.raw(f)), self.head.chunk, self.features_BLD
        )

    def most_likely(self) -> tuple[jax.Array, jax.Array]:
        """`argmax` and its probability, (B, L) each, in one pass over the vocabulary."""

        def chunk(features):
            raw = self.head.raw(features)
            _, _, total = softmax_parts(self.head.capped(raw), math.inf)  # relative to the largest
            return first_largest(raw), jnp.squeeze(1.0 / total, -1)

        return over_chunks(chunk, self.head.chunk, self.features_BLD)

    def sample(self, keys_B: jax.Array, temperature: float = 1.0, top_p: float = 1.0) -> jax.Array:
        """Tokens drawn from p**(1 / temperature) in its nucleus of mass ``top_p``, int32 (B, L).

        One key per sequence: what a sequence draws does not depend on the batch it is in.
        """
        batch, length = self.features_BLD.shape[:2]
        position_BL = jnp.broadcast_to(jnp.arange(length)[None, :], (batch, length))
        keys_BL = jax.vmap(sequence_keys)(keys_B, position_BL)

        def chunk(logits, key_data):
            logits = logits / temperature
            if top_p < 1.0:
                logits = nucleus(logits, top_p)
            keys = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(keys_B))
            # "high": the default noise ends near 16, which cuts the tails of large vocabularies.
            draw = functools.partial(jax.random.gumbel, shape=(self.head.vocab_size,), mode="high")
            gumbel = jax.vmap(jax.vmap(draw))(keys)
            return first_largest(logits + gumbel)

        return self.each_chunk(chunk, jax.random.key_data(keys_BL))

    def rows(self, which: slice) -> Self:
        """The same for some of the sequences."""
        tangent = None if self.tangent_BLD is None else self.tangent_BLD[which]
        features = self.features_BLD[which]
        return dataclasses.replace(self, features_BLD=features, tangent_BLD=tangent)

    def mean(self, *tables: jax.Array) -> jax.Array:
        """p @ [T1 T2 ...], (B, L, W) of tables (V, Wi)."""
        return self.probability().mean(*tables)

    def dense(self) -> jax.Array:
        """p as an array (B, L, V): for tests and small vocabularies."""
        return self.probability().dense()

    def probability(self, coefficient: jax.Array | float = 1.0) -> Combination:
        """coefficient * p."""
        return Combination((Probability(coefficient, self),))

    def tangent(self, coefficient: jax.Array | float = 1.0) -> Combination:
        """coefficient * dp, the derivative of p along ``tangent_BLD``."""
        if self.tangent_BLD is None:
            raise ValueError("this posterior carries no tangent of its features")
        return Combination((Tangent(coefficient, self),))

    def logits(self, coefficient: jax.Array | float = 1.0) -> Combination:
        """coefficient * (features @ kernel + bias): raw, no cap, no temperature."""
        return Combination((RawLogits(coefficient, self),))
