"""Any-order flow maps: given tokens, kinds of rows, teachers; dense formulas, closed forms."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny
from small_nets import probabilities

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete, maps, noise, times
from flm_jax.flow.at import At, tables_of
from flm_jax.flow.net import Net
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses import ESD, LOSSES, LSD, PSD, AnyOrder, FlowMatching, given_tokens
from flm_jax.losses.base import Batch
from flm_jax.training import step as step_lib

V, L, B = 5, 4, 8
KEY = jax.random.key(0)
KINDS = dict(diagonal_fraction=0.5, boundary_fraction=0.5)  # of 8: 4 diagonal, 2 interior, 2
ALL_KINDS = dict(diagonal_fraction=0.5, boundary_fraction=0.3, at_zero_fraction=0.25)  # 3, 3, 0, 2
IDENTITY = clock_lib.identity()


def batch_of(size: int = B, length: int = L, prompt_BL=None) -> Batch:
    plain = tiny.batch(size=size, length=length, vocab_size=V)
    return dataclasses.replace(plain, prompt_BL=prompt_BL)


def all_params(dtype=jnp.float64) -> dict:
    """Student, diagonal teacher, and a masked diffusion model with one token more."""
    return {
        "student": small_nets.params(0, V, 3, dtype=dtype),
        "teacher": small_nets.params(1, V, 4, dtype=dtype),
        "masked_teacher": small_nets.params(2, V + 1, 3, dtype=dtype),
    }


def at_of(params: dict, make_space=OneHot, clock=IDENTITY) -> At:
    nets = {role: small_nets.net(p) for role, p in params.items()}
    return At(nets, make_space(tables_of(nets)), clock)


def drawn(loss, batch, space) -> dict:
    return tiny.wide(loss.draw(KEY, batch, space) | {"dropout": None})


def dense_loss(loss, params, batch, draws, given_BL, clock):
    """Loss per token with times per position and everything over the vocabulary."""
    path, fixed = loss.path(draws, clock, batch), jax.lax.stop_gradient(params)
    tau_s, tau_u, tau_t, s, u, t = (jnp.where(given_BL, 1.0, x[:, None]) for x in path)
    clean = jax.nn.one_hot(batch.tokens_BL, V, dtype=s.dtype)
    x = (1 - s)[..., None] * draws["noise"] + s[..., None] * clean
    delta = probabilities(params["student"], x, tau_s, tau_t)
    first = probabilities(fixed["student"], x, tau_s, tau_u)
    eps, lift = 1e-8, 1e-8 if loss.official else 0.0
    keep = jnp.where(given_BL, 1.0, (1 - u + lift) / (1 - s + eps))[..., None]
    x_u = keep * x + ((u - s) / (1 - s + eps))[..., None] * first
    second = probabilities(fixed["student"], x_u, tau_u, tau_t)
    weight = ((1 - t) * (u - s) / ((1 - u) * (t - s) + eps))[..., None]
    off = weight * first + (1 - weight) * second
    on = clean if loss.on_diagonal == "data" else probabilities(fixed["teacher"], x, tau_s)
    seen = jax.nn.one_hot(jnp.where(given_BL, batch.tokens_BL, V), V + 1, dtype=s.dtype)
    masked = probabilities(fixed["masked_teacher"], seen, jnp.zeros(B))[..., :V]
    zero = masked / masked.sum(-1, keepdims=True)
    group = np.repeat([0, 1, 2], loss.kinds(B).groups)[:, None, None]
    target = jnp.where(group == 0, on, jnp.where(group == 1, off, zero))
    return -jnp.sum(target * jnp.log(delta), -1)


PROMPT_BL = np.zeros((B, L), bool)
PROMPT_BL[:, 0], PROMPT_BL[5] = True, True
CASES = {
    "published": AnyOrder(**KINDS, official=True),
    "teachers, sorted pairs": AnyOrder(
        **ALL_KINDS, off_diagonal_times="uniform", on_diagonal="teacher", stratified=False
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name):
    """Float64, one-hot space; targets and other networks have no gradient."""
    with jax.enable_x64(True):
        loss, batch = CASES[name], batch_of(prompt_BL=jnp.asarray(PROMPT_BL))
        params, clock = all_params(), clock_lib.build(V)
        draws = drawn(loss, batch, at_of(params).space)
        chosen_BL = given_tokens.by_chance(draws, batch, loss.stratified)
        given_BL = chosen_BL | PROMPT_BL
        assert 4 < chosen_BL.sum() < 28

        def ours(params):
            loss_BL, count_BL, metrics = loss.evaluate(at_of(params, clock=clock), batch, draws)
            total = jnp.sum(loss_BL * count_BL) / jnp.sum(count_BL)
            return total, (loss_BL, count_BL, metrics)

        def formula(params):
            loss_BL = dense_loss(loss, params, batch, draws, given_BL, clock)
            return jnp.mean(loss_BL, where=~given_BL), loss_BL

        gradient, (loss_BL, count_BL, metrics) = jax.jit(jax.grad(ours, has_aux=True))(params)
        wanted, wanted_BL = jax.jit(jax.grad(formula, has_aux=True))(params)
        np.testing.assert_array_equal(count_BL, ~given_BL)
        np.testing.assert_allclose(loss_BL[~given_BL], wanted_BL[~given_BL], rtol=1e-9)
        for mine, expected in zip(
            *map(jax.tree.leaves, (gradient["student"], wanted["student"])), strict=True
        ):
            assert np.abs(expected).max() > 1e-4
            np.testing.assert_allclose(mine, expected, rtol=1e-7, atol=1e-11)
        assert not any(
            np.any(x)
            for role in ("teacher", "masked_teacher")
            for x in jax.tree.leaves(gradient[role])
        )
        kinds = ["loss_diagonal", "loss_off_diagonal", "loss_at_zero"]
        assert set(metrics) == set(kinds[: 2 + (loss.at_zero_fraction > 0)])


@functools.cache
def compiled(loss, make_space=OneHot):
    """(params, batch) -> PerToken on drawn numbers, float32."""

    def call(params, batch):
        at = at_of(params, make_space)
        return loss.evaluate(at, batch, loss.draw(KEY, batch, at.space))

    return jax.jit(call)


def test_with_all_tokens_given_nothing_counts_and_the_loss_is_zero():
    batch = batch_of(prompt_BL=jnp.ones((B, L), bool))
    params = all_params(jnp.float32)

    def total(student):
        loss_BL, count_BL, _ = compiled(AnyOrder(**KINDS))(params | {"student": student}, batch)
        return jnp.sum(loss_BL * count_BL) / jnp.maximum(jnp.sum(count_BL), 1.0)

    value, gradient = jax.value_and_grad(total)(params["student"])
    assert value == 0.0 and not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_without_given_tokens_it_is_the_loss_of_a_flow_map_per_token():
    """At the same times with the identity clock; the one-time loss on the diagonal alone."""
    params, batch = all_params(jnp.float32), batch_of()
    plain = AnyOrder(**KINDS, given="none")
    at = at_of(params)
    draws = plain.draw(KEY, batch, at.space)
    found = plain.evaluate(at, batch, draws)
    diagonal, tau_s, tau_t = plain.drawn_times(draws)
    psd = PSD(**KINDS, on_diagonal="data")
    theirs = psd.draw(KEY, batch, at.space) | draws
    theirs |= {"diagonal": diagonal, "diagonal_permutation": jnp.arange(B)}
    unstratified = dataclasses.replace(psd, stratified=False)
    theirs |= {"length": tau_t - tau_s, "start": tau_s / (1.0 - (tau_t - tau_s))}
    wanted = unstratified.evaluate(at, batch, theirs)
    np.testing.assert_allclose(found.loss_BL, wanted.loss_BL, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.count_BL, 1.0)

    def doubled(p, h_BLD, tau_s, tau_t, key):
        return small_nets.backbone(p, h_BLD, tau_s, tau_s, key)

    only = AnyOrder(diagonal_fraction=1.0, given="none")
    nets = {"student": Net(doubled, params["student"])}
    flm_draws = {"uniform": diagonal, "noise": draws["noise"], "dropout": draws["dropout"]}
    flm_at = At(nets, OneHot(tables_of(nets)), IDENTITY)
    flm = FlowMatching(stratified=False).evaluate(flm_at, batch, flm_draws)
    ours = only.evaluate(at, batch, draws)
    np.testing.assert_allclose(ours.loss_BL, flm.loss_BL, rtol=1e-5)


@pytest.mark.slow
def test_both_spaces_agree(monkeypatch):
    """The same dense noise; the masked teacher's table is no part of the state's.

    Seven columns see all of five tokens, so the factor is singular but for its margin.
    """
    monkeypatch.setattr(noise, "JITTER", 1e-11)
    with jax.enable_x64(True):
        loss, batch, params = CASES["teachers, sorted pairs"], batch_of(), all_params()
        noise_BLV = jax.random.normal(jax.random.key(2), (B, L, V), jnp.float64)
        found = []
        for make_space in (OneHot, Projected):
            at = at_of(params, make_space)
            assert set(at.space.tables) == {"student", "teacher"}
            draws = drawn(loss, batch, at.space) | {"noise": at.space.from_dense(noise_BLV)}
            found.append(loss.evaluate(at, batch, draws).loss_BL)
        np.testing.assert_allclose(*found, rtol=1e-5)
        assert np.ptp(found[0]) > 0.1


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_rows_dealt_to_micro_batches_have_the_loss_they_have_in_the_whole_batch(parts):
    """Three diagonal rows and two at zero do not divide; given tokens are the same."""
    loss, params = AnyOrder(**ALL_KINDS), all_params(jnp.float32)
    whole = batch_of()
    wanted = compiled(loss)(params, whole)
    dealt = step_lib.split_batch(whole.tokens_BL, whole.mask_BL, parts)
    for i in range(parts):
        found = compiled(loss)(params, jax.tree.map(lambda x, i=i: x[i], dealt))
        np.testing.assert_array_equal(found.count_BL, wanted.count_BL[i::parts])
        open_BL = found.count_BL > 0
        mine, theirs = found.loss_BL[open_BL], wanted.loss_BL[i::parts][open_BL]
        np.testing.assert_allclose(mine, theirs, rtol=2e-4, atol=2e-6)


def test_every_number_of_given_tokens_is_as_likely_as_any_other():
    """f ~ U(0, 1) makes the number of given tokens uniform on 0 .. L."""
    size = 4096
    batch = batch_of(size)
    draws = given_tokens.draw(KEY, batch)
    for stratified in (True, False):
        given_BL = given_tokens.by_chance(draws, batch, stratified)
        share = np.bincount(given_BL.sum(-1), minlength=L + 1) / size
        np.testing.assert_allclose(share, 1 / (L + 1), atol=5 * (0.16 / size) ** 0.5)
        np.testing.assert_allclose(given_BL.mean(0), 0.5, atol=0.04)  # positions are alike
    shares_N = times.stratified(draws["share"], draws["share_permutation"])
    strata_N = np.sort(np.floor(shares_N * size + 1e-3))
    assert (np.abs(strata_N - np.arange(size)) <= 1).all()  # one sequence in each


@pytest.mark.parametrize("way", ["uniform_diff", "uniform"])
def test_times_are_made_of_a_start_and_a_length(way):
    loss, batch = AnyOrder(off_diagonal_times=way), batch_of(64)
    draws = loss.draw(KEY, batch, at_of(all_params(jnp.float32)).space)
    assert "diagonal" not in draws
    diagonal, tau_s, tau_t = loss.drawn_times(draws)
    start, length = loss.drawn(draws, "start"), loss.drawn(draws, "length")
    assert (0 <= tau_s).all() and (tau_s <= tau_t).all() and (tau_t < 1).all()
    if way == "uniform_diff":
        np.testing.assert_allclose(diagonal, length, atol=1e-6)
        np.testing.assert_allclose(tau_s, start * (1 - length), rtol=1e-6)
    else:
        np.testing.assert_array_equal(np.sort([start, length], axis=0), [tau_s, tau_t])
        np.testing.assert_allclose(diagonal, tau_s / tau_t, rtol=1e-4)


def test_the_published_form_does_not_count_tokens_without_loss():
    """A network that is certain of every token: nothing is left to divide by."""
    batch = batch_of()

    def certain(params, h_BLD, *_):
        return 30.0 * jax.nn.one_hot(batch.tokens_BL, V), None

    head = {"kernel": jnp.eye(V), "bias": jnp.zeros(V)}
    net = Net(certain, {"embed": {"table": jnp.eye(V)}, "head": head}, logit_cap=0.0)
    at = At({"student": net}, OneHot({"student": net.table}), IDENTITY)
    counts = {}
    for official in (False, True):
        loss = AnyOrder(diagonal_fraction=1.0, official=official)
        found = loss.evaluate(at, batch, loss.draw(KEY, batch, at.space))
        counts[official] = found.count_BL.sum()
        assert not (found.loss_BL * found.count_BL).any()
    assert counts[True] == 0.0 and counts[False] > 4


@pytest.mark.parametrize("name", ["psd", "lsd", "esd"])
def test_other_flow_map_objectives_take_given_tokens(name):
    """What is open learns from a state in which given tokens stay as they are, at time 1."""
    options = {"on_diagonal": "data", "given": "uniform", "diagonal_fraction": 0.25}
    options |= {"start": "self"} if name == "esd" else {}
    loss = config_lib.build(LOSSES, name, options, "loss")
    assert loss.needs.given and not type(loss)(on_diagonal="data").needs.given
    seen = []

    def seen_by(params, h_BLD, tau_s, tau_t, key, given_BL):
        seen.append((h_BLD, given_BL))
        return small_nets.backbone(params, h_BLD, tau_s, tau_t, key, given_BL)

    params, batch = all_params(jnp.float32)["student"], batch_of()
    net = small_nets.net(params, seen_by=seen_by)
    at = At({"student": net}, OneHot({"student": net.table}), IDENTITY)
    found = loss.evaluate(at, batch, loss.draw(KEY, batch, at.space))
    assert np.isfinite(found.loss_BL).all() and found.count_BL.any()
    clean_BLD, rows = np.asarray(net.table[batch.tokens_BL]), slice(2, None)
    heard = 0
    for h_BLD, given_BL in seen[1:]:
        if isinstance(h_BLD, jax.core.Tracer):  # inside a derivative
            continue
        open_BL = np.asarray(found.count_BL[rows] > 0)
        np.testing.assert_array_equal(given_BL, ~open_BL)
        np.testing.assert_allclose(h_BLD[~open_BL], clean_BLD[rows][~open_BL], atol=1e-6)
        heard += 1
    assert heard >= 1


def test_the_derivative_targets_are_those_of_times_per_position():
    """LSD and ESD with given tokens against the same tokens as rows of a smaller problem.

    A network without attention says of an open token what it says where nothing is given.
    """

    def lonely(params, h_BLD, tau_s, tau_t, key, given_BL=None):
        pair = jnp.stack([tau_s, tau_t], -1) @ params["times"]
        pair = pair[:, None]
        if given_BL is not None:
            pair = jnp.where(given_BL[..., None], jnp.sum(params["times"], 0)[None, None], pair)
        return jnp.tanh(h_BLD @ params["in"] + pair) @ params["out"], None

    params, batch = all_params(jnp.float32)["student"], batch_of()
    net = small_nets.net(params, seen_by=lonely)
    at = At({"student": net}, OneHot({"student": net.table}), IDENTITY)
    for make in (
        functools.partial(LSD, boundary_fraction=0.2),
        functools.partial(ESD, start="self"),
        functools.partial(PSD, distance="squared", rescale=True),
    ):
        some, none = (make(on_diagonal="data", given=given) for given in ("uniform", "none"))
        draws = some.draw(KEY, batch, at.space) | {"dropout": None}
        found, plain = (loss.evaluate(at, batch, draws) for loss in (some, none))
        open_BL = np.asarray(found.count_BL > 0)
        assert 4 < open_BL.sum() < 28
        np.testing.assert_allclose(found.loss_BL[open_BL], plain.loss_BL[open_BL], rtol=1e-5)


def test_a_masked_model_is_asked_with_its_mask_at_open_tokens_and_time_zero():
    seen = []

    def backbone(params, h_BLD, tau_s, tau_t, key):
        seen.append((h_BLD, tau_s, key))
        return h_BLD, None

    head = {"kernel": jnp.eye(V + 1), "bias": jnp.zeros(V + 1)}
    net = Net(backbone, {"embed": {"table": jnp.eye(V + 1)}, "head": head}, logit_cap=0.0)
    tokens_BL = jnp.asarray([[3, 1, 0]])
    output = discrete.predict_masked(net, tokens_BL, jnp.asarray([[False, True, True]]))
    h_BLD, tau, key = seen[0]
    np.testing.assert_array_equal(jnp.argmax(h_BLD, -1), [[3, V, V]])
    assert not tau.any() and key is None
    p = output.posterior.dense()
    assert p.shape == (1, 3, V) and np.allclose(p[0, 1:], 1 / V)  # the mask is never predicted
    assert p[0, 0, 3] == pytest.approx(np.e / (np.e + V - 1))


def test_a_jump_keeps_given_states_and_lifts_the_others():
    s, t = jnp.asarray([0.0, 0.5, 1.0]), jnp.asarray([0.5, 1.0, 1.0])
    keep, add = maps.jump(s, t, 1e-2, lift=1e-2)
    np.testing.assert_allclose(keep, [0.51 / 1.01, 0.01 / 0.51, 1.0], rtol=1e-6)
    np.testing.assert_allclose(add, [0.5 / 1.01, 0.5 / 0.51, 0.0], rtol=1e-6)


def test_which_networks_it_needs():
    assert AnyOrder().needs.given and AnyOrder().needs.two_times
    assert not (AnyOrder().needs.teacher or AnyOrder().needs.masked_teacher)
    assert AnyOrder(on_diagonal="teacher").needs.teacher
    assert AnyOrder(at_zero_fraction=0.25).needs.masked_teacher
    assert not AnyOrder(given="none").needs.given


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"given": "some"}, "given='some' is unknown; choose 'none' or 'uniform'"),
        ({"at_zero_fraction": 1.5}, r"at_zero_fraction=1.5 must be in \[0, 1\]"),
        ({"off_diagonal_times": "uniform_st"}, "choose 'uniform_diff' or 'uniform'"),
    ],
)
def test_wrong_options_are_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        config_lib.build(LOSSES, "any_order", options, "loss")
