"""Early stopping against the rule applied by hand to the whole trajectory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import Euler, FlowMap
from flm_jax.samplers.base import Sampler
from flm_jax.sampling import Sampling

V, L, D, B, STEPS = tiny.V, 3, tiny.D, 8, 7
CLOCK = tiny.clock()
MODEL = tiny.model(two_times=True)
SAMPLERS = {"euler": Euler(), "gamma": FlowMap(0.7)}


def restless() -> Net:
    """A flow map whose answers change with time more than those of a random network."""
    net = MODEL.net(tiny.params(MODEL))

    def backbone(params, h_BLD, tau_s, tau_t, key):
        features, log_weight = net.backbone(params, h_BLD, tau_s, tau_t, key)
        phase = 6.0 * tau_s[:, None, None] + jnp.arange(D)[None, None, :]
        return features + jnp.cos(phase + h_BLD), log_weight

    return Net(backbone, net.params)


NET = restless()


def one_time(net: Net) -> Net:
    """A flow map on its diagonal, for samplers that name one time."""

    def backbone(params, h_BLD, tau_s, tau_t, key):
        return net.backbone(params, h_BLD, tau_s, tau_s if tau_t is None else tau_t, key)

    return Net(backbone, net.params)


def counted(net: Net, calls: list) -> Net:
    def backbone(params, h_BLD, tau_s, tau_t, key):
        jax.debug.callback(lambda tau: calls.append(float(tau)), tau_s[0])
        return net.backbone(params, h_BLD, tau_s, tau_t, key)

    return Net(backbone, net.params)


def constant(net: Net) -> Net:
    """The same answer at every state and time."""
    return Net(lambda params, h, tau_s, tau_t, key: (jnp.ones_like(h), None), net.params)


def whole_grid(sampler: Sampler, at, keys_B, sampling, length, **options) -> tuple:
    """(tokens, trajectory) of the loop that does not stop early."""
    never = dataclasses.replace(sampling, patience=0)
    written = sampler.run(at, keys_B, never, length, **options)
    return written.tokens_BL, written.trajectory


def until_stable(sampler: Sampler, *given, **options) -> tuple:
    """(tokens, evaluations) of the loop that stops early."""
    written = sampler.run(*given, **options)
    return written.tokens_BL, written.evaluations_B


def call(run, sampler=SAMPLERS["gamma"], net=NET, index=range(B), make_space=Projected, **options):
    """One of the two loops, compiled as a whole."""
    net, keys_B = one_time(net), sequence_keys(jax.random.key(1), jnp.asarray(index))
    length = options.pop("length", L)
    start, noise = options.pop("start", None), options.pop("noise", None)
    more = {"trajectory": options.pop("trajectory")} if "trajectory" in options else {}
    sampling = Sampling(**({"steps": STEPS, "patience": 1} | options))

    @jax.jit
    def compiled(keys_B):
        at = tiny.at({"student": net}, make_space, CLOCK)
        return run(sampler, at, keys_B, sampling, length, start=start, noise=noise, **more)

    return jax.tree.map(np.asarray, compiled(keys_B))


def by_hand(tokens_SBL: np.ndarray, patience: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, evaluations) of the rule, read off the answers of all evaluations."""
    tokens, evaluations = [], []
    for answers in tokens_SBL.swapaxes(0, 1):
        n = 1
        while n < len(answers):
            n += 1
            if n > patience and (answers[n - 1 - patience : n] == answers[n - 1]).all():
                break
        tokens.append(answers[n - 1])
        evaluations.append(n)
    return np.stack(tokens), np.asarray(evaluations)


@functools.cache
def of_constant(**decode) -> np.ndarray:
    """What the whole grid writes with the same answer everywhere."""
    return call(whole_grid, net=constant(NET), **decode)[0]


@functools.cache
def plain() -> np.ndarray:
    """What the flow map writes with a patience of one."""
    return call(until_stable)[0]


@pytest.fixture(scope="module", params=SAMPLERS)
def whole(request):
    sampler = SAMPLERS[request.param]
    tokens_BL, path = call(whole_grid, sampler, trajectory=True)
    return sampler, tokens_BL, path


