"""The vocabulary head as a lazy distribution: logits exist only one chunk of positions at a time.

A `Posterior` holds the features of the backbone and the head; a `Combination` is an affine
mixture of such distributions, of their tangents, of raw logits and of one-hot tokens. Everything
a loss or a sampler asks of them (log-probabilities, means p @ E, cross-entropies, arg max ...) is
computed in float32 chunk by chunk with memory O(chunk * V); no array of shape (B, L, V) exists,
except through `dense`, which is for tests and small vocabularies.

Log-probabilities, cross-entropies and squared errors make their gradient in the forward pass
(`flow/fused.py`); everything else is recomputed in the backward pass (`flow/chunks.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from flm_jax.flow import fused
from flm_jax.flow.chunks import over_chunks
from flm_jax.flow.head import Head, on_last_axis
from flm_jax.flow.objectives import (
    CrossEntropy,
    Objective,
    SquaredError,
    TokenCrossEntropy,
    softmax_parts,
)

PROBABILITY, TANGENT, LOGITS, TOKENS = "probability", "tangent", "logits", "tokens"
DENSE = "dense"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features_BLD", "head", "tangent_BLD"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Posterior:
    """p(token | state) at every position: softmax of the head's capped logits.

    ``tangent_BLD`` is the tangent of the features where a derivative of p is needed (`tangent`).
    """

    features_BLD: jax.Array
    head: Head
    tangent_BLD: jax.Array | None = None

    def log_prob(self, tokens_BL: jax.Array, hint_BL: jax.Array | None = None) -> jax.Array:
        """log p of the given tokens, (B, L).

        ``hint_BL``: what the values will be multiplied by, if that is known not to be one factor
        for all; see `flow/fused.py`.
        """
        return -self.loss(TokenCrossEntropy(tokens_BL), hint_BL)

    def loss(self, objective: Objective, hint_BL: jax.Array | None) -> jax.Array:
        """Any of `flow/objectives.py`, (B, L)."""
        features = self.features_BLD
        if not self.head.fused:
            return fused.by_autodiff(objective, features, self.head)
        wide = jnp.promote_types(features.dtype, jnp.float32)
        hint_BL = jnp.ones((), wide) if hint_BL is None else hint_BL.astype(wide)
        hint_BL = jax.lax.stop_gradient(jnp.broadcast_to(hint_BL, features.shape[:2]))
        return fused.loss(objective, features, self.head, hint_BL)

    def entropy(self) -> jax.Array:
        """Entropy in nats at every position, (B, L)."""

        def chunk(features):
            log_p = jax.nn.log_softmax(self.head.capped(self.head.raw(features)))
            return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

        return over_chunks(chunk, self.head.chunk, self.features_BLD)

    def mean(self, *tables: jax.Array) -> jax.Array:
        """p @ [T1 T2 ...], (B, L, W) of tables (V, Wi)."""
        return self.probability().mean(*tables)

    def argmax(self) -> jax.Array:
        """The most probable token, int32 (B, L)."""
        return over_chunks(
            lambda f: first_largest(self.head.raw(f)),
            self.head.chunk,
            self.features_BLD,
        )

    def sample(self, keys_B: jax.Array, temperature: float = 1.0, top_p: float = 1.0) -> jax.Array:
        """Tokens drawn from p**(1 / temperature) in its nucleus of mass ``top_p``, int32 (B, L).

        One key per sequence: what a sequence draws does not depend on the batch it is in.
        """
        batch, length = self.features_BLD.shape[:2]
        position_BL = jnp.broadcast_to(jnp.arange(length)[None, :], (batch, length))
        keys_BL = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys_B, position_BL)

        def chunk(features, key_data):
            logits = self.head.capped(self.head.raw(features)) / temperature
            if top_p < 1.0:
                logits = nucleus(logits, top_p)
            keys = jax.random.wrap_key_data(key_data, impl=jax.random.key_impl(keys_B))
            # "high": the default noise ends near 16, which cuts the tails of large vocabularies.
            draw = functools.partial(jax.random.gumbel, shape=(self.head.vocab_size,), mode="high")
            gumbel = jax.vmap(jax.vmap(draw))(keys)
            return first_largest(logits + gumbel)

        return over_chunks(chunk, self.head.chunk, self.features_BLD, jax.random.key_data(keys_BL))

    def rows(self, which: slice) -> "Posterior":
        """The same for some of the sequences."""
        tangent = None if self.tangent_BLD is None else self.tangent_BLD[which]
        return Posterior(self.features_BLD[which], self.head, tangent)

    def dense(self) -> jax.Array:
        """p as an array (B, L, V): for tests and small vocabularies."""
        return self.probability().dense()

    def probability(self, coefficient: jax.Array | float = 1.0) -> "Combination":
        """coefficient * p."""
        return Combination((Term(PROBABILITY, coefficient, self),))

    def tangent(self, coefficient: jax.Array | float = 1.0) -> "Combination":
        """coefficient * dp, the derivative of p along ``tangent_BLD``."""
        if self.tangent_BLD is None:
            raise ValueError("this posterior carries no tangent of its features")
        return Combination((Term(TANGENT, coefficient, self),))

    def logits(self, coefficient: jax.Array | float = 1.0) -> "Combination":
        """coefficient * (features @ kernel + bias): raw, no cap, no temperature."""
        return Combination((Term(LOGITS, coefficient, self),))


def one_hot(
    tokens_BL: jax.Array, head: Head, coefficient: jax.Array | float = 1.0
) -> "Combination":
    """coefficient * e_token; ``head`` says the size of the vocabulary and of a chunk."""
    size_only = jax.lax.stop_gradient(head)  # else it would count as a target with gradients
    return Combination((Term(TOKENS, coefficient, Posterior(tokens_BL, size_only)),))


def array(dense_BLV: jax.Array, head: Head, coefficient: jax.Array | float = 1.0) -> "Combination":
    """coefficient * an array (B, L, V) that is already there, as a state in one-hot space is."""
    size_only = jax.lax.stop_gradient(head)
    return Combination((Term(DENSE, coefficient, Posterior(dense_BLV, size_only)),))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["coefficient", "posterior"],
    meta_fields=["kind"],
)
@dataclasses.dataclass(frozen=True)
class Term:
    """coefficient (scalar, (B,) or (B, L)) times one kind of V-vector per position."""

    kind: str
    coefficient: jax.Array | float
    posterior: Posterior  # kinds "tokens", "dense": its features are tokens (B, L), the array

    def joins(self, other: "Term") -> bool:
        """Whether both are multiples of the same vector; by identity, as arrays are traced."""
        return self.kind == other.kind and self.posterior is other.posterior

    def joined(self, other: "Term") -> "Term":
        """The sum of two terms that join."""
        coefficient_BL = self.tokenwise()[0] + other.tokenwise()[0]
        return dataclasses.replace(self, coefficient=coefficient_BL)

    def tokenwise(self) -> tuple:
        """The arrays of this term that have a (B, L) grid, coefficient included."""
        features = self.posterior.features_BLD
        coefficient_BL = jnp.asarray(self.coefficient)
        coefficient_BL = coefficient_BL.astype(jnp.promote_types(coefficient_BL.dtype, jnp.float32))
        if coefficient_BL.ndim == 1:
            coefficient_BL = coefficient_BL[:, None]
        elif coefficient_BL.ndim == 0:
            coefficient_BL = coefficient_BL[None, None]
        return (
            jnp.broadcast_to(coefficient_BL, features.shape[:2]),
            features,
            self.posterior.tangent_BLD,
        )

    def mean(self, *tables: jax.Array) -> jax.Array:
        """The term @ [T1 T2 ...], (B, L, W), with no more passes over V than it needs."""
        head, (coefficient_BL, features, tangent) = self.posterior.head, self.tokenwise()
        if self.kind == TOKENS:
            return coefficient_BL[..., None] * side_by_side(t[features] for t in tables)
        wide = jnp.promote_types(features.dtype, jnp.float32)
        tables = tuple(table.astype(wide) for table in tables)
        if self.kind == LOGITS:  # linear: the product of both tables is no larger than one
            both_DW = products(head.kernel_DV.astype(wide), tables)
            bias_W = products(head.bias_V.astype(wide), tables)
            mean = jnp.matmul(features.astype(wide), both_DW) + on_last_axis(bias_W, 3)
            return coefficient_BL[..., None] * mean

        def chunk(coefficient, features, tangent):
            if self.kind == DENSE:
                return coefficient[..., None] * products(features.astype(wide), tables)
            raw = head.raw(features)
            _, weight, total = softmax_parts(head.capped(raw), head.bound)
            if self.kind == TANGENT:
                slope = head.logits_tangent(raw, tangent)
                weight = weight * (slope - jnp.sum(weight * slope, -1, keepdims=True) / total)
            # Normalised after the product, where a token has W entries instead of V.
            return coefficient[..., None] / total * products(weight, tables)

        return over_chunks(chunk, head.chunk, coefficient_BL, features, tangent)

    def chunk(self, coefficient, features, tangent) -> jax.Array:
        """The dense term on one chunk, (b, l, V)."""
        head = self.posterior.head
        if self.kind == TOKENS:
            vocabulary = jnp.arange(head.vocab_size, dtype=features.dtype)[None, None, :]
            return jnp.where(vocabulary == features[..., None], coefficient[..., None], 0.0)
        if self.kind == DENSE:
            return coefficient[..., None] * features
        raw = head.raw(features)
        if self.kind == LOGITS:
            return coefficient[..., None] * raw
        p = jax.nn.softmax(head.capped(raw))
        if self.kind == TANGENT:
            slope = head.logits_tangent(raw, tangent)
            p = p * (slope - jnp.sum(p * slope, axis=-1, keepdims=True))
        return coefficient[..., None] * p


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["terms"], meta_fields=["projection"]
)
@dataclasses.dataclass(frozen=True)
class Combination:
    """An affine mixture of terms, optionally projected onto the simplex; lazy like its parts.

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
        return total(term.mean(*tables) for term in self.terms)

    def dense(self) -> jax.Array:
        """The combination as an array (B, L, V): for tests and small vocabularies."""
        return self._map(lambda c: c)

    def argmax(self) -> jax.Array:
        """Index of the largest entry, int32 (B, L)."""
        return self._map(first_largest)

    def cross_entropy_to(self, posterior: Posterior, hint_BL: jax.Array | None = None) -> jax.Array:
        """-sum_V self * log p, (B, L); gradients flow into both. ``hint_BL`` as in `log_prob`."""
        return posterior.loss(CrossEntropy(self), hint_BL)

    def squared_error_to(
        self, prediction: "Combination", hint_BL: jax.Array | None = None
    ) -> jax.Array:
        """sum_V (self - prediction)**2, (B, L); gradients flow into both. ``hint_BL`` as above.

        The prediction is a single multiple of probabilities or of raw logits; what would be added
        to it is to be subtracted from ``self``. Reverse mode only, see `flow/fused.py`.
        """
        term, *others = prediction.terms
        if others or prediction.projection or term.kind not in (PROBABILITY, LOGITS):
            raise ValueError("the prediction must be one multiple of probabilities or of logits")
        objective = SquaredError(self, term.tokenwise()[0], of_logits=term.kind == LOGITS)
        return term.posterior.loss(objective, hint_BL)

    def entmax(self, alpha: float = 2.0) -> "Combination":
        """Projected onto the simplex by alpha-entmax, 1 < alpha <= 2 (2: Euclidean projection)."""
        if not 1.0 < alpha <= 2.0:
            raise ValueError(f"entmax needs 1 < alpha <= 2, not {alpha}")
        return dataclasses.replace(self, projection=alpha)

    def tokenwise(self) -> tuple:
        return tuple(term.tokenwise() for term in self.terms)

    def chunk(self, arrays: tuple) -> jax.Array:
        """The dense combination (b, l, V) of a chunk of `tokenwise`."""
        terms = zip(self.terms, arrays, strict=True)
        dense = total(term.chunk(*tokenwise) for term, tokenwise in terms)
        return dense if self.projection is None else entmax(dense, self.projection)

    def _map(self, f: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """f(dense chunk of self) over chunks."""
        size = self.terms[0].posterior.head.chunk
        return over_chunks(lambda arrays: f(self.chunk(arrays)), size, self.tokenwise())


def first_largest(values: jax.Array) -> jax.Array:
    """Index of the largest entry (..., V), of the first if several are equal; int32, V < 2**24.

    Two maxima of float32, because XLA's arg max carries pairs through one scalar loop: on a CPU it
    takes four times as long. A row with NaN gives V - 1.
    """
    size = values.shape[-1]
    largest = jnp.max(values, axis=-1, keepdims=True)
    from_the_end = on_last_axis(jnp.arange(size - 1, -1, -1, dtype=jnp.float32), values.ndim)
    last = jnp.max(jnp.where(values == largest, from_the_end, 0.0), axis=-1)
    return size - 1 - last.astype(jnp.int32)


def total(arrays: Iterable[jax.Array]) -> jax.Array:
    """The sum of at least one array."""
    return functools.reduce(jnp.add, arrays)


def side_by_side(arrays: Iterable[jax.Array]) -> jax.Array:
    return jnp.concatenate(list(arrays), axis=-1)


def products(x: jax.Array, tables: Iterable[jax.Array]) -> jax.Array:
    """x (..., V) @ [T1 T2 ...]: the tables may be large, so their results are joined instead."""
    return side_by_side(jnp.matmul(x, table) for table in tables)


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """-inf outside the smallest set of entries (..., V) whose probability reaches ``top_p``."""
    descending = jnp.sort(logits, axis=-1, descending=True)
    mass = jnp.cumsum(jax.nn.softmax(descending), axis=-1)
    kept = jnp.sum(mass < top_p, axis=-1, keepdims=True) + 1
    kept = jnp.minimum(kept, logits.shape[-1])
    threshold = jnp.take_along_axis(descending, kept - 1, axis=-1)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def entmax(scores: jax.Array, alpha: float) -> jax.Array:
    """alpha-entmax over the last axis: argmax_p <p, scores> + Tsallis entropy, 1 < alpha <= 2.

    p = max((alpha - 1) * scores - threshold, 0) ** (1 / (alpha - 1)), the threshold found by
    bisection (Peters et al. 2019, eq. 9) and p normalised at the end. Powers other than those of
    alpha 1.5 and 2 take more than ten times as long.
    """
    iterations = jnp.finfo(scores.dtype).nmant + 7  # then both bounds are the same number
    # Below the largest score, so that large scores do not cost the threshold its digits.
    scaled = (alpha - 1.0) * (scores - jnp.max(scores, axis=-1, keepdims=True))
    top = jnp.zeros_like(scaled[..., :1])
    low, high = top - 1.0, top - scores.shape[-1] ** (1.0 - alpha)
    power = 1.0 / (alpha - 1.0)
    power = int(power) if power.is_integer() else power  # alpha 1.5 and 2: an exact product

    def weights(threshold):
        return jnp.maximum(scaled - threshold, 0.0) ** power

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        too_low = jnp.sum(weights(middle), axis=-1, keepdims=True) >= 1.0
        return jnp.where(too_low, middle, low), jnp.where(too_low, high, middle)

    low, high = jax.lax.fori_loop(0, iterations, halve, (low, high))
    p = weights(0.5 * (low + high))
    return p / jnp.sum(p, axis=-1, keepdims=True)
