"""The input of one variance: measured, in both spaces, where tokens are given, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.experiment import Experiment
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import input_scale
from flm_jax.flow.at import At
from flm_jax.flow.net import Net
from flm_jax.flow.space import OneHot, Projected

V, D, L = 40, 8, 50
CLOCK = tiny.clock()
TABLE = 0.3 * jax.random.normal(jax.random.key(5), (V, D))
TAU = jnp.asarray([0.0, 0.1, 0.5, 0.9, 1.0])
N = len(TAU)


def echo(deviation: float, table=TABLE, clock=CLOCK) -> Net:
    """A network whose features are what its backbone sees, the estimate in the place of h."""

    def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None, estimate_BLD=None):
        return h_BLD if estimate_BLD is None else estimate_BLD, None

    head = {"kernel": jnp.eye(D, V), "bias": jnp.zeros(V)}
    net = Net(backbone, {"embed": {"table": table}, "head": head}, self_conditioning=True)
    return input_scale.scaled(net, clock.to_t, deviation)


def at(net: Net, make_space) -> At:
    return tiny.at({"student": net}, make_space, CLOCK)


@pytest.mark.parametrize("make_space", [OneHot, Projected])
def test_what_the_network_sees_has_one_deviation_at_every_time(make_space):
    """Over noise and tokens that are all as likely, given tokens and estimates among them."""
    length, here = 4000, at(echo(0.5), make_space)
    tokens = jax.random.randint(jax.random.key(0), (N, length), 0, V)
    noise = here.space.noise(jax.random.split(jax.random.key(1), N), length)
    given_BL = jnp.zeros((N, length), bool).at[:, ::2].set(True)
    t = CLOCK.to_t(TAU)
    for given in (None, given_BL):
        times = t if given is None else jnp.where(given, 1.0, t[:, None])
        state = here.space.corrupt(noise, tokens, times)
        seen = here.ask("student", state, TAU, given_BL=given).features_BLD
        np.testing.assert_allclose(jnp.std(seen, axis=(1, 2)), 0.5, rtol=0.06)
    clean = np.asarray(seen[:, ::2])  # the same at every time, whatever its row's
    per_token = clean / np.asarray(TABLE)[np.asarray(tokens[:, ::2])]
    np.testing.assert_allclose(per_token, per_token[0, 0, 0], rtol=1e-5)
    estimate = here.space.clean(tokens, jnp.float32)
    told = here.ask("student", state, TAU, estimate=estimate).features_BLD
    np.testing.assert_allclose(jnp.std(told), 0.5, rtol=0.03)
    np.testing.assert_allclose(told[:, ::2], clean, rtol=1e-5)


def test_both_spaces_see_the_same_and_the_table_has_its_gradient_through_the_scale():
    with jax.enable_x64(True):
        dense = jax.random.normal(jax.random.key(2), (N, L, V), jnp.float64)
        tokens = jax.random.randint(jax.random.key(0), (N, L), 0, V)

        def seen(table, make_space):
            here = at(echo(1.0, table), make_space)
            state = here.space.corrupt(here.space.from_dense(dense), tokens, CLOCK.to_t(TAU))
            return here.ask("student", state, TAU).features_BLD

        table = TABLE.astype(jnp.float64)
        both = [seen(table, make) for make in (OneHot, Projected)]
        np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-4)
        # A longer table is seen as the same one: the derivative along it is zero.
        along = jax.jvp(lambda x: seen(x, OneHot), (table,), (table,))[1]
        np.testing.assert_allclose(along, 0.0, atol=1e-9)


def test_derivatives_go_through_the_time():
    with jax.enable_x64(True):
        h, tau = TABLE[None, :4].astype(jnp.float64), jnp.asarray([0.4], jnp.float64)
        net = echo(1.0, clock=clock_lib.build(tiny.V, dtype=jnp.float64))
        features = jax.jit(lambda tau: net(h, tau).posterior.features_BLD)
        exact = jax.jvp(features, (tau,), (jnp.ones(1),))[1]
        numeric = (features(tau + 1e-4) - features(tau - 1e-4)) / 2e-4
    np.testing.assert_allclose(exact, numeric, rtol=1e-4)
    assert np.abs(exact).max() > 1e-3


def test_a_table_of_zeros_stays_finite():
    assert np.isfinite(echo(1.0, 0 * TABLE)(jnp.zeros((N, L, D)), TAU).posterior.features_BLD).all()


@pytest.mark.parametrize("role", ["net", "trained_net", "denoiser"])
def test_the_knob_reaches_every_network_of_an_experiment(tmp_path, role):
    plain, scaled = (
        Experiment(tiny.run_config(tmp_path, model__input_scale=deviation), tiny.V)
        for deviation in (0.0, 0.7)
    )
    params = tiny.params(plain.model)
    h_BLD = jax.random.normal(jax.random.key(0), (3, 6, 16))
    tau = jnp.asarray([0.1, 0.5, 0.9])
    v = input_scale.variance(params["embed"]["table"], scaled.clock.to_t(tau))
    nets = [getattr(one, role)(params) for one in (plain, scaled)]
    wanted = nets[0](h_BLD * (0.7 / jnp.sqrt(v))[:, None, None], tau).posterior.features_BLD
    found = nets[1](h_BLD, tau).posterior.features_BLD
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(found - nets[0](h_BLD, tau).posterior.features_BLD).max() > 1e-2
