"""Guidance: a step by q + w (p - q), whoever says q, in both spaces, at two evaluations a step."""

import dataclasses

import given_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from given_texts import CLOCK, GIVEN, KEYS, SOME, STEPS, TOKENS, B, L, V, write
from jaxprs import most_vectors

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow.at import GUIDE, STUDENT
from flm_jax.flow.randomness import folded
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import Churn, Euler, FlowMap, LeftToRight, Refinement, TwoModel
from flm_jax.samplers.base import Carry
from flm_jax.samplers.guidance import PURPOSE, Ask
from flm_jax.sampling import Sampling, SamplingKnobs

SAMPLERS = {
    "euler": Euler(),
    "churn": Churn(share=0.5),
    "flow_map": FlowMap(0.7),
    "refinement": Refinement(inside="euler", rounds=2),
}
OTHER = "another checkpoint"
KINDS = (OTHER, "nothing_given", "no_estimate")
SEEDS = {STUDENT: 0, GUIDE: 5}


def networks(kind: str, dtype=jnp.float32):
    """By role; both with self-conditioning where that is what the guide is without."""
    roles = SEEDS if kind == OTHER else [STUDENT]
    made = {role: given_nets.net(SEEDS[role], dtype) for role in roles}
    return {role: given_nets.told(net) for role, net in made.items()}


def said(net, x_BLV, tau_B, aim_B=None, given_BL=None, estimate_BLV=None):
    """What a network says at a dense state."""
    estimate = None if estimate_BLV is None else estimate_BLV @ net.table
    return net(x_BLV @ net.table, tau_B, aim_B, None, given_BL, estimate).posterior.dense()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["euler", "flow_map"])
