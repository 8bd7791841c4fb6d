"""Losses of the vocabulary head whose forward pass also makes their gradient.

The logits of a chunk of tokens cost a matrix product, and all that the gradient needs is at hand
while they exist: d loss / d features of every token, and the sum over tokens of d loss / d (kernel,
bias). So no chunk is computed twice: three products of the head's size instead of four, every
exponential once, and no stored logits.

**The catch**: the sum over tokens needs the cotangent g (B, L) of the losses, known only in the
backward pass. The forward pass sums with a guess, ``hint_BL``, and the backward pass looks: where g
is one number times the hint (to a few units in the last place), the sum times that number is the
answer; otherwise the chunks are computed again with g in place of the hint. So the gradient is
right for every g and cheap for the expected one. A mean over tokens has the hint 1; weights of
tokens belong into the hint.

Gradients into the objective, if anything in it has any (the networks of its target are frozen
almost always), go the general way: all of it differentiated chunk by chunk. What has gradients is
known while tracing. Objectives are those of `flow/objectives.py`.

First derivatives in reverse mode only: `jax.jvp` refuses, and a second derivative would take the
factor between cotangent and hint for a constant. ``Head.fused=False`` has them all.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from flm_jax.flow.chunks import Chunks, over_chunks
from flm_jax.flow.head import Head
from flm_jax.flow.objectives import Objective

ULPS = 16.0  # how far from a multiple of the hint a cotangent counts as one


@jax.custom_vjp
def loss(
    objective: Objective, features_BLD: jax.Array, head: Head, hint_BL: jax.Array
) -> jax.Array:
    """The loss of every token's logits, float32 or wider (B, L).

    ``hint_BL`` is what the losses are expected to be multiplied by, up to one factor. It changes no
    value and no gradient, and has none itself.
    """
    del hint_BL
    return by_autodiff(objective, features_BLD, head)


def by_autodiff(objective: Objective, features_BLD: jax.Array, head: Head) -> jax.Array:
    """The same with ordinary gradients, every chunk computed again in the backward pass."""
    return over_chunks(
        lambda features, arrays: objective.value_and_slope(arrays, head.raw(features), head)[0],
        head.chunk,
        features_BLD,
        objective.tokenwise(),
    )


def sweep(
    objective: Objective,
    features_BLD: jax.Array,
    head: Head,
    weight_BL: jax.Array,
    *,
    of_features: bool = True,
    of_head: bool = True,
) -> tuple:
    """(values (B, L), d value / d features (B, L, D), d sum(weight * values) / d (kernel, bias)).

    The last two are None if they are not wanted. Products read the head's type and accumulate in
    float32 or wider.
    """

    def chunk(total, xs):
        features, weight, arrays = xs
        value, slope = objective.value_and_slope(arrays, head.raw(features), head)
        d_features = None
        if of_features:
            d_features = head.transposed_product(slope).astype(features.dtype)
        if of_head:
            d_kernel, d_bias = total
            weight = weight.astype(slope.dtype)
            total = (
                d_kernel + head.outer_product(weight[..., None] * features, slope),
                d_bias + jnp.einsum("bl,blv->v", weight, slope),
            )
        return total, (value, d_features)

    chunks = Chunks.of(features_BLD, head.chunk)
    xs = chunks.split((features_BLD, weight_BL, objective.tokenwise()))
    wide = jax.eval_shape(head.raw, features_BLD).dtype
    total = None
    if of_head:
        total = tuple(jnp.zeros(x.shape, wide) for x in (head.kernel_DV, head.bias_V))
    total, per_token = jax.lax.scan(chunk, total, xs)
    return *chunks.join(per_token), total


def _forward(objective, features_BLD, head, hint_BL):
    def perturbed(tree):
        return any(leaf.perturbed for leaf in jax.tree.leaves(tree))

    def values(tree):
        return jax.tree.map(lambda leaf: leaf.value, tree)

    general, of_head = perturbed(objective), perturbed(head)
    objective, features_BLD, head, hint_BL = map(values, (objective, features_BLD, head, hint_BL))
    if general:
        value_BL, pull = jax.vjp(by_autodiff, objective, features_BLD, head)
        return value_BL, pull
    value_BL, d_features_BLD, d_head = sweep(
        objective, features_BLD, head, hint_BL, of_head=of_head
    )
    again = (objective, features_BLD, head, hint_BL) if of_head else None
    return value_BL, (d_features_BLD, d_head, again)


def _backward(residuals, g_BL):
    if isinstance(g_BL, SymbolicZero):
        return None, None, None, None
    if not isinstance(residuals, tuple):
        return *residuals(g_BL), None
    d_features_BLD, d_head, again = residuals
    d_features_BLD = g_BL.astype(d_features_BLD.dtype)[..., None] * d_features_BLD
    if d_head is None:
        return None, d_features_BLD, None, None
    objective, features_BLD, head, hint_BL = again
    factor, as_expected = ratio(g_BL, hint_BL)
    d_kernel, d_bias = jax.lax.cond(
        as_expected,
        lambda: tuple(factor.astype(x.dtype) * x for x in d_head),
        lambda: sweep(objective, features_BLD, head, g_BL, of_features=False)[2],
    )
    d_head = head.replace(d_kernel.astype(head.kernel_DV.dtype), d_bias.astype(head.bias_V.dtype))
    return None, d_features_BLD, d_head, None


def ratio(g_BL: jax.Array, hint_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(c, whether g = c * hint up to rounding). A cotangent of zeros is 0 times any hint.

    c comes from the largest entries, so that it is as exact as they are; a hint with negative
    entries is only matched by luck, one with an entry that is not finite never.
    """
    hint_BL = hint_BL.astype(g_BL.dtype)
    high, low, top = jnp.max(g_BL), jnp.min(g_BL), jnp.max(hint_BL)
    factor = jnp.where(high >= -low, high, low) / jnp.where(top > 0, top, 1.0)
    tolerance = ULPS * jnp.finfo(g_BL.dtype).eps
    near = jnp.abs(g_BL - factor * hint_BL) <= tolerance * jnp.abs(g_BL)
    return factor, jnp.all(near)


loss.defvjp(_forward, _backward, symbolic_zeros=True)
