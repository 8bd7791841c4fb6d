"""Samplers of tokens: ancestral steps against their exact laws, left to right with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from config_changes import changed

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.head import Head
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot
from flm_jax.samplers.ancestral import AncestralMasked, AncestralUniform, Step
from flm_jax.samplers.autoregressive import LeftToRight

V, L, D, B = tiny.V, tiny.L, tiny.D, 3
CLOCK = tiny.clock()
P = np.random.default_rng(0).dirichlet(np.full(V, 0.5)).astype(np.float32)
SAMPLERS = {"masked": AncestralMasked(), "uniform": AncestralUniform()}


def keys(size: int = B, first: int = 0) -> jax.Array:
    return sequence_keys(jax.random.key(0), first + jnp.arange(size))


def constant_net(mask: bool, temperature: float = 1.0) -> Net:
    """A network that answers P whatever it sees."""
    bias = jnp.pad(jnp.log(P), (0, int(mask)), constant_values=9.0)
    params = {
        "embed": {"table": jnp.zeros((V + mask, D))},
        "head": {"kernel": jnp.zeros((D, V + mask)), "bias": bias},
    }

    def backbone(params, h_BLD, tau_s, tau_t, key):
        return jnp.zeros_like(h_BLD), None

    return Net(backbone, params, logit_cap=0.0, temperature=temperature)


def draw(sampler, net, keys_B, **options):
    """`run`, compiled as a whole."""

    @jax.jit
    def call(keys_B, start):
        at = tiny.at({"student": net}, OneHot, CLOCK)
        return tiny.write(sampler, at, keys_B, start=start, **options)

    return call(keys_B, options.pop("start", None))


def real_net(sampler) -> Net:
    model = tiny.model(**tiny.needs(sampler))
    return model.net(tiny.params(model))


def deviation(tokens, p) -> float:
    """Largest difference of frequencies from p, in standard deviations."""
    tokens = np.asarray(tokens).ravel()
    frequency = np.bincount(tokens, minlength=len(p)) / tokens.size
    return np.max(np.abs(frequency - p) / np.sqrt(p * (1 - p) / tokens.size + 1e-12))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_independent_tokens_come_out_with_their_law_after_any_number_of_steps(name, steps):
    sampler = SAMPLERS[name]
    net = constant_net(sampler.needs.mask_token)
    tokens_BL, path = draw(sampler, net, keys(500), steps=steps, length=40)
    assert tokens_BL.dtype == jnp.int32 and path is None
    assert deviation(tokens_BL, P) < 5


def test_every_step_shows_its_share_of_tokens_and_shown_ones_stay():
    net = constant_net(True)
    _, path = draw(AncestralMasked(), net, keys(200), steps=4, length=40, trajectory=True)
    states = np.asarray(path.states)
    assert (states[0] == V).all() and (states[-1] < V).all()
    for i in range(1, 5):
        shown = states[i] != V
        expected = discrete.alpha(1.0 - i / 4)
        assert abs(shown.mean() - expected) < 5 * np.sqrt(0.25 / shown.size)
        before = states[i - 1] != V
        np.testing.assert_array_equal(states[i][before], states[i - 1][before])
        seen, confidence = path.tokens_SBL[i - 1], path.confidence_SBL[i - 1]
        np.testing.assert_array_equal(np.asarray(seen)[before], states[i - 1][before])
        np.testing.assert_array_equal(np.asarray(seen)[~before], P.argmax())
        np.testing.assert_allclose(confidence, np.where(before, 1.0, P.max()), rtol=1e-5)
    np.testing.assert_allclose(path.tau_S, [0, 0.25, 0.5, 0.75])


def bayes(alpha_t: float, alpha_s: float, now: int, law: np.ndarray) -> np.ndarray:
    """The law of x_s given x_t = now, when the clean token has a law: from the transitions."""
    size = len(law)
    prior = alpha_s * law + (1 - alpha_s) / size
    ratio = alpha_t / alpha_s
    likelihood = ratio * np.eye(size)[now] + (1 - ratio) / size
    return prior * likelihood / np.sum(prior * likelihood)


def test_a_uniform_step_has_the_law_of_bayes():
    law, now, size = np.asarray([0.5, 0.3, 0.15, 0.05]), 2, 20_000
    posterior = Posterior(
        jnp.zeros((size, 1, 1)), Head(jnp.zeros((1, 4)), jnp.log(law), cap=0.0, chunk=size)
    )
    tokens = jnp.full((size, 1), now, jnp.int32)

    @jax.jit
    def step(k, t, s):
        return AncestralUniform().step(posterior, tokens, Step(0, t, s), k)

    for alpha_t, alpha_s in ((0.2, 0.5), (0.6, 0.7), (0.3, 1.0)):
        weights = discrete.uniform_step_back(alpha_t, alpha_s, jnp.asarray(law[now]), 4)
        mixture = weights.stay * np.eye(4)[now] + weights.predict * law + weights.jump / 4
        expected = bayes(alpha_t, alpha_s, now, law)
        np.testing.assert_allclose(mixture / weights.total, expected, rtol=1e-5)
        assert deviation(step(keys(size), alpha_t, alpha_s), expected) < 5


def test_a_masked_step_has_the_law_of_the_prediction_and_the_mask():
    law, size, alpha_t, alpha_s = P, 20_000, 0.2, 0.5
    posterior = Posterior(
        jnp.zeros((size, 1, 1)), Head(jnp.zeros((1, V)), jnp.log(law), cap=0.0, chunk=size)
    )
    step = jax.jit(lambda k: AncestralMasked().step(
        posterior, jnp.full((size, 1), V, jnp.int32), Step(0, alpha_t, alpha_s), k
    ))  # fmt: skip
    show = (alpha_s - alpha_t) / (1 - alpha_t)
    assert deviation(step(keys(size)), np.append(show * law, 1 - show)) < 5


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sequence_depends_on_its_own_key_only(name):
    sampler = SAMPLERS[name]
    net = real_net(sampler)
    options = {"steps": 3, "length": 12}
    together, _ = draw(sampler, net, keys(3), **options)
    alone, _ = draw(sampler, net, keys(1, first=1), **options)
    np.testing.assert_array_equal(alone[0], together[1])
    assert (np.asarray(together[0]) != np.asarray(together[1])).any()


def test_given_tokens_stay_given():
    start = jnp.full((B, L), V, jnp.int32).at[:, 2].set(5)
    tokens_BL, _ = draw(
        AncestralMasked(), constant_net(True), keys(), steps=3, length=L, start=start
    )
    np.testing.assert_array_equal(tokens_BL[:, 2], 5)
    assert (tokens_BL < V).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_top_p_and_the_denoisers_temperature_narrow_every_draw(name):
    sharp = P**2 / (P**2).sum()
    sampler = SAMPLERS[name]
    net = constant_net(sampler.needs.mask_token, temperature=0.5)
    tokens_BL, _ = draw(sampler, net, keys(500), steps=2, length=40)
    assert deviation(tokens_BL, sharp) < 5
    order = np.argsort(-P)
    kept = order[: np.searchsorted(np.cumsum(P[order]), 0.5) + 1]
    net = constant_net(sampler.needs.mask_token)
    tokens_BL, _ = draw(type(sampler)(top_p=0.5), net, keys(100), steps=2, length=40)
    assert set(np.unique(tokens_BL)) == set(kept) and len(kept) < V / 2


def test_left_to_right_with_a_cache_is_what_the_whole_network_says():
    net = real_net(LeftToRight())
    noise_SBV = jax.random.gumbel(jax.random.key(3), (L - 1, B, V))
    options = {"steps": L - 1, "length": L, "noise": noise_SBV, "trajectory": True, "bos_id": 1}
    tokens_BL, path = draw(LeftToRight(), net, keys(), **options)
    np.testing.assert_array_equal(tokens_BL[:, 0], 1)
    posterior = net(net.table[tokens_BL[:, :-1]], None).posterior
    scores = jnp.log(posterior.dense()) + jnp.moveaxis(noise_SBV, 0, 1)
    np.testing.assert_array_equal(scores.argmax(-1), tokens_BL[:, 1:])
    assert len(np.unique(tokens_BL)) > 3
    p = np.exp(posterior.log_prob(tokens_BL[:, 1:]))
    np.testing.assert_allclose(path.confidence_SBL[-1][:, 1:], p, rtol=1e-4)
    assert path.states.shape == (L, B, L) and (path.states[2][:, 3:] == 1).all()
    np.testing.assert_array_equal(path.states[2][:, :3], tokens_BL[:, :3])
    np.testing.assert_array_equal(path.states[-1], tokens_BL)


def test_left_to_right_draws_from_the_networks_law():
    model = tiny.model(causal=True, logit_cap=0.0, head_chunk=1024)
    params = tiny.params(model)
    params["head"] = {"kernel": jnp.zeros((D, V)), "bias": jnp.log(P)}
    options = {"steps": 19, "length": 20, "bos_id": 0}
    tokens_BL, _ = draw(LeftToRight(), model.net(params), keys(300), **options)
    assert deviation(tokens_BL[:, 1:], P) < 5
    again, _ = draw(LeftToRight(), model.net(params), keys(1, first=7), **options)
    np.testing.assert_array_equal(again[0], tokens_BL[7])


def test_what_is_never_drawn_is_as_if_its_logit_were_minus_infinity():
    """The official rule, position by position with the whole network, on given noise."""
    never, net = [0, 7, V - 1], real_net(LeftToRight())
    noise_SBV = 3.0 * np.random.default_rng(1).gumbel(size=(L - 1, B, V)).astype(np.float32)
    options = {"steps": L - 1, "length": L, "bos_id": 0, "noise": jnp.asarray(noise_SBV)}
    free_BL, _ = draw(LeftToRight(), net, keys(), **options)
    sampler = LeftToRight(never=tuple(never))
    tokens_BL, path = draw(sampler, net, keys(), trajectory=True, **options)
    assert np.isin(free_BL[:, 1:], never).any()  # else nothing is tested
    wanted = np.zeros((B, L), np.int32)
    for i in range(L - 1):
        posterior = net(net.table[wanted], None).posterior
        logits = np.array(posterior.head.capped(posterior.logits().dense())[:, i])
        logits[:, never] = -1e6
        wanted[:, i + 1] = np.argmax(logits + noise_SBV[i], axis=-1)
        p = np.asarray(jax.nn.softmax(logits))[np.arange(B), wanted[:, i + 1]]
        np.testing.assert_allclose(path.confidence_SBL[i, :, i + 1], p, rtol=1e-4)
    np.testing.assert_array_equal(tokens_BL, wanted)


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 0.5), (0.6, 1.0), (1e-6, 1.0)])
def test_what_is_left_keeps_its_law_at_any_temperature_and_nucleus(top_p, temperature):
    model = tiny.model(causal=True, logit_cap=0.0)
    head = {"kernel": jnp.zeros((D, V)), "bias": jnp.log(jnp.asarray(P))}
    net = model.net(tiny.params(model) | {"head": head}, temperature)
    never = np.argsort(-P)[:2].tolist()  # what would be written most
    sampler = LeftToRight(top_p=top_p, never=tuple(never))
    tokens_BL, _ = draw(sampler, net, keys(300), steps=9, length=10, bos_id=0)
    law = P ** (1.0 / temperature)
    law[never] = 0.0
    law /= law.sum()
    order = np.argsort(-law)
    law[order[np.sum(np.cumsum(law[order]) < top_p) + 1 :]] = 0.0
    assert not np.isin(tokens_BL[:, 1:], never).any()
    assert deviation(tokens_BL[:, 1:], law / law.sum()) < 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"never": (3, V)}, f"never=3,{V}: {V} is not a token of this model; give ids from 0 to"),
        ({"never": -1}, "never=-1: -1 is not a token of this model"),
        ({"never": tuple(range(V))}, f"never names all {V} tokens"),
        ({"never": "mask"}, "option 'never' of sampler 'autoregressive'.* must be an integer"),
        ({"never": 1.5}, "must be an integer"),
        ({"bos_id": V}, f"bos_id={V} is not a token of this model"),
        ({"bos_id": -2}, "bos_id=-2 is not a token of this model"),
    ],
)
def test_ids_that_are_no_tokens_are_refused(options, sentence):
    config = config_lib.resolve({"model": {"causal": True}, "sampler": {"name": "autoregressive"}})
    with pytest.raises(UserError, match=sentence):
        experiment.Experiment(config, V).sampler("", options)
    assert experiment.Experiment(config, V).sampler("", {"never": "3, 4"}).never == (3, 4)


def test_tokens_one_by_one_need_a_causal_network():
    with pytest.raises(TypeError, match="an autoregressive sampler needs a causal network"):
        draw(LeftToRight(bos_id=1), real_net(AncestralUniform()), keys(), steps=L - 1, length=L)


@pytest.mark.parametrize(
    "sampler, options, sentence",
    [
        (AncestralMasked(), {"temperature": 0.7}, "temperature=0.7 and top_p=1 of the last"),
        (AncestralUniform(), {"temperature": 1.0, "top_p": 0.5}, "set denoiser_temperature or"),
        (AncestralMasked(), {"prior_scale": 0.5}, "prior_scale=0.5 has no effect on a sampler"),
        (LeftToRight(), {"bos_id": 1}, "writing 6 tokens one by one takes 5 steps, not 3"),
        (LeftToRight(), {"steps": 5}, "this tokenizer has none; set the sampler's option bos_id"),
        (LeftToRight(bos_id=1), {"prior_scale": 2.0}, "prior_scale=2 has no effect"),
        (AncestralUniform(), {"grid_power": 4.0}, "grid_power=4 has no effect on a sampler"),
        (
            AncestralMasked(),
            {"patience": 1},
            r"a sampler of tokens cannot stop early \(patience=1\)",
        ),
        (LeftToRight(), {"patience": 2}, "its steps do not predict whole texts; set sampler.pati"),
    ],
)
def test_what_cannot_have_an_effect_is_refused(sampler, options, sentence):
    with pytest.raises(UserError, match=sentence):
        draw(sampler, real_net(sampler), keys(), **{"steps": 3, "length": L, **options})


def test_what_cannot_have_an_effect_is_refused_before_training():
    options = {"model__mask_token": True, "loss__name": "masked_diffusion"}
    options |= {"sampler__name": "ancestral_masked", "evals": ()}
    options |= {"data__name": "unicode_names", "tokenizer__name": "characters"}
    config_lib.validate(changed(**options), experiment.tables())
    with pytest.raises(UserError, match="grid_power=4 has no effect on a sampler of tokens"):
        config_lib.validate(changed(**options, sampler__grid_power=4.0), experiment.tables())


@pytest.mark.parametrize("top_p", [0.0, 1.5, float("nan")])
def test_a_nucleus_is_between_0_and_1(top_p):
    with pytest.raises(UserError, match=rf"top_p={top_p} must be in \(0, 1\]"):
        AncestralUniform(top_p=top_p)
