"""The sampling loop against closed forms, in both state spaces; every row of the table runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import SAMPLERS
from flm_jax.samplers.euler import Euler

V, L, D, B = tiny.V, tiny.L, tiny.D, 3
SPACES = {"onehot": OneHot, "projected": Projected}
KEYS = sequence_keys(jax.random.key(0), jnp.arange(B))
CLOCK = tiny.clock()
P = np.random.default_rng(0).dirichlet(np.full(V, 0.5)).astype(np.float32)


def constant_net(p=P, temperature: float = 1.0) -> Net:
    """A denoiser that answers p whatever it sees."""
    params = {
        "embed": {"table": jax.random.normal(jax.random.key(5), (V, D))},
        "head": {"kernel": jnp.zeros((D, V)), "bias": jnp.log(jnp.asarray(p))},
    }

    def backbone(params, h_BLD, tau_s, tau_t, key):
        return jnp.zeros_like(h_BLD), None

    return Net(backbone, params, logit_cap=0.0, temperature=temperature)


def draw(net, make_space=OneHot, clock=CLOCK, keys=KEYS, sampler=Euler(), length=L, **options):  # noqa: B008
    """`Sampler.run`, compiled as a whole: faster here than operation by operation."""
    start = options.pop("start", None)
    nets = {"student": net} | options.pop("others", {})

    @jax.jit
    def call(keys, start):
        at = tiny.at(nets, make_space, clock)
        return tiny.write(sampler, at, keys, length=length, start=start, **options)

    return call(keys, start)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_constant_denoiser_gives_the_recursion_written_out(name, steps):
    """x' = x + (t' - t) (p - x) / (1 - t + 1e-5); the last step is the prediction itself."""
    net, clock = constant_net(), CLOCK
    tokens_BL, path = draw(net, SPACES[name], clock, steps=steps, trajectory=True)
    seen = P if name == "onehot" else P @ np.asarray(net.table)
    t = np.asarray(clock.to_t(jnp.arange(steps + 1) / steps))
    x = np.asarray(path.states[0])
    assert 0.5 < x.std() / (1.0 if name == "onehot" else np.sqrt(V)) < 1.5
    for i in range(steps - 1):
        x = x + (t[i + 1] - t[i]) * (seen - x) / (1.0 - t[i] + 1e-5)
        np.testing.assert_allclose(path.states[i + 1], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path.states[steps], np.broadcast_to(seen, x.shape), atol=1e-5)
    np.testing.assert_array_equal(tokens_BL, np.full((B, L), P.argmax()))


def test_trajectory_tells_times_tokens_and_confidence():
    model = tiny.model()
    net, clock = model.net(tiny.params(model)), CLOCK
    tokens_BL, path = draw(net, Projected, steps=4, trajectory=True)
    assert path.states.shape == (5, B, L, D)
    np.testing.assert_allclose(path.tau_S, [0, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(path.t_S, clock.to_t(path.tau_S))
    space = Projected({"student": net.table})
    for i in range(4):
        h_BLD = space.view(path.states[i], "student")
        p = net(h_BLD, jnp.full((B,), path.tau_S[i])).posterior.dense()
        np.testing.assert_array_equal(path.tokens_SBL[i], p.argmax(-1))
        np.testing.assert_allclose(path.confidence_SBL[i], p.max(-1), rtol=1e-4)
    np.testing.assert_allclose(path.states[4], p @ net.table, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(tokens_BL, path.tokens_SBL[-1])
    plain, nothing = draw(net, Projected, steps=4)
    assert nothing is None
    np.testing.assert_array_equal(plain, tokens_BL)


def test_euler_converges_with_order_one_to_a_solvable_flow():
    """p_0(t) = (1 - t)^2 / 2 at every token has x_0(t) = (1 - t) (x_0(0) + t / 2) exactly."""
    params = {
        "embed": {"table": jnp.eye(2)},
        "head": {"kernel": jnp.asarray([[1.0, 0.0], [0.0, 0.0]]), "bias": jnp.zeros(2)},
    }

    def backbone(params, h_BLD, tau_B, tau_t, key):
        p = (1 - tau_B) ** 2 / 2
        logit = jnp.log(p / (1 - p))[:, None, None]
        return jnp.broadcast_to(logit, h_BLD.shape), None

    net, clock = Net(backbone, params, logit_cap=0.0), clock_lib.identity()
    start = jax.random.normal(jax.random.key(1), (B, 1, 2))
    exact = 0.5 * (start[..., 0] + 0.25)
    errors = []
    for steps in (8, 16, 32, 64):
        _, path = draw(
            net, OneHot, clock, sampler=Euler(eps=0.0), length=1, steps=steps, start=start,
            trajectory=True,
        )  # fmt: skip
        errors.append(float(jnp.abs(path.states[steps // 2, ..., 0] - exact).max()))
    ratios = np.asarray(errors[:-1]) / np.asarray(errors[1:])
    np.testing.assert_allclose(ratios, 2.0, rtol=0.1)
    assert errors[-1] < 3e-3


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_both_spaces_write_the_same_tokens_from_the_same_dense_noise(steps):
    with jax.enable_x64(True):
        model = tiny.model()
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.params(model))
        net, clock = model.net(params), clock_lib.build(V)
        dense = jax.random.normal(jax.random.key(3), (B, L, V), jnp.float64)
        results = []
        for make in SPACES.values():
            space = make({"student": net.table})
            start = space.from_dense(dense)
            tokens_BL, path = draw(net, make, clock, steps=steps, start=start, trajectory=True)
            views = jax.vmap(lambda x, space=space: space.view(x, "student"))(path.states)
            results.append((tokens_BL, views))
        np.testing.assert_array_equal(results[0][0], results[1][0])
        np.testing.assert_allclose(results[1][1], results[0][1], atol=1e-8)


def test_one_step_is_the_arg_max_of_the_first_answer():
    model = tiny.model()
    net = model.net(tiny.params(model))
    start = jax.random.normal(jax.random.key(2), (B, L, V))
    tokens_BL, _ = draw(net, OneHot, steps=1, start=start)
    posterior = net(start @ net.table, jnp.zeros(B)).posterior
    np.testing.assert_array_equal(tokens_BL, posterior.argmax())


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_as_many_network_evaluations_as_steps(steps):
    net, calls = constant_net(), []

    def counted(params, h_BLD, tau_s, tau_t, key):
        jax.debug.callback(lambda tau: calls.append(float(tau)), tau_s[0])
        return net.backbone(params, h_BLD, tau_s, tau_t, key)

    counting = Net(counted, net.params, logit_cap=0.0)
    draw(counting, steps=steps, trajectory=True)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(calls), np.arange(steps) / steps, rtol=1e-6)


@pytest.mark.parametrize("decode", [{}, {"temperature": 1.0, "top_p": 0.9}])
def test_a_sample_does_not_depend_on_its_batch(decode):
    model = tiny.model()
    net = model.net(tiny.params(model))

    def call(index):
        keys = sequence_keys(jax.random.key(4), index)
        return draw(net, Projected, keys=keys, steps=3, **decode, trajectory=True)

    many, path = call(jnp.arange(8))
    few, part = call(jnp.asarray([5, 2]))
    np.testing.assert_array_equal(few, many[jnp.asarray([5, 2])])
    np.testing.assert_allclose(part.states[0], path.states[0][jnp.asarray([5, 2])], atol=1e-6)


def test_temperature_one_draws_from_the_posterior_and_the_nucleus_cuts_it():
    net, keys = constant_net(), sequence_keys(jax.random.key(7), jnp.arange(200))
    options = dict(keys=keys, steps=1, length=100)
    tokens, _ = draw(net, Projected, temperature=1.0, **options)
    frequency = np.bincount(np.ravel(tokens), minlength=V) / tokens.size
    assert (np.abs(frequency - P) < 5 * np.sqrt(P * (1 - P) / tokens.size) + 1e-4).all()
    order = np.argsort(-P)
    kept = order[: np.searchsorted(np.cumsum(P[order]), 0.5) + 1]
    cut, _ = draw(net, Projected, temperature=1.0, top_p=0.5, **options)
    assert set(np.unique(cut)) == set(kept) and len(kept) < V / 2
    cold, _ = draw(net, Projected, temperature=1e-3, **options)
    assert (np.asarray(cold) == P.argmax()).all()
    assert (np.asarray(tokens[0]) != np.asarray(tokens[1])).any()


def test_denoiser_temperature_sharpens_every_prediction():
    _, path = draw(constant_net(temperature=0.5), steps=2, trajectory=True)
    sharp = P**2 / (P**2).sum()
    np.testing.assert_allclose(path.confidence_SBL, sharp.max(), rtol=1e-4)
    np.testing.assert_allclose(path.states[-1][0, 0], sharp, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make_space", SPACES.values())
def test_prior_scale_multiplies_the_first_noise_only(make_space):
    _, plain = draw(constant_net(), make_space, steps=2, trajectory=True)
    _, scaled = draw(constant_net(), make_space, steps=2, trajectory=True, prior_scale=0.5)
    np.testing.assert_allclose(scaled.states[0], 0.5 * plain.states[0], rtol=1e-6)
    np.testing.assert_allclose(scaled.states[-1], plain.states[-1], rtol=1e-6)


def test_euler_coefficients_take_times_of_any_shape():
    t_now = jnp.asarray([[0.0, 0.5, 1.0], [0.25, 1.0, 0.75]])
    t_next = jnp.asarray([[0.5, 0.75, 1.0], [0.5, 1.0, 1.0]])
    keep, add = maps.euler(t_now, t_next, eps=0.0)
    np.testing.assert_allclose(add[0, :2], [0.5, 0.5])
    keep, add = maps.euler(t_now, t_next)
    assert keep.shape == add.shape == (2, 3)
    np.testing.assert_array_equal(keep + add, 1.0)
    np.testing.assert_array_equal(add[t_now == 1.0], 0.0)  # a clean token stays
    np.testing.assert_allclose(add[1, 2], 0.25 / (0.25 + 1e-5), rtol=1e-6)
    x, p = jnp.full((2, 3), 2.0), jnp.full((2, 3), 0.5)
    stepped = x + (t_next - t_now) * maps.velocity(p, x, t_now)
    np.testing.assert_allclose(keep * x + add * p, stepped, rtol=1e-6)


def test_the_grid_is_even_in_tau():
    np.testing.assert_array_equal(maps.grid(4), [0, 0.25, 0.5, 0.75, 1])


def test_the_grid_becomes_finer_towards_the_end():
    np.testing.assert_allclose(maps.grid(4, 2.0), [0, 0.4375, 0.75, 0.9375, 1], rtol=1e-6)
    np.testing.assert_array_equal(maps.grid(1, 3.0), [0, 1])
    fine = np.asarray(maps.grid(1024, 4.0))  # the last steps are below a float32
    assert fine[0] == 0 and fine[-1] == 1 and (np.diff(fine) > 0).all()
    np.testing.assert_allclose(fine, 1 - (1 - np.arange(1025) / 1024) ** 4.0, atol=2e-6)


@pytest.mark.parametrize("make_space", SPACES.values())
@pytest.mark.parametrize("name", ["euler", "flow_map", "two_model"])
def test_no_step_of_a_fine_grid_begins_where_nothing_is_left(name, make_space):
    """The texts are those of a coarser grid; two_model, from tau = 1, would read token 0."""
    sampler = config_lib.build(SAMPLERS, name, {}, "sampler")
    model = tiny.model(**tiny.needs(sampler))
    options = {}
    if sampler.needs.teacher:
        teacher = tiny.model()
        options["others"] = {"teacher": teacher.net(tiny.params(teacher, seed=1))}
    net = model.net(tiny.params(model))
    options |= {"sampler": sampler, "grid_power": 4.0, "trajectory": True}
    fine_BL, path = draw(net, make_space, steps=128, **options)
    assert (path.tau_S < 1).all() and np.isfinite(path.states).all()
    coarse_BL, _ = draw(net, make_space, steps=31, **options)
    assert np.mean(fine_BL == coarse_BL) > 0.8


def test_an_euler_step_from_a_clean_state_keeps_it_without_eps_too():
    keep, add = maps.euler(jnp.ones(2), jnp.ones(2), eps=0.0)
    np.testing.assert_array_equal([keep, add], [[1, 1], [0, 0]])


@pytest.mark.parametrize("make_space", SPACES.values())
@pytest.mark.parametrize("name", ["euler", "flow_map"])
def test_steps_follow_the_power_of_the_grid(name, make_space):
    sampler = config_lib.build(SAMPLERS, name, {}, "sampler")
    model = tiny.model(**tiny.needs(sampler))
    net = model.net(tiny.params(model))
    _, path = draw(net, make_space, sampler=sampler, steps=4, trajectory=True, grid_power=2.0)
    np.testing.assert_allclose(path.tau_S, [0, 0.4375, 0.75, 0.9375], rtol=1e-6)
    _, even = draw(net, make_space, sampler=sampler, steps=4, trajectory=True)
    assert not np.allclose(path.states[1], even.states[1], rtol=1e-3)


@pytest.mark.parametrize("make_space", SPACES.values())
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_row_runs_in_both_spaces(name, make_space):
    sampler = config_lib.build(SAMPLERS, name, {}, "sampler")
    model = tiny.model(**tiny.needs(sampler))
    net = model.net(tiny.params(model))
    options = {"steps": 3}
    if sampler.needs.teacher:
        teacher = tiny.model()
        options["others"] = {"teacher": teacher.net(tiny.params(teacher, seed=1))}
    if sampler.needs.causal:  # one token a step, after the begin mark
        options = {"steps": L - 1, "bos_id": 1}
    tokens_BL, path = draw(net, make_space, sampler=sampler, trajectory=True, **options)
    assert tokens_BL.shape == (B, L) and tokens_BL.dtype == jnp.int32
    assert (0 <= tokens_BL).all() and (tokens_BL < V).all()
    assert all(np.isfinite(x).all() for x in path)
