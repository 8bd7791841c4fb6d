"""The first version of the method: both stages against their dense formulas, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny
from small_nets import probabilities

from flm_jax import config as config_lib
from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses import LOSSES, Residual, SecondStage
from flm_jax.training import step as step_lib

V, L, B, EPS = 5, 3, 8, 1e-5
KEY = jax.random.key(3)
WIDTHS = {"student": 3, "teacher": 4, "residual": 3}


def all_params(dtype=jnp.float64):
    return {
        role: small_nets.params(i, V, width, dtype=dtype)
        for i, (role, width) in enumerate(WIDTHS.items())
    }


def raw_logits(params, x, tau_s, tau_t):
    """g, (B, L, V): no cap, no softmax."""
    features, _ = small_nets.backbone(params, x @ params["embed"]["table"], tau_s, tau_t, None)
    return features @ params["head"]["kernel"] + params["head"]["bias"][None, None, :]


def velocity(params, x, tau, t):
    return (probabilities(params, x, tau) - x) / (1 - t + EPS)


def residual_formula(params, fixed, x, path, official):
    """|| x + (1 - s) v - (f + (t - s)(1 - s) / 2 g) ||^2, v the mean velocity of two half jumps."""
    s, u, t = (time[:, None, None] for time in (path.s, path.u, path.t))
    first = velocity(fixed["teacher"], x, path.tau_s, s)
    g_su = raw_logits(fixed["student"], x, path.tau_s, path.tau_u)
    x_u = x + (u - s) * first + 0.5 * (u - s) ** 2 * g_su
    second = velocity(fixed["teacher"], x_u, path.tau_u, u)
    g_ut = raw_logits(fixed["student"], x_u, path.tau_u, path.tau_t)
    a, b = first + 0.5 * (u - s) * g_su, second + 0.5 * (t - u) * g_ut
    target = x + (1 - s) * ((u - s) * a + (t - u) * b) / (t - s)
    if not official:  # the share of the state that eps leaves over
        left, x_share = 1 - s + EPS, (u - s) / (t - s)
        of_u = (t - u) / (t - s) / (1 - u + EPS)
        target = target - (1 - (1 - s) * (x_share / left + of_u * (1 - (u - s) / left))) * x
    g = raw_logits(params["student"], x, path.tau_s, path.tau_t)
    f = probabilities(fixed["teacher"], x, path.tau_s)
    return jnp.sum((target - f - 0.5 * (t - s) * (1 - s) * g) ** 2, axis=-1)


def second_formula(params, fixed, x, path):
    """|| X of f and g - X of delta ||^2, both with eps in the velocity."""
    s, _, t = (time[:, None, None] for time in (path.s, path.u, path.t))
    g = raw_logits(fixed["residual"], x, path.tau_s, path.tau_t)
    both = x + (t - s) * velocity(fixed["teacher"], x, path.tau_s, s) + 0.5 * (t - s) ** 2 * g
    delta = probabilities(params["student"], x, path.tau_s, path.tau_t)
    return jnp.sum((both - x - (t - s) * (delta - x) / (1 - s + EPS)) ** 2, axis=-1)


CASES = {
    "residual": Residual(boundary_fraction=0.3),
    "residual official": Residual(boundary_fraction=0.3, official_residue=True),
    "second stage": SecondStage(boundary_fraction=0.3),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name):
    """Targets have no gradient, other networks get none."""
    loss, batch = CASES[name], tiny.batch(size=B, length=L, vocab_size=V)
    with jax.enable_x64(True):
        params, clock = all_params(), clock_lib.build(V)
        space = OneHot({role: p["embed"]["table"] for role, p in params.items()})
        draws = tiny.wide(loss.draw(KEY, batch, space) | {"dropout": None})
        path = loss.path(draws, clock, batch)
        assert 0 < np.sum(path.tau_t - path.tau_s == 1.0) < B

        def ours(params):
            nets = {role: small_nets.net(p) for role, p in params.items()}
            space = OneHot({role: net.table for role, net in nets.items()})
            loss_BL, _, metrics = loss.evaluate(At(nets, space, clock), batch, draws)
            return jnp.mean(loss_BL), (loss_BL, metrics["squared_error"])

        def formula(params):
            s = path.s[:, None, None]
            x = (1 - s) * draws["noise"] + s * jax.nn.one_hot(batch.tokens_BL, V)
            fixed = jax.lax.stop_gradient(params)
            if name == "second stage":
                loss_BL = second_formula(params, fixed, x, path)
            else:
                loss_BL = residual_formula(params, fixed, x, path, loss.official_residue)
            return jnp.mean(loss_BL), loss_BL

        gradient, (loss_BL, metric_BL) = jax.jit(jax.grad(ours, has_aux=True))(params)
        wanted, wanted_BL = jax.jit(jax.grad(formula, has_aux=True))(params)
    np.testing.assert_allclose(loss_BL, wanted_BL, rtol=1e-9)
    np.testing.assert_array_equal(metric_BL, loss_BL)
    for a, b in zip(*map(jax.tree.leaves, (gradient["student"], wanted["student"])), strict=True):
        assert np.abs(b).max() > 1e-6
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-10)
    others = jax.tree.leaves((gradient["teacher"], gradient["residual"]))
    assert len(others) == 12 and not any(np.any(x) for x in others)


def evaluated(loss, params, batch, make_space, noise, roles=WIDTHS):
    clock = clock_lib.build(V)

    def call(params):
        nets = {role: small_nets.net(params[role]) for role in roles}
        space = make_space({role: net.table for role, net in nets.items()})
        draws = loss.draw(KEY, batch, space) | {"dropout": None}
        if noise is not None:
            draws["noise"] = space.from_dense(noise)
        return loss.evaluate(At(nets, space, clock), batch, draws)[0]

    return np.asarray(jax.jit(call)(params))


@pytest.mark.parametrize("loss", [Residual(), SecondStage()])
def test_both_spaces_agree(loss):
    batch = tiny.batch(size=B, length=L, vocab_size=V)
    with jax.enable_x64(True):
        noise = jax.random.normal(jax.random.key(1), (B, L, V), jnp.float64)
        roles = ("student", "teacher") + ("residual",) * isinstance(loss, SecondStage)
        narrow = {r: small_nets.params(i, V, 2 - (i == 2)) for i, r in enumerate(roles)}
        dense, lazy = (evaluated(loss, narrow, batch, s, noise, roles) for s in (OneHot, Projected))
    np.testing.assert_allclose(lazy, dense, rtol=2e-3)
    assert dense.min() > 0


@pytest.mark.parametrize("loss", [Residual(), SecondStage()])
def test_rows_dealt_to_micro_batches_have_the_loss_they_have_in_the_whole_batch(loss):
    whole, params = tiny.batch(size=B, length=L, vocab_size=V), all_params(jnp.float32)
    loss_BL = evaluated(loss, params, whole, Projected, None)
    parts = step_lib.split_batch(whole.tokens_BL, whole.mask_BL, 2)
    for i in range(2):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        part_BL = evaluated(loss, params, part, Projected, None)
        np.testing.assert_allclose(part_BL, loss_BL[i::2], rtol=2e-4, atol=1e-6)


def test_a_denoiser_that_is_its_own_flow_map_needs_no_correction():
    """f constant and g zero: half jumps and whole jump agree but for the share of eps."""
    params = all_params(jnp.float32)
    params["teacher"]["out"] *= 0.0
    params["student"]["head"] = jax.tree.map(jnp.zeros_like, params["student"]["head"])
    batch = tiny.batch(size=B, length=L, vocab_size=V)
    assert evaluated(Residual(), params, batch, OneHot, None).max() < 1e-4
    params["residual"]["head"] = params["student"]["head"]
    params["student"] = params["student"] | {
        "head": {"kernel": jnp.zeros((3, V)), "bias": params["teacher"]["head"]["bias"]}
    }
    assert evaluated(SecondStage(), params, batch, OneHot, None).max() < 1e-9


def test_lengths_are_stratified_and_the_share_of_whole_ways_is_as_asked():
    size, space = 256, OneHot({"student": jnp.zeros((V, 2))})
    batch, clock = tiny.batch(size=size, length=1, vocab_size=V), clock_lib.build(V)
    loss = Residual(boundary_fraction=0.0, min_length=0.01)
    path = loss.path(loss.draw(KEY, batch, space), clock, batch)
    length = np.asarray(path.tau_t - path.tau_s)
    assert len(np.unique(np.floor(length * size))) > size - 8 and length.min() > 0.0099
    assert (path.tau_s >= 0).all() and path.tau_t.max() <= 1 + 1e-6
    np.testing.assert_allclose(path.tau_u, (path.tau_s + path.tau_t) / 2, rtol=1e-5)
    np.testing.assert_allclose(path.u, clock.to_t(path.tau_u), rtol=1e-6)
    loss = Residual(boundary_fraction=0.25)
    path = loss.path(loss.draw(KEY, batch, space), clock, batch)
    whole = np.asarray((path.tau_s == 0.0) & (path.tau_t == 1.0))
    assert abs(whole.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / size)


def test_what_the_stages_need():
    assert Residual().needs == Needs(teacher=True, two_times=True)
    assert SecondStage().needs == Needs(teacher=True, residual=True, two_times=True)
    assert (Residual().boundary_fraction, SecondStage().boundary_fraction) == (1 / 64, 1 / 128)


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("residual", {"boundary_fraction": 2.0}, r"boundary_fraction=2.0 must be in \[0, 1\]"),
        ("second_stage", {"min_length": 0.0}, "min_length=0.0 must be above 0, below 1"),
        ("second_stage", {"official_residue": True}, "has no option 'official_residue'"),
        ("residual", {"eps": 0.0}, "eps=0.0 must be above 0; official: 1e-5"),
    ],
)
def test_wrong_options_are_one_sentence(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        config_lib.build(LOSSES, name, options, "loss")


def test_the_official_residue_needs_the_one_hot_space():
    batch, params = tiny.batch(size=B, length=L, vocab_size=V), all_params(jnp.float32)
    with pytest.raises(UserError, match="official_residue=True needs the one-hot space"):
        evaluated(Residual(official_residue=True), params, batch, Projected, None)
