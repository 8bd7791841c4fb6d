"""Jump samplers: one step, fresh noise, the two-model rule, independence of the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny

from flm_jax import config as config_lib
from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import SAMPLERS, FlowMap, TwoModel, TwoStage
from flm_jax.samplers.euler import Euler

V, L, B = 7, 3, 4
SPACES = {"onehot": OneHot, "projected": Projected}
GAMMAS = [0.0, 0.6, 1.0]
KEYS = sequence_keys(jax.random.key(0), jnp.arange(B))


def params_of(dtype=jnp.float32):
    """The teacher is one wider."""
    return {"student": small_nets.params(0, V, 3, dtype=dtype),
            "teacher": small_nets.params(1, V, 4, dtype=dtype)}  # fmt: skip


@functools.cache
def compiled(sampler, make_space, steps, backbone=small_nets.backbone, trajectory=True):
    clock = clock_lib.build(V)

    def call(params, keys, start, noise):
        nets = {role: Net(backbone, p) for role, p in params.items()}
        return tiny.write(
            sampler, tiny.at(nets, make_space, clock), keys, steps=steps, length=L, start=start,
            noise=noise, trajectory=trajectory,
        )  # fmt: skip

    return jax.jit(call)


def dense_start(seed=1, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), (B, L, V), dtype)


@pytest.mark.parametrize("make_space", SPACES.values())
def test_one_step_is_the_arg_max_of_the_jump_to_the_end_for_every_gamma(make_space):
    params = params_of()
    tables = {role: p["embed"]["table"] for role, p in params.items()}
    space = make_space(tables)
    start = space.noise(KEYS, L)
    h_BLD = space.view(space.scatter(start), "student")
    net = Net(small_nets.backbone, params["student"])
    wanted = net(h_BLD, jnp.zeros(B), jnp.ones(B)).posterior.dense()
    for gamma in GAMMAS:
        tokens_BL, path = compiled(FlowMap(gamma), make_space, 1)(params, KEYS, start, None)
        np.testing.assert_array_equal(tokens_BL, wanted.argmax(-1))
        np.testing.assert_allclose(path.confidence_SBL[0], wanted.max(-1), rtol=1e-4)
    assert len(np.unique(tokens_BL)) > 1


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_rule_written_out_in_the_dense_space(gamma):
    """z~ = jump to t~, then (sigma~ - sigma) p and gamma sigma xi; the network is told tau~."""
    steps = 3
    with jax.enable_x64(True):
        params, clock = params_of(jnp.float64), clock_lib.build(V)
        noise = jax.random.normal(jax.random.key(2), (steps - 1, B, L, V), jnp.float64)
        z = dense_start(dtype=jnp.float64)
        sampler = FlowMap(gamma)
        tokens_BL, path = compiled.__wrapped__(sampler, OneHot, steps)(params, KEYS, z, noise)
        for i in range(steps):
            now, then = (clock.to_t(jnp.float64(j / steps)) for j in (i, i + 1))
            sigma = 1 - then
            aim = 1 - sigma * np.sqrt(1 - gamma**2)
            times = jnp.full(B, i / steps), jnp.full(B, clock.to_tau(aim))
            p = small_nets.probabilities(params["student"], z, *times)
            np.testing.assert_allclose(path.states[i], z, atol=1e-9)
            np.testing.assert_array_equal(path.tokens_SBL[i], p.argmax(-1))
            if i < steps - 1:
                z = (1 - aim) / (1 - now) * z + (aim - now) / (1 - now) * p
                z = z + (1 - aim - sigma) * p + gamma * sigma * noise[i]
        np.testing.assert_allclose(path.states[-1], p, atol=1e-9)
        np.testing.assert_array_equal(tokens_BL, p.argmax(-1))


@pytest.mark.parametrize("make_space", SPACES.values())
def test_gamma_one_forgets_the_start_and_gamma_zero_draws_nothing(make_space):
    """With a posterior that depends on nothing, the state after a step is t' p + (1 - t') xi."""

    def blind(params, h_BLD, tau_s, tau_t, key):
        return jnp.ones_like(h_BLD), None

    params = params_of()
    width = make_space({r: p["embed"]["table"] for r, p in params.items()}).noise_width
    starts = [jax.random.normal(jax.random.key(i), (B, L, width)) for i in (1, 2)]

    def states(gamma, start, keys=KEYS):
        call = compiled(FlowMap(gamma), make_space, 3, blind)
        return np.asarray(call(params, keys, start, None)[1].states)

    forgotten = [states(1.0, start) for start in starts]
    np.testing.assert_allclose(forgotten[0][1:], forgotten[1][1:], atol=1e-5)
    assert np.abs(forgotten[0][0] - forgotten[1][0]).max() > 0.1
    remembered = [states(0.6, start) for start in starts]
    assert np.abs(remembered[0][2] - remembered[1][2]).max() > 1e-2
    others = sequence_keys(jax.random.key(9), jnp.arange(B))
    assert np.abs(states(0.6, starts[0], others)[1] - remembered[0][1]).max() > 1e-2
    np.testing.assert_array_equal(states(0.0, starts[0], others), states(0.0, starts[0]))
    assert [FlowMap(g).stochastic for g in GAMMAS] == [False, True, True]


@pytest.mark.parametrize("sampler", [FlowMap(), FlowMap(0.6), TwoModel(), TwoStage()])
def test_both_spaces_write_the_same_from_the_same_dense_noise(sampler):
    steps = 3
    with jax.enable_x64(True):
        params = params_of(jnp.float64)
        dense = dense_start(dtype=jnp.float64)
        noise = jax.random.normal(jax.random.key(2), (steps - 1, B, L, V), jnp.float64)
        results = []
        for make_space in SPACES.values():
            space = make_space({role: p["embed"]["table"] for role, p in params.items()})
            call = compiled.__wrapped__(sampler, make_space, steps)
            start, raw = space.from_dense(dense), jax.vmap(space.from_dense)(noise)
            tokens_BL, path = call(params, KEYS, start, raw)
            seen = [space.view(x, "student") for x in path.states]
            results.append((tokens_BL, path.tokens_SBL, np.stack(seen)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, atol=3e-4)  # eta = 1e-5 of the diagonal


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_two_model_tokens_are_the_arg_max_of_the_last_one_hot_state(steps):
    """z + dt (f - z) / (1 - t + eps) + dt^2 / 2 g in every step, the last one included."""
    with jax.enable_x64(True):
        params, clock = params_of(jnp.float64), clock_lib.build(V)
        z = dense_start(dtype=jnp.float64)
        tokens_BL, path = compiled.__wrapped__(TwoModel(), OneHot, steps)(params, KEYS, z, None)
        student = params["student"]
        for i in range(steps):
            t, then = (clock.to_t(jnp.float64(j / steps)) for j in (i, i + 1))
            tau, tau_next = jnp.full(B, i / steps), jnp.full(B, (i + 1) / steps)
            np.testing.assert_allclose(path.states[i], z, atol=1e-8)
            f = small_nets.probabilities(params["teacher"], z, tau)
            h = z @ student["embed"]["table"]
            features, _ = small_nets.backbone(student, h, tau, tau_next, None)
            g = features @ student["head"]["kernel"] + student["head"]["bias"][None, None, :]
            z = z + (then - t) * (f - z) / (1 - t + 1e-5) + 0.5 * (then - t) ** 2 * g
        np.testing.assert_allclose(path.states[-1], z, atol=1e-8)
        np.testing.assert_array_equal(tokens_BL, z.argmax(-1))
        assert (f.argmax(-1) != z.argmax(-1)).any() or steps > 1  # the correction decides


def test_two_stage_is_euler_that_tells_the_network_where_the_step_ends():
    with jax.enable_x64(True):
        params, clock, steps = params_of(jnp.float64), clock_lib.build(V), 3
        z = dense_start(dtype=jnp.float64)
        _, path = compiled.__wrapped__(TwoStage(), OneHot, steps)(params, KEYS, z, None)
        for i in range(steps):
            t, then = (clock.to_t(jnp.float64(j / steps)) for j in (i, i + 1))
            times = jnp.full(B, i / steps), jnp.full(B, (i + 1) / steps)
            p = small_nets.probabilities(params["student"], z, *times)
            np.testing.assert_allclose(path.states[i], z, atol=1e-9)
            z = z + (then - t) * (p - z) / (1 - t + 1e-5)
        np.testing.assert_allclose(path.states[-1], p, atol=1e-9)


@pytest.mark.parametrize("sampler", [FlowMap(0.6), TwoModel(), TwoStage()])
def test_a_sample_does_not_depend_on_its_batch(sampler):
    model, teacher = tiny.model(two_times=True), tiny.model()
    nets = {"student": model.net(tiny.params(model)), "teacher": teacher.net(tiny.params(teacher))}

    @jax.jit
    def call(keys):
        at = tiny.at(nets, Projected, tiny.clock())
        tokens_BL, path = tiny.write(sampler, at, keys, steps=3, length=tiny.L, trajectory=True)
        return tokens_BL, path.states[2]

    index, rows = jnp.arange(8), jnp.asarray([5, 2])
    many_BL, states = call(sequence_keys(jax.random.key(4), index))
    few_BL, few_states = call(sequence_keys(jax.random.key(4), index[rows]))
    np.testing.assert_array_equal(few_BL, many_BL[rows])
    np.testing.assert_allclose(few_states, states[rows], atol=1e-4)
    assert np.abs(states[5] - states[2]).max() > 0.01


def test_wrong_options_are_one_sentence():
    for gamma in (-0.1, 1.5):
        with pytest.raises(UserError, match=rf"gamma={gamma} must be in \[0, 1\]; official: 0.8"):
            config_lib.build(SAMPLERS, "flow_map", {"gamma": gamma}, "sampler")
    for name in ("two_model", "two_stage"):
        with pytest.raises(UserError, match="eps=-1.0 must be at least 0"):
            config_lib.build(SAMPLERS, name, {"eps": -1.0}, "sampler")
    assert FlowMap().needs == Needs(two_times=True, self_conditioning=True)
    assert TwoStage().needs == Needs(two_times=True)
    assert TwoModel().needs == Needs(two_times=True, teacher=True)
    assert Euler().needs == Needs(self_conditioning=True)