@pytest.mark.parametrize("patience", [1, 2, STEPS])
def test_every_sequence_stops_where_the_rule_says_with_the_tokens_it_had_there(whole, patience):
    sampler, last_BL, path = whole
    tokens_BL, evaluations_B = call(until_stable, sampler, patience=patience)
    wanted_BL, wanted_B = by_hand(path.tokens_SBL, patience)
    np.testing.assert_array_equal(evaluations_B, wanted_B)
    np.testing.assert_array_equal(tokens_BL, wanted_BL)
    assert tokens_BL.dtype == evaluations_B.dtype == np.int32
    to_the_end = evaluations_B == STEPS
    np.testing.assert_array_equal(tokens_BL[to_the_end], last_BL[to_the_end])
    if patience == 1:  # something to tell apart: early, late, and a change after the stop
        assert len(set(evaluations_B)) > 2
        assert (tokens_BL != last_BL).any()
    if patience == STEPS:
        assert to_the_end.all()


@pytest.mark.parametrize("decode", [{}, {"temperature": 1.0, "top_p": 0.9}])
@pytest.mark.parametrize("patience, evaluations", [(1, 2), (3, 4), (9, STEPS)])
def test_the_loop_ends_with_the_last_sequence(patience, evaluations, decode):
    calls = []
    net = counted(constant(NET), calls)
    tokens_BL, evaluations_B = call(
        until_stable, net=net, patience=patience, prior_scale=0.5, **decode
    )
    jax.effects_barrier()
    np.testing.assert_array_equal(evaluations_B, evaluations)
    np.testing.assert_allclose(sorted(calls), np.arange(evaluations) / STEPS, rtol=1e-6)
    np.testing.assert_array_equal(tokens_BL, of_constant(**decode))  # drawn with the same keys


def test_a_single_step_is_that_of_the_plain_loop():
    tokens_BL, evaluations_B = call(until_stable, steps=1)
    np.testing.assert_array_equal(tokens_BL, call(whole_grid, steps=1)[0])
    np.testing.assert_array_equal(evaluations_B, 1)


def test_the_grid_has_the_power_that_was_asked_for():
    _, path = call(whole_grid, trajectory=True, grid_power=3.0)
    tokens_BL, evaluations_B = call(until_stable, grid_power=3.0)
    wanted_BL, wanted_B = by_hand(path.tokens_SBL, 1)
    np.testing.assert_array_equal(tokens_BL, wanted_BL)
    np.testing.assert_array_equal(evaluations_B, wanted_B)
    assert (tokens_BL != plain()).any()


def test_given_noise_is_used_and_the_batch_does_not_matter():
    start = jax.random.normal(jax.random.key(5), (B, L, V))
    noise = jax.random.normal(jax.random.key(6), (STEPS - 1, B, L, V))
    options = dict(make_space=OneHot, start=start, noise=noise)
    _, path = call(whole_grid, trajectory=True, **options)
    tokens_BL, evaluations_B = call(until_stable, **options)
    wanted_BL, wanted_B = by_hand(path.tokens_SBL, 1)
    np.testing.assert_array_equal(tokens_BL, wanted_BL)
    np.testing.assert_array_equal(evaluations_B, wanted_B)
    rows = np.asarray([6, 1])
    options |= dict(start=start[rows], noise=noise[:, rows])
    part_BL, part_B = call(until_stable, index=rows, **options)
    np.testing.assert_array_equal(part_BL, tokens_BL[rows])
    np.testing.assert_array_equal(part_B, evaluations_B[rows])


def test_a_trajectory_shows_the_whole_grid_whatever_the_patience(whole):
    sampler, last_BL, path = whole

    def both(sampler, *given, **options):
        written = sampler.run(*given, trajectory=True, **options)
        return written.tokens_BL, written.evaluations_B, written.trajectory.tokens_SBL

    tokens_BL, evaluations_B, tokens_SBL = call(both, sampler, patience=1)
    np.testing.assert_array_equal(tokens_BL, last_BL)
    np.testing.assert_array_equal(evaluations_B, STEPS)
    np.testing.assert_array_equal(tokens_SBL, path.tokens_SBL)
