"""Rewards: every step begins with a gradient in the metric of the noise, in both spaces."""

import dataclasses

import given_nets
import given_texts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from given_texts import CLOCK, GIVEN, KEYS, SOME, TOKENS, B, L, V
from jaxprs import most_vectors

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow.at import GUIDE, STUDENT
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import Churn, Euler, FlowMap
from flm_jax.samplers.reward import Ending
from flm_jax.sampling import Sampling

WANTED = (1, 4)


def wanted(ending: Ending) -> jax.Array:
    """How many of the tokens are wanted."""
    return jnp.sum(ending.probability(WANTED), axis=1)


def write(sampler, nets, make_space=Projected, **options):
    """With the reward that tokens are wanted, if no other one is named."""
    return given_texts.write(sampler, nets, make_space, **({"reward": wanted} | options))


def test_an_ending_says_the_same_as_its_array():
    net = given_nets.net()
    posterior = net(jax.random.normal(jax.random.key(1), (B, L, 5)), jnp.full(B, 0.4)).posterior
    ending = Ending(posterior, net.table, GIVEN)
    p_BLV = np.where(SOME[..., None], np.eye(V)[TOKENS], posterior.dense())
    np.testing.assert_allclose(ending.dense(), p_BLV, rtol=1e-5)
    np.testing.assert_allclose(ending.mean, p_BLV @ np.asarray(net.table), rtol=1e-4, atol=1e-5)
    among = p_BLV[..., list(WANTED)].sum(-1)
    np.testing.assert_allclose(ending.probability(WANTED), among, rtol=1e-5)
    asked = np.where(SOME, TOKENS, 2).astype(np.int32)
    log_p = np.log(np.take_along_axis(p_BLV, asked[..., None], -1)[..., 0])
    np.testing.assert_allclose(ending.log_prob(jnp.asarray(asked)), log_p, rtol=1e-4, atol=1e-6)
    nothing = Ending(posterior, net.table)
    np.testing.assert_allclose(nothing.dense(), posterior.dense())
    np.testing.assert_allclose(nothing.mean, posterior.mean(net.table))


