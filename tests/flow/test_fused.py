"""Losses that make their gradient in the forward pass: right for every cotangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flow import fused
from flm_jax.flow.combination import one_hot
from flm_jax.flow.head import Head
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.vocabulary import entmax

D, V = 3, 11
ONES, MASK, WEIGHTS = "ones", "mask", "weights"
SCALES = np.array([0.7, -1.3, 2.0])  # of predictions under a squared error


def draw(seed, *shape, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def head_of(kernel, bias, cap=5.0, chunk=4, **options):
    return Head(kernel, bias, cap=cap, chunk=chunk, **options)


def target_of(kind, tokens, others, head):
    """Hard tokens, or a combination of posteriors without gradients."""
    if kind == "tokens":
        return None
    other = Posterior(others[0], head_of(*others[2:], cap=0.0), others[1])
    if kind != "projected":
        mixed = other.probability(jnp.arange(1.0, len(tokens) + 1)) + other.logits(0.1)
        return mixed + one_hot(tokens, head, 0.5)
    return (other.probability() + other.tangent(0.3)).entmax(2.0)


def dense_loss(kind, features, kernel, bias, others, tokens, cap):
    raw = features @ kernel + bias
    log_p = jax.nn.log_softmax(cap * jnp.tanh(raw / cap) if cap else raw)
    coefficient = SCALES[: len(tokens), None, None]
    c = jax.nn.one_hot(tokens, kernel.shape[1], dtype=log_p.dtype)
    if kind != "tokens":
        logits, slope = others[0] @ others[2] + others[3], others[1] @ others[2]
        p = jax.nn.softmax(logits)
        moved = p * (slope - jnp.sum(p * slope, -1, keepdims=True))
        if kind != "projected":
            c = jnp.arange(1.0, len(tokens) + 1)[:, None, None] * p + 0.1 * logits + 0.5 * c
        else:
            c = entmax(p + 0.3 * moved, 2.0)
    if kind == "squared":
        return jnp.sum((c - coefficient * jnp.exp(log_p)) ** 2, -1)
    if kind == "squared logits":
        return jnp.sum((c - coefficient * raw) ** 2, -1)
    return -jnp.sum(c * log_p, -1)


def both(kind, cotangent, hint, shape=(2, 5), cap=5.0, scale=1.0, chunk=4, of_target=False):
    """(values, gradients) of the fused and of the dense form, in float64."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        features, kernel, bias = scale * draw(0, *shape, D), draw(1, D, V), draw(2, V)
        others = (draw(3, *shape, D), draw(4, *shape, D), draw(5, D, V), draw(6, V))
        tokens = jax.random.randint(jax.random.key(7), shape, 0, V)
        weight = {
            ONES: jnp.full(shape, -0.3),
            MASK: jnp.where(draw(8, *shape) > 0, 0.2, 0.0),
            WEIGHTS: draw(9, *shape),
            None: None,
        }
        if isinstance(hint, str):
            weight["hint"] = weight[hint] / 7
        given = weight.get("hint")

        def lazy(features, kernel, bias, others):
            if not of_target:
                others = jax.lax.stop_gradient(others)
            head = head_of(kernel, bias, cap, chunk)
            p, target = Posterior(features, head), target_of(kind, tokens, others, head)
            if target is None:
                return -p.log_prob(tokens, given)
            if kind == "squared":
                return target.squared_error_to(p.probability(SCALES[: shape[0]]), given)
            if kind == "squared logits":
                return target.squared_error_to(p.logits(SCALES[: shape[0]]), given)
            return target.cross_entropy_to(p, given)

        def dense(features, kernel, bias, others):
            if not of_target:
                others = jax.lax.stop_gradient(others)
            return dense_loss(kind, features, kernel, bias, others, tokens, cap)

        found = []
        for f in (lazy, dense):

            def run(*arguments, f=f):
                value, pull = jax.vjp(f, *arguments)
                return value, pull(weight[cotangent])

            found.append(jax.jit(run)(features, kernel, bias, others))
        return found