def test_every_step_is_that_of_the_guided_prediction(name, kind):
    """All states, step by step from the formula, in the dense space."""
    nets, w = networks(kind), 2.5
    sampler = Euler() if name == "euler" else FlowMap()
    knobs = dict(guide=kind, guidance=w, given=GIVEN)
    written = write(sampler, nets, OneHot, **knobs)
    path, grid, given_BL = written.trajectory, maps.grid(STEPS), jnp.asarray(SOME)
    clean = jax.nn.one_hot(TOKENS, V)
    noise = jax.vmap(lambda key: jax.random.normal(key, (L, V)))(folded(KEYS, 0))
    estimate = jnp.zeros((B, L, V))
    for i in range(STEPS):
        x, tau_B = path.states[i], jnp.full(B, grid[i])
        aim_B = jnp.full(B, grid[i + 1]) if name == "flow_map" else None
        t, t_next = CLOCK.to_t(grid[i]), CLOCK.to_t(grid[i + 1])
        told = x, tau_B, aim_B, given_BL
        p = said(nets[STUDENT], *told, estimate)
        if kind == OTHER:
            q = said(nets[GUIDE], *told, estimate)
        elif kind == "no_estimate":
            q = said(nets[STUDENT], *told)
        else:
            noised = jnp.where(given_BL[..., None], (1 - t) * noise + t * clean, x)
            q = said(nets[STUDENT], noised, tau_B, aim_B)
        guided = q + w * (p - q)
        if i < STEPS - 1:
            step = maps.jump if name == "flow_map" else maps.euler
            keep, add = step(t, t_next)
            wanted = keep * x + add * guided
        else:
            wanted = guided
            tokens_BL = np.where(SOME, TOKENS, guided.argmax(-1))
            np.testing.assert_array_equal(written.tokens_BL, tokens_BL)
        wanted = np.where(SOME[..., None], clean, wanted)
        np.testing.assert_allclose(path.states[i + 1], wanted, rtol=2e-4, atol=2e-5)
        estimate = jnp.where(given_BL[..., None], clean, p)
    np.testing.assert_array_equal(written.evaluations_B, 2 * STEPS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_both_spaces_agree(name, kind):
    with jax.enable_x64(True):
        dense = jax.random.normal(jax.random.key(0), (B, L, V), jnp.float64)
        sampler = FlowMap() if name == "flow_map" else SAMPLERS[name]
        sampler = Churn(share=1e-6) if name == "churn" else sampler
        if name == "refinement":
            sampler = dataclasses.replace(sampler, fresh_noise=False)
        options = dict(dense=dense, given=GIVEN, guide=kind, guidance=3.0)
        nets = networks(kind, jnp.float64)
        # The joint table of two networks has more columns than tokens, so no dense noise is seen.
        if kind == OTHER:
            nets = {role: given_nets.narrow(net) for role, net in nets.items()}
        found = [write(sampler, nets, make, **options) for make in (OneHot, Projected)]
    np.testing.assert_array_equal(*(one.tokens_BL for one in found))
    np.testing.assert_allclose(*(one.trajectory.confidence_SBL for one in found), rtol=3e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_at_scale_one_a_guide_changes_nothing(name):
    """Neither the samples nor their cost, as it is not asked; nor does its part of a step."""
    nets, sampler = networks(OTHER), SAMPLERS[name]
    plain = write(sampler, {STUDENT: nets[STUDENT]}, OneHot, given=GIVEN)
    idle = write(sampler, nets, OneHot, given=GIVEN, guide=OTHER, guidance=1.0)
    np.testing.assert_array_equal(plain.trajectory.states, idle.trajectory.states)
    np.testing.assert_array_equal(plain.evaluations_B, idle.evaluations_B)
    at = tiny.at(nets, OneHot, CLOCK).given(jnp.asarray(SOME))
    carry = Carry(plain.trajectory.states[1], jnp.full((B, L, V), 0.1), GIVEN)
    tau_s, tau_t = jnp.full(B, 0.25), jnp.full(B, 0.5)
    move = sampler.propose(at, carry, tau_s, tau_t)
    ask = Ask(sampler.propose, at, tau_s, tau_t, KEYS)
    guided = ask.guided(move, carry, Sampling(guide=OTHER, guidance=1.0))
    assert guided.guide is not None
    for one, other in zip(
        guided.moved(at, carry.state, at.given_BL),
        move.moved(at, carry.state, at.given_BL),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SAMPLERS)
def test_scales_matter_and_guided_steps_cost_two(name):
    nets, options = networks(OTHER), dict(guide=OTHER, given=GIVEN)
    found = [write(SAMPLERS[name], nets, **options, guidance=w) for w in (1.5, 4.0)]
    assert np.abs(np.subtract(*(one.trajectory.states[2] for one in found))).max() > 1e-2
    assert (np.asarray(found[0].evaluations_B) == 2 * STEPS).all()


def test_with_patience_evaluations_are_counted_in_pairs():
    nets = {role: given_nets.net(seed) for role, seed in SEEDS.items()}
    options = dict(guide=OTHER, guidance=2.0, steps=32, patience=1, trajectory=False)
    written = write(Euler(), nets, **options)
    whole = write(Euler(), nets, **(options | {"patience": 0}))
    assert (np.asarray(whole.evaluations_B) == 64).all()
    assert (np.asarray(written.evaluations_B) % 2 == 0).all()
    assert (np.asarray(written.evaluations_B) < 64).any()


def test_drawn_tokens_are_those_of_the_network_itself():
    """One step, of which a guide changes the arg max only."""
    options = dict(steps=1, trajectory=False, make_space=OneHot)
    nets = networks(OTHER)
    guided = dict(guide=OTHER, guidance=9.0)
    likeliest = [write(Euler(), nets, **options, **g).tokens_BL for g in ({}, guided)]
    assert (likeliest[0] != likeliest[1]).any()
    drawn = [write(Euler(), nets, **options, **g, temperature=1.0) for g in ({}, guided)]
    np.testing.assert_array_equal(*(one.tokens_BL for one in drawn))


def dropping(rate: float = 0.3, **changes):
    """The networks of a transformer without and with dropout."""
    model = tiny.model(V, two_times=True, **changes)
    params = tiny.params(model)
    other = tiny.model(V, two_times=True, dropout=rate, **changes)
    return {STUDENT: model.net(params), GUIDE: other.net(params)}


@pytest.mark.slow
def test_masks_of_dropout_depend_on_text_and_step_only():
    nets = dropping()
    knobs = dict(guide="dropout", guidance=20.0)
    whole = write(Euler(), nets, **knobs)
    again = write(Euler(), nets, **knobs)
    np.testing.assert_array_equal(whole.trajectory.states, again.trajectory.states)
    some = write(Euler(), nets, keys=KEYS[1:], **knobs)
    np.testing.assert_allclose(
        whole.trajectory.states[:, 1:], some.trajectory.states, rtol=1e-4, atol=1e-5
    )
    plain = write(Euler(), {STUDENT: nets[STUDENT]})
    assert np.abs(np.asarray(whole.trajectory.states - plain.trajectory.states))[1:].max() > 1e-2


def test_texts_and_steps_have_masks_of_their_own():
    """The same state in every text and at two steps: what the guide says always differs."""
    at = tiny.at(dropping(), Projected, CLOCK)
    first = at.space.scatter(at.space.noise(KEYS[:1], L))
    carry = Carry(jnp.repeat(first, B, axis=0))
    tau_s, tau_t, sampling = jnp.zeros(B), jnp.full(B, 0.5), Sampling(guide="dropout", guidance=2.0)

    @jax.jit
    def said_by(keys_B):
        ask = Ask(Euler().propose, at, tau_s, tau_t, keys_B)
        move = Euler().propose(at, carry, tau_s, tau_t)
        return ask.guided(move, carry, sampling).guide.dense()

    keys = [folded(folded(KEYS, PURPOSE), i) for i in (0, 1)]
    said_SBLV = np.concatenate([said_by(k) for k in keys])
    for i in range(2 * B):
        for j in range(i):
            assert np.abs(said_SBLV[i] - said_SBLV[j]).max() > 1e-3


@pytest.mark.parametrize("name", ["euler", "refinement"])
def test_nothing_as_large_as_the_vocabulary_for_every_token_exists(name):
    def largest(make_space):
        nets = {role: tiny_head(given_nets.net(seed, vocab_size=97)) for role, seed in
                SEEDS.items()}  # fmt: skip
        sampling = Sampling(steps=2, guide=OTHER, guidance=2.0)

        def call(keys):
            at = tiny.at(nets, make_space, clock_lib.build(97))
            return SAMPLERS[name].run(at, keys, sampling, 32).tokens_BL

        return most_vectors(jax.make_jaxpr(call)(KEYS).jaxpr, 97)

    assert largest(Projected) <= 16 < B * 32 <= largest(OneHot)


def tiny_head(net):
    return dataclasses.replace(net, head_chunk=8)


@pytest.mark.parametrize("row", [LeftToRight, TwoModel])
def test_samplers_without_guides_say_so(row):
    knobs = SamplingKnobs(guide="dropout", guidance=2.0)
    [sentence] = row().without_effect(knobs).values()
    assert sentence.startswith("guidance=2 has no effect on ")
    [sentence] = row().without_effect(SamplingKnobs(guide="dropout")).values()
    assert sentence.startswith("guide='dropout' has no effect on ")
    assert "leave it at '' (guide: " in sentence
    for used in (knobs, SamplingKnobs(guide="dropout", guide_dropout=0.2)):
        assert not Euler().without_effect(used) and not Refinement().without_effect(used)