@pytest.mark.parametrize("length", [0.0, 0.7])
@pytest.mark.parametrize("name", ["euler", "churn", "flow_map"])
def test_a_step_begins_with_dense_gradient_ascent(name, length):
    """The first state of noise and the one after a step, by the formula."""
    net, scale = given_nets.net(), 2.0
    sampler = {"euler": Euler(), "churn": Churn(), "flow_map": FlowMap()}[name]
    knobs = dict(given=GIVEN, steps=2)
    strength = {"reward_length": length} if length else {"reward_scale": scale}
    states = write(sampler, {STUDENT: net}, OneHot, **knobs, **strength).trajectory.states
    given_BL, grid = jnp.asarray(SOME), maps.grid(2)
    clean = jax.nn.one_hot(TOKENS, V)

    def value(x_BLV, tau, end):
        told = jnp.full(B, tau), None if end is None else jnp.full(B, end), None, given_BL
        p = net(x_BLV @ net.table, *told).posterior.dense()
        p = jnp.where(given_BL[..., None], clean, p)
        return jnp.sum(p[..., list(WANTED)])

    def ascended(x_BLV, tau):
        g = jax.grad(value)(x_BLV, tau, 1.0 if name == "flow_map" else None)
        g = jnp.where(given_BL[..., None], 0.0, g)
        sigma = 1.0 - CLOCK.to_t(tau)
        size = scale * sigma**2
        if length:
            size = length * sigma / jnp.sqrt(jnp.sum(g**2, axis=(1, 2), keepdims=True))
        return x_BLV + (1.0 if name == "churn" else 0.5) * size * g

    def without(steps_like):
        return write(sampler, {STUDENT: net}, OneHot, **knobs, **steps_like).trajectory.states

    plain = without({"reward": None})[0]
    np.testing.assert_allclose(states[0], ascended(plain, grid[0]), rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(states[0] - plain))[~SOME].max() > 1e-3
    if name == "churn":  # fresh noise, the same as without a reward, is added before the gradient
        return
    p = net(states[0] @ net.table, jnp.zeros(B), None if name == "euler" else jnp.full(B, grid[1]),
            None, given_BL).posterior.dense()  # fmt: skip
    step = maps.euler if name == "euler" else maps.jump
    keep, add = step(CLOCK.to_t(grid[0]), CLOCK.to_t(grid[1]))
    moved = jnp.where(given_BL[..., None], clean, keep * states[0] + add * p)
    np.testing.assert_allclose(states[1], ascended(moved, grid[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", ["reward_scale", "reward_length"])
@pytest.mark.parametrize("name", ["euler", "flow_map"])
@pytest.mark.parametrize("guided", [False, True])
def test_both_spaces_agree(name, strength, guided):
    """Also with a second table in the state: the metric is that of the joint noise."""
    sampler = Euler() if name == "euler" else FlowMap()
    with jax.enable_x64(True):
        dense = jax.random.normal(jax.random.key(0), (B, L, V), jnp.float64)
        knobs = {strength: 3.0, "given": GIVEN, "dense": dense}
        nets = {STUDENT: given_nets.net(0, jnp.float64)}
        if guided:
            knobs |= {"guide": "another checkpoint", "guidance": 2.0}
            nets |= {GUIDE: given_nets.net(5, jnp.float64)}
            nets = {role: given_nets.narrow(given_nets.told(net)) for role, net in nets.items()}
        found = [write(sampler, nets, make, **knobs) for make in (OneHot, Projected)]
    np.testing.assert_array_equal(*(one.tokens_BL for one in found))
    np.testing.assert_allclose(*(one.trajectory.confidence_SBL for one in found), rtol=3e-3)


@pytest.mark.parametrize("name", ["euler", "churn", "flow_map"])
def test_rewards_are_reached_and_counted(name):
    sampler = {"euler": Euler(), "churn": Churn(), "flow_map": FlowMap(1.0)}[name]
    nets, shares = {STUDENT: given_nets.net()}, []
    keys = sequence_keys(jax.random.key(3), jnp.arange(64))
    for length in (0.0, 3.0, 12.0):
        written = write(sampler, nets, keys=keys, trajectory=False, steps=8, reward_length=length)
        shares.append(np.isin(written.tokens_BL, WANTED).mean())
        assert (np.asarray(written.evaluations_B) == (16 if length else 8)).all()
    assert shares[0] + 0.05 < shares[1] < shares[2]


def test_given_tokens_stay_what_they_are():
    written = write(Churn(), {STUDENT: given_nets.net()}, given=GIVEN, reward_scale=9.0)
    clean = given_nets.net().table[TOKENS]
    for state in written.trajectory.states:
        np.testing.assert_array_equal(np.asarray(state)[SOME], np.asarray(clean)[SOME])
    np.testing.assert_array_equal(np.asarray(written.tokens_BL)[SOME], TOKENS[SOME])


def test_a_reward_is_one_number_for_every_text():
    def wrong(ending):
        return ending.probability(WANTED)

    with pytest.raises(ValueError, match=r"the shape \(3, 5\); it must be one number for every"):
        write(Euler(), {STUDENT: given_nets.net()}, reward=wrong, reward_scale=1.0)


def test_nothing_as_large_as_the_vocabulary_for_every_token_exists():
    def total(ending):
        tokens_BL = jnp.zeros((B, 32), jnp.int32)
        parts = wanted(ending), ending.mean.sum((1, 2)), ending.log_prob(tokens_BL).sum(1)
        return sum(parts)

    def largest(make_space):
        net = dataclasses.replace(given_nets.net(vocab_size=97), head_chunk=8)
        sampling = Sampling(steps=2, reward=total, reward_scale=1.0)

        def call(keys):
            at = tiny.at({STUDENT: net}, make_space, clock_lib.build(97))
            return FlowMap().run(at, keys, sampling, 32).tokens_BL

        return most_vectors(jax.make_jaxpr(call)(KEYS).jaxpr, 97)

    assert largest(Projected) <= 16 < B * 32 <= largest(OneHot)
