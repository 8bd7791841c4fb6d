"""Samplers of networks with self-conditioning: what they are told, and how often they are asked."""

import dataclasses

import given_nets
import given_texts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from given_texts import CLOCK, GIVEN, KEYS, SOME, STEPS, TOKENS, B, L, V

from flm_jax.flow import maps
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import Churn, Euler, FlowMap, Refinement

SAMPLERS = {
    "euler": Euler(),
    "churn": Churn(),
    "flow_map": FlowMap(0.7),
    "refinement": Refinement(inside="euler", rounds=1),
}


def network(scale: float = 0.5, dtype=jnp.float32):
    return given_nets.told(given_nets.net(dtype=dtype), scale=scale)


def write(sampler, net, make_space=Projected, **options):
    return given_texts.write(sampler, {"student": net}, make_space, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_step_is_told_the_estimate_of_the_step_before(name):
    """What it says at every state is the network's answer, asked by hand, in the dense space."""
    net, sampler = network(), SAMPLERS[name]
    path = write(sampler, net, OneHot, given=GIVEN).trajectory
    grid = maps.grid(STEPS)

    @jax.jit
    def ask(state, tau_B, aim_B, estimate_BLV):
        seen = state @ net.table, tau_B, aim_B, None, jnp.asarray(SOME), estimate_BLV @ net.table
        features_BLD, _ = net.backbone(net.params, *seen)
        return Posterior(features_BLD, net.head).dense()

    estimate_BLV = jnp.zeros((B, L, V))
    for i in range(STEPS):
        tau_B, aim_B = jnp.full(B, grid[i]), None
        if name == "flow_map":
            aim, *_ = maps.gamma_noise(*CLOCK.to_t(grid[i : i + 2]), 0.7)
            aim_B = jnp.full(B, CLOCK.to_tau(aim))
        p_BLV = ask(path.states[i], tau_B, aim_B, estimate_BLV)
        confidence = np.where(SOME, 1.0, p_BLV.max(-1))
        np.testing.assert_allclose(path.confidence_SBL[i], confidence, rtol=1e-4)
        estimate_BLV = jnp.where(SOME[..., None], jax.nn.one_hot(TOKENS, V), p_BLV)


@pytest.mark.parametrize("name", ["euler", "refinement"])
def test_with_a_map_of_zeros_it_writes_what_the_network_without_writes(name):
    net = network(scale=0.0)
    plain = dataclasses.replace(net, self_conditioning=False)
    found, wanted = (write(SAMPLERS[name], one, given=GIVEN).trajectory for one in (net, plain))
    np.testing.assert_allclose(found.states, wanted.states, rtol=1e-4, atol=1e-5)
    heard = write(SAMPLERS[name], network(), given=GIVEN).trajectory
    assert np.abs(np.asarray(heard.states - wanted.states)).max() > 1e-3


@pytest.mark.parametrize("name", ["flow_map", "refinement"])
def test_both_spaces_agree(name):
    sampler = FlowMap() if name == "flow_map" else SAMPLERS[name]
    knobs = {"fixed_point_iterations": 2} if name == "flow_map" else {}
    with jax.enable_x64(True):
        dense = jax.random.normal(jax.random.key(0), (B, L, V), jnp.float64)
        options = {"dense": dense, "given": GIVEN, **knobs}
        net = network(dtype=jnp.float64)
        found = [write(sampler, net, make, **options) for make in (OneHot, Projected)]
    np.testing.assert_array_equal(*(one.tokens_BL for one in found))
    np.testing.assert_allclose(*(one.trajectory.confidence_SBL for one in found), rtol=1e-3)


def test_a_round_begins_without_an_estimate():
    """Two rounds of two evaluations, of which the first commits nothing."""
    sampler, net = Refinement(inside="euler", rounds=2, top_k=0, threshold=1.0), network()
    path = write(sampler, net, OneHot).trajectory
    tau_SB = jnp.broadcast_to(path.tau_S[:, None], (STEPS, B))
    plain = jax.jit(jax.vmap(lambda x, tau_B: net(x @ net.table, tau_B).posterior.dense().max(-1)))
    told = np.abs(plain(path.states[:-1], tau_SB) - path.confidence_SBL).max((1, 2)) > 1e-3
    np.testing.assert_array_equal(told, [False, True, False, True])


def test_iterations_at_one_state_approach_a_fixed_point_and_stay_there():
    """1 + n iterations of one step are n passes more; where they arrive they stay."""
    net = network(scale=0.1)  # a contraction
    at = tiny.at({"student": net}, OneHot, CLOCK)
    state = at.space.scatter(at.space.noise(KEYS, L))
    tau_B = jnp.full(B, 0.4)

    @jax.jit
    def passes(state):
        found = [at.iterated("student", state, tau_B, n) for n in (1, 2, 30, 31)]
        again = at.ask("student", state, tau_B, estimate=at.estimate(found[-1], state))
        return [posterior.dense() for posterior in (*found, again)]

    once, twice, many, more, again = passes(state)
    assert np.abs(once - twice).max() > 1e-3
    np.testing.assert_allclose(many, more, atol=1e-5)
    np.testing.assert_allclose(more, again, atol=1e-5)
    path = write(Euler(), net, OneHot, steps=1, fixed_point_iterations=3).trajectory
    wanted = jax.jit(lambda x: at.iterated("student", x, jnp.zeros(B), 3).dense())(path.states[0])
    np.testing.assert_allclose(path.confidence_SBL[0], wanted.max(-1), rtol=1e-5)


@pytest.mark.parametrize("patience, iterations", [(0, 3), (1, 1), (1, 3)])
def test_evaluations_are_counted(patience, iterations):
    asked = []
    net = network()

    def backbone(params, h_BLD, *others):
        jax.debug.callback(lambda: asked.append(1))
        return given_nets.backbone(params, h_BLD, *others)

    net = dataclasses.replace(net, backbone=backbone)
    knobs = dict(fixed_point_iterations=iterations, patience=patience)
    written = write(Euler(), net, steps=12, trajectory=False, **knobs)
    jax.effects_barrier()
    assert len(asked) == written.evaluations_B.max()
    assert (np.asarray(written.evaluations_B) % iterations == 0).all()
    if not patience:
        assert len(asked) == 12 * iterations