def assert_equal(found, rtol=1e-10):
    (value, gradient), (wanted, wanted_gradient) = found
    np.testing.assert_allclose(value, wanted, rtol=rtol)
    for a, b in zip(*map(jax.tree.leaves, (gradient, wanted_gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * (1 + np.abs(b).max()))


@pytest.mark.parametrize(
    "kind, cotangent, hint",
    [
        ("tokens", ONES, None),
        ("tokens", MASK, MASK),
        ("tokens", WEIGHTS, None),  # the hint is wrong: computed again
        ("mixture", WEIGHTS, MASK),
        ("mixture", MASK, MASK),
        ("projected", ONES, None),
        ("squared", MASK, MASK),
        ("squared", WEIGHTS, MASK),
        ("squared logits", ONES, None),
        ("squared logits", WEIGHTS, None),
    ],
)
def test_values_and_gradients_are_the_dense_ones(kind, cotangent, hint):
    assert_equal(both(kind, cotangent, hint))


@pytest.mark.parametrize("kind", ["mixture", "squared", "squared logits"])
def test_gradients_into_the_target_where_it_has_any(kind):
    found = both(kind, WEIGHTS, None, of_target=True)
    assert_equal(found)
    d_features, _, d_kernel, d_bias = found[0][1][-1]  # of the target, whose tangent is not used
    assert all(np.abs(x).max() > 1e-3 for x in (d_features, d_kernel, d_bias))


@pytest.mark.parametrize("shape, chunk", [((1, 1), 1), ((3, 4), 1), ((3, 4), 1000)])
def test_any_number_of_tokens_and_any_chunk(shape, chunk):
    assert_equal(both("tokens", MASK, MASK, shape, chunk=chunk))


def test_extreme_logits_without_a_cap():
    """Logits of some 1e4: losses are their differences, and most softmaxes are 0 or 1."""
    found = both("tokens", ONES, None, cap=0.0, scale=1e4)
    assert np.abs(found[0][0]).max() > 1e4
    assert_equal(found)


def gradient_program(weight_BL, hint_BL=None, stop=True, squared=False):
    """The jaxpr of the gradients in features and head of a weighted mean of losses."""
    shape, dtype = weight_BL.shape, jnp.float32
    head = head_of(draw(5, D, V, dtype=dtype), draw(6, V, dtype=dtype))
    other = Posterior(draw(3, *shape, D, dtype=dtype), head)

    def loss(features, head, other):
        other = jax.lax.stop_gradient(other) if stop else other
        p = Posterior(features, head)
        clean = one_hot(jnp.zeros(shape, jnp.int32), p.head, 0.1)
        target = clean + other.probability(0.9)
        if squared:
            return jnp.sum(weight_BL * target.squared_error_to(p.probability(), hint_BL))
        return jnp.sum(weight_BL * target.cross_entropy_to(p, hint_BL))

    arguments = other.features_BLD, other.head, other
    return jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*arguments).jaxpr


def products(jaxpr, inside_cond=False) -> tuple[int, int]:
    """Matrix products with the vocabulary in them: outside of conditionals, and inside."""
    out = inn = 0
    for equation in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general" and any(
            V in shape and D in shape for shape in shapes
        ):
            out, inn = (out, inn + 1) if inside_cond else (out + 1, inn)
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                a, b = products(inner, inside_cond or equation.primitive.name == "cond")
                out, inn = out + a, inn + b
    return out, inn


@pytest.mark.parametrize("squared", [False, True])
def test_no_second_pass_over_the_logits(squared):
    """Four products: target, logits, and two for the gradient; again only where the hint fails."""
    program = gradient_program(jnp.ones((2, 3)), squared=squared)
    assert products(program) == (4, 3)
    assert products(gradient_program(jnp.ones((2, 3)), stop=False))[1] == 0


