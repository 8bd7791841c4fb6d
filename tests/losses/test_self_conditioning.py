"""Self-conditioning in training: who sees an estimate, which one, and that it is a constant."""

import dataclasses
import functools

import given_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.flow import clock as clock_lib
from flm_jax.flow.net import Net
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses.base import Batch
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.losses.self_conditioning import Told

V, N, L = given_nets.V, 6, 5
CLOCK = clock_lib.build(V)
HALF = np.arange(N) < N // 2
WITH_GIVEN = FlowMatching(given="uniform")


def network(scale: float = 0.5, seen_by=given_nets.backbone, dtype=jnp.float32) -> Net:
    made = given_nets.net(dtype=dtype, seen_by=seen_by)
    return given_nets.told(made, scale=scale)


def part(size: int = N, parts: int = 1, which: int = 0) -> Batch:
    """One of the micro-batches that a global batch is dealt into."""
    whole = tiny.batch(size=size, length=L, vocab_size=V)
    index_B = jnp.arange(which, size, parts)
    return Batch(whole.tokens_BL[index_B], whole.mask_BL[index_B], index_B, size)


def draws_of(loss, batch, space, dense=None):
    found = loss.draw(jax.random.key(1), batch, space)
    found.pop("dropout")
    return found if dense is None else tiny.wide(found) | {"noise": space.from_dense(dense)}


def loss_BL(loss, net, batch, make_space=OneHot, dense=None):
    @jax.jit  # much faster here than operation by operation
    def call(params, batch, dense):
        at = tiny.at({"student": dataclasses.replace(net, params=params)}, make_space, CLOCK)
        return loss.evaluate(at, batch, draws_of(loss, batch, at.space, dense)).loss_BL

    return call(net.params, batch, dense)


@functools.partial(jax.jit, static_argnums=(0, 3))
def by_hand(loss, params, batch, make_space, estimate_BLD=None):
    """The loss of the second pass; with the estimates that are given, or with its own, written out.

    Returns (loss (B, L), estimates (B, L, D), given (B, L))."""
    net = dataclasses.replace(network(), params=params)
    at = tiny.at({"student": net}, make_space, CLOCK)
    draws = draws_of(loss, batch, at.space)
    tau_B, given_BL = loss.times(draws)[batch.index_B], loss.given_BL(draws, batch)
    t = jnp.where(given_BL, 1.0, CLOCK.to_t(tau_B)[:, None])
    h_BLD = at.space.view(at.space.corrupt(draws["noise"], batch.tokens_BL, t), "student")
    if estimate_BLD is None:
        p_BLV = net(h_BLD, tau_B, given_BL=given_BL).posterior.dense()
        p_BLV = jnp.where(given_BL[..., None], jax.nn.one_hot(batch.tokens_BL, V), p_BLV)
        estimate_BLD = jnp.where(HALF[:, None, None], p_BLV @ net.table, 0.0)
    features_BLD, _ = net.backbone(params, h_BLD, tau_B, None, None, given_BL, estimate_BLD)
    logits = features_BLD @ params["head"]["kernel"] + params["head"]["bias"][None, None]
    log_p = jax.nn.log_softmax(30.0 * jnp.tanh(logits / 30.0))
    own = -jnp.take_along_axis(log_p, batch.tokens_BL[..., None], -1)[..., 0]
    return own, estimate_BLD, given_BL


@pytest.mark.parametrize("make_space", [OneHot, Projected])
def test_half_of_the_rows_see_their_first_estimate_which_is_a_constant(make_space):
    """Value and gradient, that of the table included, are those with the estimate as a number."""
    batch, params = part(), network().params
    wanted, estimate_BLD, given_BL = by_hand(WITH_GIVEN, params, batch, make_space)
    assert given_BL.any() and not given_BL.all()

    def mean(params, f):
        loss_BL = f(params)
        return jnp.mean(jnp.where(given_BL, 0.0, loss_BL)), loss_BL

    def of_the_loss(params):
        return loss_BL(WITH_GIVEN, dataclasses.replace(network(), params=params), batch, make_space)

    def of_the_formula(params):
        return by_hand(WITH_GIVEN, params, batch, make_space, estimate_BLD)[0]

    @jax.jit
    def both(params):
        return [jax.grad(mean, has_aux=True)(params, f) for f in (of_the_loss, of_the_formula)]

    (grad, found), (grad_by_hand, _) = both(params)
    np.testing.assert_allclose(found[~given_BL], wanted[~given_BL], rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grad, grad_by_hand
    )


def test_a_map_of_zeros_is_the_network_without():
    """Exactly, in value and gradient; only the map itself has a gradient of its own."""
    batch, net = part(), network(scale=0.0)
    plain = dataclasses.replace(net, self_conditioning=False)

    @jax.jit
    def both(params):
        def mean(params, net):
            return jnp.mean(loss_BL(FlowMatching(), dataclasses.replace(net, params=params), batch))

        return [jax.value_and_grad(mean)(params, one) for one in (net, plain)]

    (value, grad), (value_without, grad_without) = both(net.params)
    assert value == value_without
    assert np.abs(grad.pop("told")).max() > 1e-4 and not grad_without.pop("told").any()
    jax.tree.map(np.testing.assert_array_equal, grad, grad_without)


def test_both_spaces_agree():
    with jax.enable_x64(True):
        batch, dense = part(), jax.random.normal(jax.random.key(0), (N, L, V), jnp.float64)
        net, plain = (network(scale, dtype=jnp.float64) for scale in (0.5, 0.0))
        found = [loss_BL(WITH_GIVEN, net, batch, make, dense) for make in (OneHot, Projected)]
        plain = loss_BL(WITH_GIVEN, plain, batch, OneHot, dense)
    np.testing.assert_allclose(*found, rtol=1e-4)  # the jitter of the noise
    differs = np.abs(found[0] - plain).max(1) > 1e-3
    np.testing.assert_array_equal(differs, HALF)


@pytest.mark.parametrize("size, parts", [(8, 4), (9, 3)])
def test_a_row_is_told_whatever_the_cut_of_the_batch(size, parts):
    whole = loss_BL(FlowMatching(), network(), part(size))
    for which in range(parts):
        one = part(size, parts, which)
        found = loss_BL(FlowMatching(), network(), one)
        np.testing.assert_allclose(found, whole[one.index_B], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, parts", [(8, 1), (8, 2), (6, 1), (1, 1)])
def test_the_first_pass_is_made_for_the_rows_that_need_it(size, parts):
    rows = []

    def seen(params, h_BLD, *others):
        rows.append(len(h_BLD))
        return given_nets.backbone(params, h_BLD, *others)

    jax.eval_shape(lambda: loss_BL(FlowMatching(), network(seen_by=seen), part(size, parts)))
    assert sum(rows) == size // parts + size // parts // 2


def test_parts_hold_the_rows_that_are_told():
    for first, last in (0, 4), (2, 5), (3, 3), (5, 8):
        for parts in 1, 2, 4, 8:
            for which in range(parts):
                batch = part(8, parts, which)
                told = Told(first, last).part(batch)
                inside = (batch.index_B >= first) & (batch.index_B < last)
                assert not np.delete(np.asarray(inside), np.r_[told]).any()
