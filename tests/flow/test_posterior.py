"""The lazy posterior and its combinations against dense formulas, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flow.combination import one_hot
from flm_jax.flow.head import Head
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.terms import Probability, Tangent
from flm_jax.flow.vocabulary import entmax, first_largest, nucleus

B, L, D, V = 3, 5, 4, 7


def build(chunk: int, seed: int = 0, **options) -> Posterior:
    keys = jax.random.split(jax.random.key(seed), 4)
    head = Head(
        3 * jax.random.normal(keys[0], (D, V)),
        jax.random.normal(keys[1], (V,)),
        chunk=chunk,
        **options,
    )
    features, tangent = (jax.random.normal(k, (B, L, D)) for k in keys[2:])
    return Posterior(features, head, tangent)


def dense_logits(p: Posterior) -> jax.Array:
    raw = p.features_BLD @ p.head.kernel_DV + p.head.bias_V[None, None]
    capped = p.head.cap * jnp.tanh(raw / p.head.cap) if p.head.cap else raw
    return capped / p.head.temperature


@pytest.fixture(params=[1, 2, 6, 9, 1000], ids="chunk{}".format)
def chunk(request):
    return request.param


@pytest.mark.parametrize("options", [{}, {"cap": 0.0}, {"cap": 2.0, "temperature": 0.7}])
def test_single_posterior(chunk, options):
    p = build(chunk, **options)
    log_p = jax.nn.log_softmax(dense_logits(p))
    tokens = jax.random.randint(jax.random.key(5), (B, L), 0, V)
    table = jax.random.normal(jax.random.key(6), (V, 3))
    picked = jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(p.log_prob(tokens), picked, atol=1e-5)
    np.testing.assert_allclose(p.entropy(), -jnp.sum(jnp.exp(log_p) * log_p, -1), atol=1e-5)
    np.testing.assert_allclose(p.mean(table), jnp.exp(log_p) @ table, atol=1e-5)
    np.testing.assert_allclose(p.dense(), jnp.exp(log_p), atol=1e-6)
    np.testing.assert_array_equal(p.argmax(), jnp.argmax(log_p, -1))


@pytest.mark.parametrize("cap", [30.0, 35.0, 36.0, 300.0])
@pytest.mark.parametrize("scale", [10.0, 1e4])
def test_capped_logits_at_their_bounds_need_no_shift(cap, scale):
    raw = scale * np.linspace(-3.0, 3.0, V)[None, None] * np.array([[[1.0]], [[-1.0]], [[0.2]]])
    head = Head(jnp.eye(V), jnp.zeros(V), cap=cap)
    features = np.broadcast_to(raw, (3, V, V)).astype(np.float32)
    logits = cap * np.tanh(features.astype(np.float64) / cap)
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    p = Posterior(jnp.asarray(features), head)
    tokens = np.broadcast_to(np.arange(V)[None], (3, V))
    expected = np.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        p.log_prob(jnp.asarray(tokens)), expected, rtol=1e-5, atol=5e-7 * cap
    )
    np.testing.assert_allclose(p.mean(jnp.eye(V)), np.exp(log_p), rtol=1e-6 * cap, atol=1e-6)
    cross = p.probability().cross_entropy_to(p)
    np.testing.assert_allclose(
        cross, -np.sum(np.exp(log_p) * log_p, -1), rtol=1e-5, atol=5e-7 * cap
    )
    slope = jax.grad(lambda f: jnp.sum(Posterior(f, head).log_prob(jnp.asarray(tokens))))
    assert np.isfinite(slope(jnp.asarray(features))).all()


def test_gradient_of_log_prob_does_not_depend_on_chunks(chunk):
    tokens = jax.random.randint(jax.random.key(5), (B, L), 0, V)
    weight = jax.random.normal(jax.random.key(6), (B, L))
    p = build(chunk)

    def lazy(features, kernel, bias):
        head = Head(kernel, bias, chunk=chunk)
        return jnp.sum(weight * Posterior(features, head).log_prob(tokens))

    def dense(features, kernel, bias):
        head = Head(kernel, bias)
        log_p = jax.nn.log_softmax(dense_logits(Posterior(features, head)))
        return jnp.sum(weight * jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0])

    arguments = (p.features_BLD, p.head.kernel_DV, p.head.bias_V)
    for got, wanted in zip(
        jax.grad(lazy, (0, 1, 2))(*arguments), jax.grad(dense, (0, 1, 2))(*arguments), strict=True
    ):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_tangent_is_the_directional_derivative(chunk):
    p = build(chunk, cap=2.0)

    def probabilities(features):
        return jax.nn.softmax(dense_logits(Posterior(features, p.head)))

    _, wanted = jax.jvp(probabilities, (p.features_BLD,), (p.tangent_BLD,))
    np.testing.assert_allclose(p.tangent().dense(), wanted, rtol=1e-5, atol=1e-6)


def test_combination_of_every_kind(chunk):
    p, q = build(chunk, 0), build(chunk, 1)
    tokens = jax.random.randint(jax.random.key(5), (B, L), 0, V)
    a_B = jnp.arange(1.0, B + 1)
    b_BL = jnp.arange(float(B * L)).reshape(B, L) / 10
    mixed = p.probability(a_B) + q.tangent(b_BL) + p.logits(-0.5)
    mixed += one_hot(tokens, p.head, 2.0)
    raw = p.features_BLD @ p.head.kernel_DV + p.head.bias_V[None, None]
    wanted = (
        a_B[:, None, None] * p.dense()
        + b_BL[..., None] * q.tangent().dense()
        - 0.5 * raw
        + 2.0 * jax.nn.one_hot(tokens, V)
    )
    table = jax.random.normal(jax.random.key(6), (V, 3))
    np.testing.assert_allclose(mixed.dense(), wanted, atol=1e-5)
    np.testing.assert_allclose(mixed.mean(table), wanted @ table, atol=1e-4)
    np.testing.assert_array_equal(mixed.argmax(), jnp.argmax(wanted, -1))
    log_q = jax.nn.log_softmax(dense_logits(q))
    np.testing.assert_allclose(
        mixed.cross_entropy_to(q), -jnp.sum(wanted * log_q, -1), rtol=1e-4, atol=1e-4
    )
    error = jnp.sum((wanted - q.dense()) ** 2, -1)
    np.testing.assert_allclose(mixed.squared_error_to(q.probability()), error, rtol=1e-4)


def test_multiples_of_one_vector_become_one_term():
    p, q = build(1000, 0), build(1000, 1)
    a_B, b_BL = jnp.arange(1.0, B + 1), jnp.ones((B, L)) / 3
    mixed = p.probability(a_B) + q.probability(2.0) + p.tangent(b_BL)
    mixed += p.probability(b_BL) + p.tangent(-1.0) + build(1000, 0).probability(0.5)
    kinds = [(type(term), term.source is p) for term in mixed.terms]
    assert kinds == [
        (Probability, True),
        (Probability, False),
        (Tangent, True),
        (Probability, False),
    ]  # the last is equal to p, but another object
    coefficient_BL1 = (a_B[:, None] + b_BL)[..., None] + 0.5
    wanted = coefficient_BL1 * p.dense() + 2.0 * q.dense() + (1 / 3 - 1.0) * p.tangent().dense()
    np.testing.assert_allclose(mixed.dense(), wanted, atol=1e-6)


def test_a_mixture_with_itself_has_the_entropy_as_cross_entropy(chunk):
    p = build(chunk)
    mixed = p.probability(0.3) + p.probability(0.7)
    np.testing.assert_allclose(mixed.cross_entropy_to(p), p.entropy(), atol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 300])
def test_the_first_largest_entry(size):
    """Few different values, so that most rows have the largest several times; signs and zeros."""
    values = jnp.round(2 * jax.random.normal(jax.random.key(0), (50, 3, size)))
    values = values.at[0].set(-jnp.inf).at[1].set(-0.0).at[1, :, 1:].set(0.0)
    np.testing.assert_array_equal(first_largest(values), jnp.argmax(values, -1))
    assert first_largest(values).dtype == jnp.int32


def test_entmax_2_is_the_euclidean_projection_on_the_simplex():
    scores = 3 * jax.random.normal(jax.random.key(0), (4, 9))
    p = np.asarray(entmax(scores, 2.0))
    np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
    assert (p >= 0).all() and (p == 0).any()
    # Optimality: among all simplex points none is nearer.
    rivals = np.random.default_rng(0).dirichlet(np.ones(9), size=2000)
    distance = ((p - np.asarray(scores)) ** 2).sum(-1)
    others = ((rivals[:, None] - np.asarray(scores)) ** 2).sum(-1)
    assert (others >= distance - 1e-5).all()
    np.testing.assert_allclose(entmax(jnp.asarray(p), 2.0), p, atol=1e-6)


def test_entmax_near_one_is_softmax_and_combinations_project():
    scores = jax.random.normal(jax.random.key(0), (4, 9))
    np.testing.assert_allclose(entmax(scores, 1.001), jax.nn.softmax(scores), atol=2e-3)
    # In float64: entmax passes on the rounding of its scores, and XLA may round them differently
    # in the threshold and in the result.
    with jax.enable_x64(True):
        p = jax.tree.map(lambda x: x.astype(jnp.float64), build(2))
        combination = p.probability() + p.tangent(3.0)
        lazy = combination.entmax(1.5).dense()
        np.testing.assert_allclose(lazy, entmax(combination.dense(), 1.5), atol=1e-12)
        np.testing.assert_allclose(lazy.sum(-1), 1.0, atol=1e-12)


def test_entmax_keeps_its_digits_when_all_scores_are_large():
    scores = jnp.asarray([[0.5, 0.25, 0.375, -8.0]])
    for alpha in (1.5, 1.7, 2.0):
        far = entmax(scores + 2.0**13, alpha)  # these sums are exact in float32
        np.testing.assert_allclose(far, entmax(scores, alpha), atol=1e-6)
        np.testing.assert_allclose(far.sum(-1), 1.0, atol=1e-6)


def test_entmax_refuses_other_alphas():
    p = build(2)
    with pytest.raises(ValueError, match="1 < alpha <= 2, not 1.0"):
        p.probability().entmax(1.0)


def test_nucleus_keeps_the_smallest_sufficient_set():
    p = jnp.asarray([[0.5, 0.05, 0.3, 0.15]])
    kept = lambda top_p: np.isfinite(nucleus(jnp.log(p), top_p))[0].tolist()  # noqa: E731
    assert kept(0.4) == [True, False, False, False]
    assert kept(0.6) == [True, False, True, False]
    assert kept(0.9) == [True, False, True, True]
    assert kept(0.999) == [True, True, True, True]


def test_samples_follow_the_distribution_and_their_own_key(chunk):
    bias = jnp.log(jnp.asarray([0.2, 0.5, 0.3]))
    head = Head(jnp.zeros((D, 3)), bias, cap=0.0, chunk=chunk * 50)
    n = 400
    keys = jax.random.split(jax.random.key(0), n)
    tokens = Posterior(jnp.zeros((n, L, D)), head).sample(keys)
    share = np.bincount(np.asarray(tokens).ravel(), minlength=3) / tokens.size
    np.testing.assert_allclose(share, [0.2, 0.5, 0.3], atol=0.04)
    cold = Posterior(jnp.zeros((n, L, D)), head).sample(keys, temperature=0.05)
    assert (np.asarray(cold) == 1).mean() > 0.99
    alone = Posterior(jnp.zeros((1, L, D)), head).sample(keys[7:8])
    np.testing.assert_array_equal(alone[0], tokens[7])


def test_no_array_of_vocabulary_size_per_token():
    """The compiled gradient holds at most chunk x V logits, not B x L x V."""
    big_v, length, chunk = 512, 64, 8
    head = Head(jnp.ones((D, big_v)), jnp.zeros((big_v,)), chunk=chunk)
    features = jnp.ones((2, length, D))
    tokens = jnp.zeros((2, length), jnp.int32)

    def loss(features, head):
        return -jnp.sum(Posterior(features, head).log_prob(tokens))

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(features, head).compile()
    dense = 4 * 2 * length * big_v
    assert compiled.memory_analysis().temp_size_in_bytes < dense / 2