def test_a_squared_error_is_to_one_multiple_of_one_prediction():
    head = head_of(draw(1, D, V, dtype=jnp.float32), jnp.zeros((V,)))
    p = Posterior(draw(0, 2, 3, D, dtype=jnp.float32), head)
    target = one_hot(jnp.zeros((2, 3), jnp.int32), head)
    for prediction in (p.probability() + p.logits(), target, p.probability().entmax()):
        with pytest.raises(ValueError, match="one multiple of probabilities or of logits"):
            target.squared_error_to(prediction)


def head_temporaries(vocab, tokens, width=16, chunk_bytes=2**20):
    """XLA's account of what a cross-entropy and its gradients need beside arguments and results."""

    def loss(features, kernel, bias, tokens_BL):
        head = Head(kernel, bias, chunk=chunk_bytes // (4 * vocab))
        return -jnp.mean(Posterior(features, head).log_prob(tokens_BL))

    def like(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    shapes = (like(1, tokens, width), like(width, vocab), like(vocab),
              like(1, tokens, dtype=jnp.int32))  # fmt: skip
    program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_of_the_head_does_not_grow_with_tokens_or_vocabulary():
    """At a fixed budget of logits, apart from arrays of the features' and the kernel's size."""
    base = head_temporaries(4_000, 1_024)
    of_tokens = head_temporaries(4_000, 16_384) - base
    assert of_tokens < 2 * 4 * 16 * (16_384 - 1_024)
    of_vocabulary = head_temporaries(32_000, 1_024) - base
    assert of_vocabulary < 2 * 4 * 17 * (32_000 - 4_000)
    assert base < 5 * 2**20  # a few chunks; the logits of all tokens would be 16 MiB


def test_what_counts_as_a_multiple_of_the_hint():
    hint = jnp.asarray([[1.0, 0.0, 0.5]])
    for factor in (0.3, -1e-7, 0.0):
        c, same = fused.ratio(jnp.float32(factor) * hint, hint)
        assert same and c == jnp.float32(factor)
    for other in ([[1.0, 0.0, 0.501]], [[1.0, 1e-9, 0.5]], [[1.0, 0.0, np.nan]], [[0.0, 0.0, 1.0]]):
        assert not fused.ratio(jnp.asarray(other), hint)[1]
    none = jnp.zeros((1, 3))
    assert fused.ratio(none, none)[1] and not fused.ratio(hint, none)[1]


def test_bfloat16_products_keep_float32_sums():
    """600 tokens push one way: a sum in bfloat16 would stop growing at 256."""
    head = Head(jnp.zeros((1, 2)), jnp.zeros((2,)), chunk=1, dtype=jnp.bfloat16)
    tokens = jnp.zeros((1, 600), jnp.int32)

    def loss(kernel):
        full = head.replace(kernel, head.bias_V)
        return jnp.sum(Posterior(jnp.ones((1, 600, 1)), full).log_prob(tokens))

    np.testing.assert_allclose(jax.grad(loss)(head.kernel_DV), [[300.0, -300.0]], rtol=1e-6)


def test_an_empty_mask_has_no_gradient():
    weight = jnp.zeros((2, 3))
    features = draw(0, 2, 3, D, dtype=jnp.float32)
    head = head_of(draw(1, D, V, dtype=jnp.float32), jnp.zeros((V,)))

    def loss(features, head):
        log_p = Posterior(features, head).log_prob(jnp.zeros((2, 3), jnp.int32), weight)
        return jnp.sum(weight * log_p)

    for leaf in jax.tree.leaves(jax.grad(loss, (0, 1))(features, head)):
        assert not np.any(leaf)


def test_a_head_that_is_not_fused_is_differentiated_as_it_stands():
    """Chunked it makes the logits again, unchunked it keeps them; nothing is guessed."""

    def program(chunk):
        def loss(features, kernel):
            head = head_of(kernel, jnp.zeros((V,)), chunk=chunk, fused=False)
            return jnp.sum(Posterior(features, head).log_prob(jnp.zeros((2, 3), jnp.int32)))

        shapes = jnp.zeros((2, 3, D)), jnp.zeros((D, V))
        return products(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*shapes).jaxpr)

    assert program(2) == (4, 0) and program(6) == (3, 0)
