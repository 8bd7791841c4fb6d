"""Pretrained decoders: cached and whole agree, both layouts, drawing follows the distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.errors import UserError
from flm_jax.evals import causal
from flm_jax.evals.causal import CausalTruth
from flm_jax.models.decoder import Shape, decoder, features
from flm_jax.tokenizers.characters import Characters

D, V, DEPTH = 8, 7, 2
GPT2 = Shape(heads=2, shared_heads=2, epsilon=1e-5, centred=True)
LLAMA = Shape(heads=4, shared_heads=2, epsilon=1e-5, centred=False, rotary_base=10_000.0)


def make(shape, seed=0):
    draw = np.random.default_rng(seed)

    def array(*size):
        return jnp.asarray(draw.normal(size=size), jnp.float32) * 0.5

    biased = shape.centred

    def linear(into, out, *stack):
        bias = {"bias": array(*stack, out)} if biased else {}
        return {"kernel": array(*stack, into, out), **bias}

    def norm(*stack):
        return {"scale": 1 + array(*stack, D), **({"bias": array(*stack, D)} if biased else {})}

    qkv = (shape.heads + 2 * shape.shared_heads) * (D // shape.heads)
    blocks = {
        "norm_1": norm(DEPTH), "norm_2": norm(DEPTH), "qkv": linear(D, qkv, DEPTH),
        "out": linear(D, D, DEPTH), "mlp_in": linear(D, 12, DEPTH), "mlp_out": linear(12, D, DEPTH),
    }  # fmt: skip
    params = {
        "embed": {"table": array(V, D)}, "blocks": blocks, "norm": norm(),
        "head": {"kernel": 2 * array(D, V), "bias": jnp.zeros(V)},
    }  # fmt: skip
    if biased:
        params["positions"] = array(9, D)
    else:
        blocks["mlp_gate"] = linear(D, 12, DEPTH)
    return decoder(params, shape)


@pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_one_position_at_a_time_is_the_whole_at_once(shape):
    net = make(shape)
    tokens_BL = np.random.default_rng(1).integers(V, size=(3, 6))
    whole = net(net.table[tokens_BL], jnp.zeros(3)).posterior.dense()
    cache, parts = net.empty_cache(3, 6), []
    for i in range(6):
        h_B1D = net.table[tokens_BL[:, i]][:, None]
        posterior, cache = net.advance(h_B1D, jnp.int32(i), cache)
        parts.append(posterior.dense())
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-6)


def test_masked_tokens_are_not_seen():
    net = make(GPT2)
    a, b = np.array([[1, 2, 3, 4]]), np.array([[1, 5, 3, 4]])
    mask = np.array([[1, 0, 1, 1]])
    seen = [features(net.params, GPT2, net.table[x], mask) for x in (a, b)]
    np.testing.assert_allclose(seen[0][:, 2:], seen[1][:, 2:], atol=1e-6)
    assert (
        np.abs(np.subtract(*(features(net.params, GPT2, net.table[x]) for x in (a, b)))).max() > 0.1
    )


def test_attention_by_hand_with_shared_keys():
    """One layer, Llama layout, written out head by head with complex rotations."""
    net = make(LLAMA)
    layer = jax.tree.map(lambda x: np.asarray(x[0], np.float64), net.params["blocks"])
    only = {**net.params, "blocks": jax.tree.map(lambda x: x[:1], net.params["blocks"])}
    tokens = np.array([[1, 4, 2, 2]])
    h = np.asarray(net.table, np.float64)[tokens[0]]

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale

    def rotate(x, position):
        pairs = x[0::2] + 1j * x[1::2]
        pairs = pairs * np.exp(1j * position * 10_000.0 ** (-np.arange(0, 2, 2) / 2))
        return np.stack([pairs.real, pairs.imag], -1).reshape(-1)

    qkv = norm(h, layer["norm_1"]["scale"]) @ layer["qkv"]["kernel"]
    mixed = np.zeros((4, 4, 2))
    for head in range(4):
        q = [rotate(x[2 * head : 2 * head + 2], i) for i, x in enumerate(qkv)]
        shared = 8 + 2 * (head // 2)
        k = [rotate(x[shared : shared + 2], i) for i, x in enumerate(qkv)]
        for i in range(4):
            scores = np.array([q[i] @ k[j] / np.sqrt(2) for j in range(i + 1)])
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed[i, head] = weights @ qkv[: i + 1, shared + 4 : shared + 6]
    h = h + mixed.reshape(4, D) @ layer["out"]["kernel"]
    x = norm(h, layer["norm_2"]["scale"])
    gate = x @ layer["mlp_gate"]["kernel"]
    inner = gate / (1 + np.exp(-gate)) * (x @ layer["mlp_in"]["kernel"])
    h = norm(h + inner @ layer["mlp_out"]["kernel"], np.asarray(net.params["norm"]["scale"]))
    got = features(only, LLAMA, net.table[tokens])
    np.testing.assert_allclose(got[0], h, atol=1e-5)


@pytest.fixture(scope="module")
def truth():
    return CausalTruth(make(LLAMA), Characters("abc"), 5, "tiny")


def test_drawn_rows_follow_the_distribution_they_are_scored_by(truth):
    """Against the exact probabilities of all 49 continuations of BOS by two tokens."""
    rows = truth.sample(np.arange(4096), 3, seed=0)
    assert (rows[:, 0] == truth.tokenizer.bos_id).all()
    every = np.array([[truth.tokenizer.bos_id, a, b] for a in range(V) for b in range(V)])
    p = np.exp(-truth.score(every).sum(1))
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    counts = np.bincount(rows[:, 1] * V + rows[:, 2], minlength=V * V)
    chi2 = ((counts - 4096 * p) ** 2 / (4096 * p)).sum()
    assert chi2 < 48 + 5 * np.sqrt(2 * 48), chi2  # 48 degrees of freedom
    # the mean score of what is drawn is the entropy
    entropy = -(p * np.log(p)).sum()
    assert truth.score(rows).sum(1).mean() == pytest.approx(entropy, abs=0.08)


def test_a_number_that_was_rounded_up_to_one_draws_no_impossible_token():
    p_BV = jnp.array([[0.0, 0.5, 0.5, 0.0]] * 4)
    drawn = causal._inverse(p_BV, jnp.array([1e-10, 0.5, 0.75, 1.0]))
    assert drawn.tolist() == [1, 1, 2, 2]


def test_a_row_depends_on_its_index_and_seed_only(truth):
    rows = truth.sample(np.arange(300), 4, seed=3)
    np.testing.assert_array_equal(truth.sample(np.array([299, 7]), 4, seed=3), rows[[299, 7]])
    assert (truth.sample(np.arange(300), 4, seed=4) != rows).any()


def test_scores_do_not_depend_on_the_batch(truth):
    rows = truth.sample(np.arange(40), 4, seed=3)
    one = dataclasses.replace(truth)
    np.testing.assert_allclose(truth.score(rows)[5:6], one.score(rows[5:6]), atol=1e-5)


def test_rows_longer_than_the_model_knows_are_refused(truth):
    for ask in (lambda: truth.sample(np.arange(2), 6, 0), lambda: truth.score(np.zeros((1, 6)))):
        with pytest.raises(UserError, match="at most 5 tokens, not 6"):
            ask()
