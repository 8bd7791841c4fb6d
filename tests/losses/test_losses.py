"""Losses against closed forms, in both state spaces, and every row of the table once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import special

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.at import At
from flm_jax.flow.net import Net
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses import LOSSES, PSD
from flm_jax.losses.base import Batch, weighted
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.training import step as step_lib

V, L, D = tiny.V, tiny.L, tiny.D
CLOCK = tiny.clock()
SPACES = {"onehot": OneHot, "projected": Projected}


def lambda_net(backbone, width: int = D, **options) -> Net:
    """A network with a random table, no bias and the identity (or zeros) as its head."""
    params = {
        "embed": {"table": jax.random.normal(jax.random.key(5), (V, width))},
        "head": {"kernel": jnp.eye(width, V), "bias": jnp.zeros(V)},
    }
    return Net(backbone, params, **options)


def flat(params, h_BLD, tau_s, tau_t, key):
    """Features of the uniform posterior."""
    return jnp.zeros_like(h_BLD), None


def run(loss, net, batch, seed=0, make_space=OneHot):
    space = make_space({"student": net.table})
    draws = loss.draw(jax.random.key(seed), batch, space)
    return loss.evaluate(At({"student": net}, space, CLOCK), batch, draws)


@pytest.mark.parametrize("make_space", SPACES.values())
def test_a_uniform_posterior_costs_ln_v_at_every_token(make_space):
    loss_BL, _, metrics = run(FlowMatching(), lambda_net(flat), tiny.batch(), make_space=make_space)
    np.testing.assert_allclose(loss_BL, np.full((4, L), np.log(V)), rtol=1e-6)
    np.testing.assert_array_equal(metrics["nll"], loss_BL)


@pytest.mark.parametrize("make_space", SPACES.values())
def test_a_perfect_posterior_costs_nothing(make_space):
    batch = tiny.batch()

    def oracle(params, h_BLD, tau_s, tau_t, key):
        return 60.0 * jax.nn.one_hot(batch.tokens_BL, V), None

    net = lambda_net(oracle, width=V, logit_cap=0.0)
    loss_BL, *_ = run(FlowMatching(), net, batch, make_space=make_space)
    np.testing.assert_allclose(loss_BL, 0.0, atol=1e-6)


def test_a_posterior_wrong_by_a_known_amount():
    """One logit of a at the true token: loss = ln(e^a + V - 1) - a."""
    batch, a = tiny.batch(), 1.5
    net = lambda_net(
        lambda params, h, *_: (a * jax.nn.one_hot(batch.tokens_BL, V), None), V, logit_cap=0.0
    )
    loss_BL, *_ = run(FlowMatching(), net, batch)
    np.testing.assert_allclose(loss_BL, np.log(np.exp(a) + V - 1) - a, rtol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, L)])
def test_the_learned_weight_enters_as_exp_minus_w_times_loss_plus_w(shape):
    w = jnp.linspace(-1.0, 1.0, int(np.prod(shape))).reshape(shape)
    net = lambda_net(lambda params, h, *_: (jnp.zeros_like(h), w))
    loss_BL, _, metrics = run(FlowMatching(), net, tiny.batch())
    w_BL = np.broadcast_to(np.asarray(w).reshape(4, -1), (4, L))
    np.testing.assert_allclose(loss_BL, np.exp(-w_BL) * np.log(V) + w_BL, rtol=1e-6)
    np.testing.assert_allclose(metrics["nll"], np.full((4, L), np.log(V)), rtol=1e-6)


def test_without_a_weight_the_loss_is_untouched():
    loss_BL = jnp.ones((2, 3))
    assert weighted(loss_BL, None) is loss_BL


def seen_by(loss, batch, seed=0, make_space=OneHot):
    """(h, tau) that the network is shown, and the loss."""
    seen = []

    def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None):
        tau = tau_s if given_BL is None else jnp.where(given_BL, 1.0, tau_s[:, None])
        seen.append((h_BLD, tau))
        return jnp.zeros_like(h_BLD), None

    net = lambda_net(backbone)
    losses = run(loss, net, batch, seed, make_space)
    return *seen[0], losses, net.table


@pytest.mark.parametrize(
    "options",
    [{"given_fraction": 0.5}, {"given": "uniform"}, {"given": "uniform", "given_none": 0.25}],
)
@pytest.mark.parametrize("make_space", SPACES.values())
def test_given_tokens_are_seen_clean_and_do_not_count(make_space, options):
    batch = tiny.batch()
    h_BLD, tau_BL, losses, table = seen_by(FlowMatching(**options), batch, 1, make_space)
    given = np.asarray(tau_BL) == 1.0
    assert 4 < given.sum() < 20
    clean = np.asarray(table[batch.tokens_BL])
    np.testing.assert_allclose(np.asarray(h_BLD)[given], clean[given], rtol=1e-6)
    assert np.abs(np.asarray(h_BLD) - clean)[~given].max(-1).min() > 1e-3
    np.testing.assert_array_equal(losses.count_BL, ~given)
    np.testing.assert_allclose(np.asarray(losses.loss_BL)[~given], np.log(V), rtol=1e-6)


@pytest.mark.parametrize("make", [FlowMatching, functools.partial(PSD, on_diagonal="data")])
def test_a_share_of_the_rows_has_no_given_token_and_the_others_are_as_before(make):
    batch, size, none = tiny.batch(size=64, length=40), 64, 0.25
    space = OneHot({"student": lambda_net(flat).table})
    plain, fewer = (make(given="uniform", given_none=n) for n in (0.0, none))
    draws, others = (loss.draw(jax.random.key(0), batch, space) for loss in (plain, fewer))
    assert draws.pop("dropout") == others.pop("dropout")
    jax.tree.map(np.testing.assert_array_equal, draws, others)
    strata_N = (draws["share"] + np.arange(size)) / size
    share_N = strata_N[draws["share_permutation"]]
    np.testing.assert_array_equal(plain.given_BL(draws, batch), draws["chance"] < share_N[:, None])
    given_BL = np.asarray(fewer.given_BL(draws, batch))
    empty_B = share_N < none
    assert empty_B.sum() == 16 and not given_BL[empty_B].any()
    wanted_B = (share_N[~empty_B] - none) / (1 - none)
    counts_B = (draws["chance"][~empty_B] < wanted_B[:, None]).sum(1)
    np.testing.assert_array_equal(given_BL[~empty_B].sum(1), counts_B)
    assert counts_B.max() > 30


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.2, 0.6)])
def test_logit_normal_times_are_the_quantiles_of_the_strata(low, high):
    """One in every stratum of the distribution; its logits are normal."""
    n, batch = 256, tiny.batch(size=256)
    loss = FlowMatching(tau_min=low, tau_max=high, tau_spread=0.8, tau_centre=-0.5)
    space = OneHot({"student": lambda_net(flat).table})
    tau_N = np.asarray(loss.times(loss.draw(jax.random.key(0), batch, space)), float)
    unit_N = np.sort((tau_N - low) / (high - low))
    quantile_N = special.ndtr((special.logit(unit_N) + 0.5) / 0.8)
    np.testing.assert_array_equal(np.floor(quantile_N * n + 2e-3), np.arange(n))
    assert (np.diff(tau_N) < 0).any(), "times must not come in order"
    ends = FlowMatching(tau_spread=1.0, stratified=False).times({"uniform": jnp.zeros(1)})
    np.testing.assert_array_equal(ends, 0.0)


def test_the_network_sees_tau_and_the_state_has_physical_time():
    """With zero noise h is t(tau) * E[y]."""
    batch, loss, clock = tiny.batch(), FlowMatching(), CLOCK
    seen = []
    net = lambda_net(lambda p, h, tau, *_: (seen.append((h, tau)), (0 * h, None))[1])
    space = OneHot({"student": net.table})
    draws = loss.draw(jax.random.key(0), batch, space)
    draws["noise"] = jnp.zeros_like(draws["noise"])
    loss.evaluate(At({"student": net}, space, clock), batch, draws)
    h_BLD, tau_B = seen[0]
    np.testing.assert_array_equal(tau_B, loss.times(draws))
    expected = clock.to_t(tau_B)[:, None, None] * net.table[batch.tokens_BL]
    np.testing.assert_allclose(h_BLD, expected, rtol=1e-5)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (0.25, 0.5)])
@pytest.mark.parametrize("parts", [1, 4])
def test_times_cover_every_stratum_of_the_global_batch(low, high, parts):
    """Also when the batch is cut for accumulation: the parts share one stratified draw."""
    whole = tiny.batch(size=16)
    batches = step_lib.split_batch(whole.tokens_BL, whole.mask_BL, parts)
    loss = FlowMatching(tau_min=low, tau_max=high)
    taus = [
        seen_by(loss, jax.tree.map(lambda x, i=i: x[i], batches), seed=3)[1] for i in range(parts)
    ]
    unit = (np.sort(np.concatenate(taus)) - low) / (high - low)
    np.testing.assert_array_equal(np.floor(unit * 16 + 1e-4), np.arange(16))
    assert (np.diff(np.concatenate(taus)) < 0).any(), "times must not come in order"


def test_independent_times_are_as_drawn():
    loss, batch = FlowMatching(stratified=False), tiny.batch(size=64)
    draws = loss.draw(jax.random.key(0), batch, OneHot({"student": lambda_net(flat).table}))
    np.testing.assert_array_equal(loss.times(draws), draws["uniform"])
    assert (np.histogram(draws["uniform"], 64, (0, 1))[0] == 0).any()


def test_a_micro_batch_draws_the_same_noise_as_the_whole_batch():
    whole = tiny.batch(size=8)
    part = Batch(whole.tokens_BL[2::4], whole.mask_BL[2::4], whole.index_B[2::4], 8)
    space = Projected({"student": lambda_net(flat).table})
    loss = FlowMatching(given_fraction=0.5)
    all_draws, draws = (loss.draw(jax.random.key(1), b, space) for b in (whole, part))
    for name in ("noise", "given"):
        np.testing.assert_array_equal(draws[name], all_draws[name][2::4])
    np.testing.assert_array_equal(loss.times(draws), loss.times(all_draws))


def test_dropout_follows_the_draws():
    model = tiny.model(dropout=0.5)
    net, batch, loss = model.net(tiny.params(model)), tiny.batch(), FlowMatching()
    space = OneHot({"student": net.table})
    draws = loss.draw(jax.random.key(0), batch, space)
    call = jax.jit(lambda d: loss.evaluate(At({"student": net}, space, CLOCK), batch, d)[0])
    np.testing.assert_array_equal(call(draws), call(draws))
    assert np.abs(call(draws) - call({**draws, "dropout": jax.random.key(9)})).max() > 1e-3


def test_both_spaces_agree_in_value_and_gradient_of_the_backbone():
    """The same dense noise through from_dense, float64."""
    with jax.enable_x64(True):
        model, batch, clock = tiny.model(), tiny.batch(), clock_lib.build(V)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.params(model))
        noise = jax.random.normal(jax.random.key(2), (*batch.tokens_BL.shape, V), jnp.float64)
        loss = FlowMatching(given_fraction=0.2)

        def value(params, make_space, raw):
            net = model.net(params)
            space = make_space({"student": net.table})
            draws = loss.draw(jax.random.key(0), batch, space) | {"noise": raw}
            loss_BL, *_ = loss.evaluate(At({"student": net}, space, clock), batch, draws)
            return jnp.mean(loss_BL), loss_BL

        results = []
        for make in SPACES.values():
            raw = make({"student": params["embed"]["table"]}).from_dense(noise)
            call = jax.jit(jax.grad(value, has_aux=True), static_argnums=1)
            results.append(call(params, make, raw))
        (dense, dense_loss), (projected, projected_loss) = results
        assert dense_loss.dtype == jnp.float64
        np.testing.assert_allclose(projected_loss, dense_loss, rtol=1e-9)
        dense.pop("embed"), projected.pop("embed")  # its gradient is conditioned on what is seen
        for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(projected), strict=True):
            assert np.abs(a).max() > 0
            np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("make_space", [Projected, pytest.param(OneHot, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LOSSES)
def test_every_row_runs_and_has_a_finite_gradient_in_both_spaces(name, make_space):
    loss = config_lib.build(LOSSES, name, {}, "loss")
    assert dataclasses.is_dataclass(loss) and hash(loss) == hash(loss)
    model = tiny.model(**tiny.needs(loss))
    params = tiny.params(model)
    batch, clock = tiny.batch(size=8), CLOCK
    teacher = tiny.model().net(tiny.params(tiny.model(), seed=1))
    others = tiny.params(model, seed=2)

    def mean(params, key):
        nets = {"student": model.net(params)}
        if loss.needs.teacher:
            nets["teacher"] = teacher
        if loss.needs.residual:
            nets["residual"] = model.net(others)
        nets |= {role: model.net(kept) for role, kept in loss.first_state(others).items()}
        space = make_space({role: net.table for role, net in nets.items()})
        draws = loss.draw(key, batch, space)
        loss_BL, count_BL, metrics = loss.evaluate(At(nets, space, clock), batch, draws)
        assert loss_BL.shape == batch.tokens_BL.shape and loss_BL.dtype == jnp.float32
        assert all(value.shape == loss_BL.shape for value in (count_BL, *metrics.values()))
        return jnp.mean(loss_BL)

    call = jax.jit(jax.value_and_grad(mean))
    value, gradient = call(params, jax.random.key(0))
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.abs(gradient["embed"]["table"]).max() > 0


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"tau_max": 2.0}, r"tau_min=0.0, tau_max=2.0: need 0 <= tau_min < tau_max <= 1"),
        ({"tau_min": 0.5, "tau_max": 0.5}, "need 0 <= tau_min < tau_max <= 1"),
        ({"tau_min": float("nan")}, "tau_min"),
        ({"given_fraction": 1.0}, r"given_fraction=1.0 must be in \[0, 1\)"),
        ({"given_fraction": -0.1}, r"given_fraction=-0.1 must be in \[0, 1\)"),
        ({"given": "some"}, "given='some' is unknown; choose 'constant' or 'uniform'"),
        (
            {"given": "uniform", "given_fraction": 0.1},
            "given='uniform' draws the share of given tokens, so given_fraction=0.1 has no effect",
        ),
        ({"given_none": 1.0, "given": "uniform"}, r"given_none=1.0 must be in \[0, 1\)"),
        ({"given_none": 0.5}, "a share of the sequences of given='uniform', but given='constant'"),
        ({"tau_spread": -1.0}, "tau_spread=-1.0 must be at least 0; 0 is U"),
        ({"tau_centre": 1.0}, "tau_centre=1.0 has no effect without tau_spread"),
        ({"given_fracton": 0.1}, "has no option 'given_fracton'; did you mean given_fraction"),
        ({"stratified": "perhaps"}, "must be true or false"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        config_lib.build(LOSSES, "flow_matching", options, "loss")
