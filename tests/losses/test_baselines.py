"""The baselines' networks and losses: causal blocks, next token, masked and uniform diffusion."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow.at import At
from flm_jax.flow.head import Head
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot
from flm_jax.lab.parity import runner
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.losses.base import Batch
from flm_jax.losses.masked_diffusion import MaskedDiffusion
from flm_jax.losses.uniform_diffusion import UniformCurriculum, UniformDiffusion, bound

V, B, L, D = tiny.V, tiny.B, tiny.L, tiny.D
CLOCK = tiny.clock()
P = np.random.default_rng(1).dirichlet(np.full(V, 0.7)).astype(np.float32)


def constant_net(p, entries: int | None = None, seen: list | None = None) -> Net:
    """A network that answers p whatever it sees; the table is the identity (entries, entries)."""
    entries = len(p) if entries is None else entries
    bias = jnp.log(jnp.asarray(p, jnp.float32))
    bias = jnp.pad(bias, (0, entries - len(p)), constant_values=9.0)  # a mask that it would say
    params = {
        "embed": {"table": jnp.eye(entries)},
        "head": {"kernel": jnp.zeros((entries, entries)), "bias": bias},
    }

    def backbone(params, h_BLD, tau_s, tau_t, key):
        if seen is not None:
            seen.append((h_BLD, tau_s))
        return jnp.zeros_like(h_BLD), None

    return Net(backbone, params, logit_cap=0.0)


def run(loss, net, batch, seed: int = 0):
    space = OneHot({"student": net.table})
    draws = loss.draw(jax.random.key(seed), batch, space)
    loss_BL, count_BL, metrics = loss.evaluate(At({"student": net}, space, CLOCK), batch, draws)
    np.testing.assert_array_equal(metrics["nll"], loss_BL)
    wanted_BL = batch.mask_BL
    if isinstance(loss, Autoregressive):
        wanted_BL = wanted_BL.at[:, 0].set(0.0)  # nothing comes before the first token
    np.testing.assert_array_equal(count_BL, wanted_BL)
    return np.asarray(loss_BL), draws


def test_the_schedule_keeps_everything_at_0_and_a_thousandth_at_1():
    alpha = discrete.alpha(jnp.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(alpha, [1, 0.5005, 1e-3], rtol=1e-4)
    assert alpha[0] == 1.0
    np.testing.assert_allclose(discrete.unmask_probability(0.2, 1.0), 1.0)
    np.testing.assert_allclose(discrete.unmask_probability(0.2, 0.6), 0.5)


@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_the_mask_is_never_predicted(cap):
    posterior = Posterior(jnp.zeros((1, 2, 3)), Head(jnp.zeros((3, 4)), jnp.arange(4.0), cap=cap))
    without = discrete.without_mask(posterior)
    whole = posterior.dense()[..., :3]
    np.testing.assert_allclose(without.dense(), whole / whole.sum(-1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(without.argmax(), 2)


def test_masked_tokens_cost_their_weighted_surprise_and_others_nothing():
    seen, loss, batch = [], MaskedDiffusion(), tiny.batch(size=16)
    loss_BL, draws = run(loss, constant_net(P, V + 1, seen), batch)
    h_BLV, tau_B = seen[0]
    np.testing.assert_array_equal(tau_B, 0.0)
    shown_BL = np.asarray(h_BLV).argmax(-1)
    masked_BL = shown_BL == V
    assert 0.2 < masked_BL.mean() < 0.8
    np.testing.assert_array_equal(shown_BL[~masked_BL], np.asarray(batch.tokens_BL)[~masked_BL])
    t_B1 = np.asarray(loss.times(draws))[:, None]
    expected = np.where(masked_BL, -np.log(P)[batch.tokens_BL] / t_B1, 0.0)
    np.testing.assert_allclose(loss_BL, expected, rtol=1e-4)


def test_the_masked_bound_of_independent_tokens_is_their_entropy():
    tokens = np.random.default_rng(0).choice(V, size=(2000, 32), p=P / P.sum())
    batch = Batch(jnp.asarray(tokens), jnp.ones(tokens.shape), jnp.arange(2000), 2000)
    loss_BL, _ = run(MaskedDiffusion(), constant_net(P, V + 1), batch)
    rows = loss_BL.mean(1)
    assert abs(rows.mean() + (P * np.log(P)).sum()) < 5 * rows.std() / np.sqrt(len(rows))


@pytest.mark.parametrize("loss", [MaskedDiffusion(), UniformDiffusion(), UniformCurriculum()])
def test_draws_hang_on_the_place_in_the_global_batch(loss):
    whole = tiny.batch(size=8)
    part = Batch(whole.tokens_BL[2::4], whole.mask_BL[2::4], whole.index_B[2::4], 8)
    space = OneHot({"student": jnp.eye(V)})
    all_draws, draws = (loss.draw(jax.random.key(1), b, space) for b in (whole, part))
    np.testing.assert_array_equal(loss.times(draws), loss.times(all_draws))
    for name in set(draws) - {"uniform", "permutation", "dropout"}:
        np.testing.assert_array_equal(draws[name], all_draws[name][2::4])
        assert (draws[name][0] != draws[name][1]).any()
    net = constant_net(P, V + loss.needs.mask_token)
    whole_BL, _ = run(loss, net, whole, seed=1)
    np.testing.assert_allclose(run(loss, net, part, seed=1)[0], whole_BL[2::4], rtol=1e-5)
    strata = np.sort((loss.times(draws) - 1e-3) / (1 - 1e-3)) * 8
    np.testing.assert_array_equal(np.floor(strata + 1e-4), np.arange(8))


def test_times_may_be_independent():
    loss, space = MaskedDiffusion(t_min=0.25, stratified=False), OneHot({"student": jnp.eye(V)})
    draws = loss.draw(jax.random.key(0), tiny.batch(size=64), space)
    np.testing.assert_allclose(loss.times(draws), 0.25 + 0.75 * draws["uniform"], rtol=1e-6)


def posterior_of(p_BLV, chunk: int = 1000) -> Posterior:
    """The posterior with these probabilities: its features are log p."""
    size = p_BLV.shape[-1]
    head = Head(jnp.eye(size), jnp.zeros(size), cap=0.0, chunk=chunk)
    return Posterior(jnp.log(p_BLV), head)


def random_case(seed: int = 0, vocab_size: int = 5):
    draw = np.random.default_rng(seed)
    p_BLV = jnp.asarray(draw.dirichlet(np.ones(vocab_size), (B, L)), jnp.float32)
    tokens, seen = (jnp.asarray(draw.integers(0, vocab_size, (B, L)), jnp.int32) for _ in "ab")
    return p_BLV, tokens, seen, jnp.asarray(draw.uniform(0.1, 0.9, B), jnp.float32)


def test_the_uniform_bound_is_the_score_entropy_written_out():
    p_BLV, tokens_BL, seen_BL, alpha_B = random_case()
    ours = bound(posterior_of(p_BLV), tokens_BL, seen_BL, alpha_B, 2.0)
    for b, i in itertools.product(range(B), range(L)):
        alpha, p = float(alpha_B[b]), np.asarray(p_BLV[b, i], float)
        clean, now = int(tokens_BL[b, i]), int(seen_BL[b, i])
        true, predicted = (5 * alpha * q + 1 - alpha for q in (np.eye(5)[clean], p))
        r, s = true / true[now], predicted / predicted[now]
        expected = 2.0 / (5 * alpha) * np.sum(s - r + r * np.log(r / s))
        np.testing.assert_allclose(ours[b, i], expected, rtol=1e-4, atol=1e-5)
    assert (np.asarray(tokens_BL == seen_BL)).any()


def test_the_uniform_bound_of_a_perfect_prediction_is_zero():
    _, tokens_BL, seen_BL, alpha_B = random_case()
    sure = posterior_of(jnp.maximum(jax.nn.one_hot(tokens_BL, 5), 1e-30))
    np.testing.assert_allclose(bound(sure, tokens_BL, seen_BL, alpha_B, 1.0), 0.0, atol=2e-5)


def test_the_uniform_bound_does_not_depend_on_chunks_nor_does_its_gradient():
    p_BLV, *rest = random_case()

    def total(p_BLV, chunk):
        return jnp.sum(bound(posterior_of(p_BLV, chunk), *rest, 1.0))

    results = [jax.value_and_grad(total)(p_BLV, chunk) for chunk in (1000, 8)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_uniform_bound_of_the_exact_prediction_is_the_entropy():
    """Summed over clean and noised tokens and integrated over time, the bound is tight.

    Predicted ratios v(p) are those of the noised marginal if p is the law of the clean token.
    """
    p = np.asarray([0.5, 0.3, 0.15, 0.05])
    nodes, weights = np.polynomial.legendre.leggauss(60)
    root, weights = 0.5 * (nodes + 1), 0.5 * weights  # t = root ** 4 flattens the pole of log t
    t, weights = root**4, weights * 4 * root**3
    clean, now = (np.broadcast_to(x, (60, 4, 4)).reshape(60, 16) for x in np.indices((4, 4)))
    with jax.enable_x64(True):
        alpha = discrete.alpha(jnp.asarray(t))
        noised_T16 = alpha[:, None] * (clean == now) + (1 - alpha[:, None]) / 4
        exact = posterior_of(jnp.broadcast_to(p, (60, 16, 4)))
        loss_T16 = bound(exact, jnp.asarray(clean), jnp.asarray(now), alpha, 0.999)
        total = np.sum(weights[:, None] * p[clean] * noised_T16 * loss_T16)
    np.testing.assert_allclose(total, -(p * np.log(p)).sum(), rtol=1e-4)


def test_uniform_diffusion_shows_moved_tokens_and_the_noise_level():
    seen, loss, batch = [], UniformDiffusion(), tiny.batch(size=64)
    loss_BL, draws = run(loss, constant_net(P, seen=seen), batch)
    h_BLV, sigma_B = seen[0]
    shown_BL = np.asarray(h_BLV).argmax(-1)
    t_B = np.asarray(loss.times(draws))
    np.testing.assert_allclose(sigma_B, -np.log(1 - 0.999 * t_B), rtol=1e-4)
    moved = shown_BL != batch.tokens_BL
    expected = 0.999 * t_B * (1 - 1 / V)
    assert abs(moved.mean() - expected.mean()) < 5 * np.sqrt(0.25 / moved.size)
    assert (loss_BL > -1e-4).all()


def curriculum_state(loss, t: float, size: int = 4000):
    tokens_BL = jnp.zeros((size, 1), jnp.int32)
    noise = jax.random.normal(jax.random.key(0), (size, 1, V))
    return np.asarray(loss.latent(noise, tokens_BL, jnp.full((size,), t)))


@pytest.mark.parametrize("t", [0.2, 1.0])
def test_the_curriculum_moves_as_many_tokens_as_its_schedule_says(t):
    loss = UniformCurriculum(gamma_min=-2.0, gamma_max=0.5)
    alpha, rate = (float(x[0]) for x in loss.schedule(jnp.asarray([t]), CLOCK))
    right = (curriculum_state(loss, t).argmax(-1) == 0).mean()
    assert abs(right - (alpha + (1 - alpha) / V)) < 5 * np.sqrt(0.25 / 4000)
    h = 1e-2
    low, high = (float(loss.schedule(jnp.asarray([t + d]), CLOCK)[0][0]) for d in (-h, h))
    np.testing.assert_allclose(rate, (low - high) / (2 * h), rtol=1e-2)


def test_the_curriculum_shows_almost_a_token_when_cold_and_the_latent_itself_without_softmax():
    batch = tiny.batch(size=16)
    for softmax, temperature in ((True, 1e-4), (False, 0.1)):
        seen = []
        loss = UniformCurriculum(temperature=temperature, softmax=softmax)
        loss_BL, draws = run(loss, constant_net(P, seen=seen), batch)
        latent = loss.latent(draws["noise"], batch.tokens_BL, loss.times(draws))
        expected = jax.nn.one_hot(latent.argmax(-1), V) if softmax else latent
        close = np.isclose(seen[0][0], expected, rtol=1e-5, atol=0.02).all(-1).mean()
        assert close > 0.98
        assert np.isfinite(loss_BL).all()


def test_the_curriculum_needs_the_clock_of_decoding_accuracy():
    with pytest.raises(UserError, match="set clock.name=decoding_accuracy"):
        UniformCurriculum().schedule(jnp.ones(1), clock_lib.identity())


def causal_model(**changes):
    return tiny.model(causal=True, **changes)


def test_a_causal_network_has_the_same_blocks_without_time():
    plain, causal = (tiny.params(m) for m in (tiny.model(), causal_model()))
    assert set(causal) == set(plain) - {"time_embed"}
    assert set(causal["blocks"]) == set(plain["blocks"]) - {"modulation"}
    assert set(causal["final"]) == {"norm"}


def test_a_position_depends_on_itself_and_earlier_ones_only():
    model = causal_model()
    params = tiny.params(model)
    h_BLD = jax.random.normal(jax.random.key(0), (1, L, D))
    moved = h_BLD + jnp.eye(L)[:, :, None] * jnp.arange(D)[None, None]  # row j: position j differs
    outputs = model.backbone(params, jnp.concatenate([h_BLD, moved]), None)[0]
    reach = np.abs(outputs[1:] - outputs[:1]).max(-1)
    later = np.triu(np.ones((L, L), bool))  # [changed position, position that is looked at]
    assert (reach[later] > 1e-6).all() and (reach[~later] == 0).all()


@pytest.mark.parametrize(
    "changes, exact",
    [({"learned_positions": L}, 1e-5), ({"remat": "none"}, 1e-5), ({"dtype": "bfloat16"}, 0.1)],
)
def test_the_cache_changes_nothing(changes, exact):
    model = causal_model(**changes)
    net = model.net(tiny.params(model))
    tokens_BL = tiny.batch().tokens_BL
    whole = net(net.table[tokens_BL], None).posterior.features_BLD
    cache, advance = net.empty_cache(B, L), jax.jit(net.advance)
    for i in range(L):
        posterior, cache = advance(net.table[tokens_BL[:, i]][:, None], i, cache)
        np.testing.assert_allclose(posterior.features_BLD[:, 0], whole[:, i], atol=exact)


def test_a_mask_token_is_one_more_entry_in_table_and_head():
    params = tiny.params(tiny.model(mask_token=True))
    assert params["embed"]["table"].shape == (V + 1, D)
    assert params["head"]["kernel"].shape == (D, V + 1)


@pytest.mark.parametrize("knob", ["two_times", "loss_weighting"])
def test_a_causal_network_cannot_see_times(knob):
    with pytest.raises(UserError, match=f"sees no time; set model.{knob}=False"):
        causal_model(**{knob: True})


def test_the_next_token_costs_its_surprise_and_the_first_nothing():
    model, batch = causal_model(), tiny.batch()
    net = model.net(tiny.params(model))
    loss_BL, _ = run(Autoregressive(), net, batch)
    log_p = np.log(net(net.table[batch.tokens_BL], None).posterior.dense())
    nll = -np.take_along_axis(log_p[:, :-1], np.asarray(batch.tokens_BL)[:, 1:, None], -1)[..., 0]
    np.testing.assert_array_equal(loss_BL[:, 0], 0.0)
    np.testing.assert_allclose(loss_BL[:, 1:], nll, rtol=1e-4)


def test_the_mean_of_a_masked_row_is_over_the_predicted_tokens_that_count():
    model, batch = causal_model(), tiny.batch(size=2)
    net = model.net(tiny.params(model))
    nll = np.asarray(Autoregressive().next_token(net, batch.tokens_BL))
    for mask in ([1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]):
        mask_BL = jnp.tile(jnp.asarray(mask, jnp.float32)[None], (2, 1))
        loss_BL, _ = run(Autoregressive(), net, dataclasses.replace(batch, mask_BL=mask_BL))
        count_BL = mask_BL.at[:, 0].set(0.0)  # as `run` has seen it
        found = (loss_BL * count_BL).sum() / max(1.0, count_BL.sum())
        counted = np.asarray(mask, bool)[1:]
        expected = nll[:, counted].mean() if counted.any() else 0.0
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [MaskedDiffusion(), UniformDiffusion(), UniformCurriculum()])
def test_a_likelihood_bound_takes_no_learned_weight(loss):
    model = tiny.model(loss_weighting=True, **{"mask_token": loss.needs.mask_token})
    with pytest.raises(UserError, match="set model.loss_weighting=False"):
        run(loss, model.net(tiny.params(model)), tiny.batch())


@pytest.mark.parametrize(
    "make, options, sentence",
    [
        (MaskedDiffusion, {"t_min": 0.0}, "t_min=0.0 must be above 0"),
        (UniformDiffusion, {"t_min": float("nan")}, "t_min=nan must be above 0"),
        (UniformCurriculum, {"gamma_min": 1.0}, r"gamma_min=1.0 must be below gamma_max=-1.75"),
        (UniformCurriculum, {"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_bad_options_are_explained(make, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(**options)


@pytest.mark.parametrize(
    "only",
    [
        "baselines/mdlm_step",
        pytest.param("baselines/ar_s", marks=pytest.mark.slow),
        pytest.param("baselines/duo_last", marks=pytest.mark.slow),
    ],
)
def test_quick_recorded_cases_pass(shared, only):
    rows = runner.run(shared / "golden", only)
    assert rows and [row.line() for row in rows if not row.ok] == []
