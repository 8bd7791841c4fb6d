"""Affine mixtures of distributions and the like over the vocabulary, lazy like their terms.

Targets of losses and updates of states are such mixtures. What is asked of one is computed in
float32 chunk by chunk, with memory O(chunk * V); no array (B, L, V) exists except through `dense`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.flow.chunks import over_chunks
from flm_jax.flow.head import Head
from flm_jax.flow.logits import LazyLogits
from flm_jax.flow.objectives import Arrays, CrossEntropy, SquaredError
from flm_jax.flow.terms import DenseArray, OneHotTokens, Probability, RawLogits, Term
from flm_jax.flow.vocabulary import entmax, first_largest, products


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["terms"], meta_fields=["projection"]
)
@dataclasses.dataclass(frozen=True)
class Combination:
    """A sum of terms, optionally projected onto the simplex.

    Add two with ``+``; multiples of the same vector become one term, made once in every chunk. All
    terms share the vocabulary; the chunk size is that of the first.
    """

    terms: tuple[Term, ...]
    projection: float | None = None  # alpha of the entmax projection

    def __add__(self, other: "Combination") -> "Combination":
        if self.projection is not None or other.projection is not None:
            raise ValueError("a projected combination cannot be added to another one")
        terms = list(self.terms)
        for term in other.terms:
            same = [i for i, mine in enumerate(terms) if mine.joins(term)]
            if same:
                terms[same[0]] = terms[same[0]].joined(term)
            else:
                terms.append(term)
        return Combination(tuple(terms))

    def mean(self, *tables: jax.Array) -> jax.Array:
        """self @ [T1 T2 ...], (B, L, W) of tables (V, Wi)."""
        if self.projection is not None:
            return self._map(lambda c: products(c, [table.astype(c.dtype) for table in tables]))
        return functools.reduce(jnp.add, (term.mean(*tables) for term in self.terms))

    def dense(self) -> jax.Array:
        """The combination as an array (B, L, V): for tests and small vocabularies."""
        return self._map(lambda c: c)

    def argmax(self) -> jax.Array:
        """Index of the largest entry, int32 (B, L)."""
        return self._map(first_largest)

    def cross_entropy_to(
        self, posterior: LazyLogits, hint_BL: jax.Array | None = None
    ) -> jax.Array:
        """-sum_V self * log p, (B, L); gradients flow into both.

        ``hint_BL`` as in `Posterior.log_prob`.
        """
        return posterior.loss(CrossEntropy(self), hint_BL)

    def squared_error_to(
        self, prediction: "Combination", hint_BL: jax.Array | None = None
    ) -> jax.Array:
        """sum_V (self - prediction)**2, (B, L); gradients flow into both. ``hint_BL`` as above.

        The prediction is a single multiple of probabilities or of raw logits; what would be added
        to it is to be subtracted from ``self``. Reverse mode only, see `flow/fused.py`.
        """
        term, *others = prediction.terms
        if others or prediction.projection or not isinstance(term, Probability | RawLogits):
            raise ValueError("the prediction must be one multiple of probabilities or of logits")
        coefficient_BL, _ = term.tokenwise()
        objective = SquaredError(self, coefficient_BL, of_logits=isinstance(term, RawLogits))
        return term.logits.loss(objective, hint_BL)

    def entmax(self, alpha: float = 2.0) -> "Combination":
        """Projected onto the simplex by alpha-entmax, 1 < alpha <= 2 (2: Euclidean projection)."""
        if not 1.0 < alpha <= 2.0:
            raise ValueError(f"entmax needs 1 < alpha <= 2, not {alpha}")
        return dataclasses.replace(self, projection=alpha)

    def tokenwise(self) -> Arrays:
        """The arrays of all terms that have a (B, L) grid."""
        return tuple(term.tokenwise() for term in self.terms)

    def chunk(self, arrays: Arrays) -> jax.Array:
        """The dense combination (b, l, V) of a chunk of `tokenwise`."""
        terms = zip(self.terms, arrays, strict=True)
        dense = functools.reduce(jnp.add, (term.chunk(own) for term, own in terms))
        return dense if self.projection is None else entmax(dense, self.projection)

    def _map(self, f: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """f(dense chunk of self) over chunks."""
        size = self.terms[0].chunk_size
        return over_chunks(lambda arrays: f(self.chunk(arrays)), size, self.tokenwise())


def one_hot(tokens_BL: jax.Array, head: Head, coefficient: jax.Array | float = 1.0) -> Combination:
    """coefficient * e_token; ``head`` says the size of the vocabulary and of a chunk."""
    return Combination((OneHotTokens(coefficient, tokens_BL, head.vocab_size, head.chunk),))


def array(array_BLV: jax.Array, head: Head, coefficient: jax.Array | float = 1.0) -> Combination:
    """coefficient * an array (B, L, V) that is already there; ``head`` says the size of a chunk."""
    return Combination((DenseArray(coefficient, array_BLV, head.chunk),))
