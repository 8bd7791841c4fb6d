"""Masked diffusion, most confident first: which positions come when, and what is written."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from known_chain import FIRST, LETTERS, Chain, V

from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot
from flm_jax.samplers.ancestral import AncestralMasked

CONFIDENT = AncestralMasked(order="confidence")
CLOCK = tiny.clock()
LENGTH, SIZE = 4, 4000


def write(sampler, net, n, steps, length, seed=0, **options):
    keys = sequence_keys(jax.random.key(seed), jnp.arange(n))
    at = tiny.at({"student": net}, OneHot, CLOCK)
    run = jax.jit(lambda k: tiny.write(sampler, at, k, steps=steps, length=length, **options))
    return jax.tree.map(np.asarray, run(keys))


def independent_net(p_LV: np.ndarray) -> Net:
    """A network for which positions are independent, each with its own law, whatever it sees."""
    size = p_LV.shape[1]
    eye = jnp.eye(size + 1)
    params = {"embed": {"table": eye}, "head": {"kernel": eye, "bias": jnp.zeros(size + 1)}}
    features_LD = jnp.pad(jnp.log(jnp.asarray(p_LV)), ((0, 0), (0, 1)))

    def backbone(params, h_BLD, tau_s, tau_t, key):
        return jnp.broadcast_to(features_LD[None], h_BLD.shape), None

    return Net(backbone, params, logit_cap=0.0)


P_LV = np.random.default_rng(3).dirichlet(np.ones(5), 8).astype(np.float32)


@pytest.mark.parametrize("steps", [3, 11])
def test_the_most_confident_come_first_in_even_shares(steps):
    tokens_BL, path = write(CONFIDENT, independent_net(P_LV), 3, steps, 8, trajectory=True)
    assert (tokens_BL < 5).all()
    order, left = np.argsort(-P_LV.max(axis=1)).tolist(), 8
    shown: set[int] = set()
    for i in range(steps):
        count = max(-(-left // (steps - i)), 1)
        shown |= set(order[len(shown) : len(shown) + count])
        left = 8 - len(shown)
        for row in path.states[i + 1]:
            assert set(np.flatnonzero(row < 5)) == shown
    assert left == 0


def test_independent_positions_keep_their_laws_in_any_order():
    tokens_BL, _ = write(CONFIDENT, independent_net(P_LV), SIZE, 3, 8)
    for position, p in enumerate(P_LV):
        frequency = np.bincount(tokens_BL[:, position], minlength=5) / SIZE
        assert np.max(np.abs(frequency - p) / np.sqrt(p * (1 - p) / SIZE)) < 5


def test_ranked_by_the_token_drawn_unlikely_draws_are_drawn_again():
    """Of two positions the first comes first if its likely letter is drawn, else it is redrawn."""
    net = independent_net(np.array([[0.9, 0.1], [0.6, 0.4]], np.float32))
    tokens_BL, _ = write(AncestralMasked(order="drawn"), net, SIZE, 2, 2)
    for frequency, p in zip((tokens_BL == 0).mean(0), (0.9 + 0.1 * 0.9, 0.6), strict=True):
        assert abs(frequency - p) < 5 * (p * (1 - p) / SIZE) ** 0.5


@pytest.mark.parametrize("choice_temperature", [0.0, 1.0])
def test_one_token_a_step_writes_the_truth_if_the_network_knows_it(choice_temperature):
    """The order may depend on what is shown: the product of the conditionals is still the law."""
    chain = Chain()
    sampler = AncestralMasked(order="confidence", choice_temperature=choice_temperature)
    tokens_BL, _ = write(sampler, chain.masked_net(), SIZE, LENGTH, LENGTH)
    assert (tokens_BL[:, 0] == LETTERS.bos_id).all()
    texts = np.array(list(itertools.product(range(FIRST, V), repeat=LENGTH - 1)))
    rows = np.concatenate([np.full((len(texts), 1), LETTERS.bos_id), texts], axis=1)
    expected = SIZE * np.exp(-chain.score(rows).sum(axis=1))
    assert expected.sum() == pytest.approx(SIZE, rel=1e-4)
    number = (tokens_BL[:, 1:] - FIRST) @ (V - FIRST) ** np.arange(LENGTH - 2, -1, -1)
    seen = np.bincount(number, minlength=len(texts))
    pooled = expected < 5
    seen, expected = (np.append(x[~pooled], x[pooled].sum()) for x in (seen, expected))
    square, degrees = np.sum((seen - expected) ** 2 / expected), len(expected) - 1
    assert abs(square - degrees) < 5 * np.sqrt(2 * degrees)


def test_several_tokens_a_step_do_not():
    chain = Chain()
    nats = [
        chain.score(write(CONFIDENT, chain.masked_net(), 500, steps, 12)[0]).mean()
        for steps in (12, 1)
    ]
    assert nats[1] > nats[0] + 0.5


def test_without_noise_and_draws_all_texts_are_one_and_noise_on_the_ranking_parts_them():
    texts = {}
    for noise in (0.0, 2.0):
        sampler = AncestralMasked(top_p=1e-6, order="confidence", choice_temperature=noise)
        tokens_BL, _ = write(sampler, Chain().masked_net(), 50, 12, 12)
        texts[noise] = len(np.unique(tokens_BL, axis=0))
    assert texts[0.0] == 1 and texts[2.0] > 5


def test_noise_on_the_ranking_is_that_of_a_draw_without_replacement():
    """log p + Gumbel: the first position is drawn in proportion to its confidence."""
    sampler = AncestralMasked(order="confidence", choice_temperature=1.0)
    _, path = write(sampler, independent_net(P_LV), SIZE, 8, 8, trajectory=True)
    first = np.bincount(np.argmin(path.states[1], axis=1), minlength=8) / SIZE
    p = P_LV.max(axis=1) / P_LV.max(axis=1).sum()
    assert np.max(np.abs(first - p) / np.sqrt(p * (1 - p) / SIZE)) < 5


def test_given_tokens_stay_and_only_open_ones_are_counted():
    start = jnp.full((2, 8), 5, jnp.int32).at[:, 1::2].set(3)
    net = independent_net(P_LV)
    tokens_BL, path = write(CONFIDENT, net, 2, 2, 8, start=start, trajectory=True)
    assert (tokens_BL[:, 1::2] == 3).all() and (tokens_BL < 5).all()
    assert ((path.states[1] < 5).sum(axis=1) == 6).all()


def test_the_order_of_a_large_row_is_not_off_by_a_rounding():
    """1024 masked tokens in 512 steps are two in every step, in float32."""
    zeros_BL = jnp.zeros((1, 1024))
    for left in (512, 511, 300, 3, 2, 1):
        alpha_t, alpha_s = (discrete.alpha(jnp.float32(n / 512)) for n in (left, left - 1))
        share = discrete.unmask_probability(alpha_t, alpha_s)
        masked_BL = jnp.arange(1024)[None] < 2 * left
        shown_BL = CONFIDENT.most_confident(zeros_BL, masked_BL, share, zeros_BL)
        assert int(shown_BL.sum()) == 2, left


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"order": "best"}, "order='best' is not known; use random or confidence"),
        ({"choice_temperature": 1.0}, "choice_temperature=1 has no effect in random order"),
        ({"order": "confidence", "choice_temperature": -1.0}, "=-1.0 must be a finite number"),
        ({"order": "confidence", "choice_temperature": float("nan")}, "=nan must be a finite"),
    ],
)
def test_wrong_options_get_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        AncestralMasked(**options)
