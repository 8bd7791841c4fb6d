"""Given tokens at the price of one time per sequence: exactly what times per position compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.flow import clock as clock_lib
from flm_jax.flow.space import OneHot
from flm_jax.models import conditioning

B, L, D = tiny.B, tiny.L, tiny.D
GIVEN_BL = np.random.default_rng(0).random((B, L)) < 0.5
GIVEN_BL[1], GIVEN_BL[2] = True, False


def test_given_tokens_are_times_per_position_exactly_also_in_the_gradient():
    with jax.enable_x64(True):
        model = tiny.model(two_times=True, loss_weighting=True, remat="full", depth=1)
        params = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.params(model))
        h_BLD = jax.random.normal(jax.random.key(0), (B, L, D), jnp.float64)
        tau = [jnp.linspace(0.1, 0.6, B), jnp.linspace(0.3, 0.9, B)]

        @jax.jit
        def both(params, h_BLD, tau):
            spread = [jnp.where(GIVEN_BL, 1.0, one[:, None]) for one in tau]

            def of(tau, **given):
                def heard(params):
                    output = model.net(params)(h_BLD, *tau, **given)
                    features = output.posterior.features_BLD
                    weights = jnp.cos(jnp.arange(D, dtype=float))[None, None]
                    loss = jnp.sum(features * weights) + jnp.sum(output.log_weight**2)
                    return loss, (features, output.log_weight)

                return jax.value_and_grad(heard, has_aux=True)(params)

            return of(tau, given_BL=jnp.asarray(GIVEN_BL)), of(spread)

        fast, general = both(params, h_BLD, tau)
        for mine, wanted in zip(*map(jax.tree.leaves, (fast, general)), strict=True):
            assert mine.shape == wanted.shape
            np.testing.assert_allclose(mine, wanted, rtol=1e-10, atol=1e-11)
        assert np.ptp(fast[1]["blocks"]["modulation"]["kernel"]) > 0.1


def test_conditioning_is_computed_for_one_sequence_more_not_for_every_token():
    model = tiny.model(two_times=True)
    params, width = tiny.params(model), model.module.cond_dim
    arguments = params, jnp.zeros((B, L, D)), jnp.zeros(B), jnp.ones(B)

    given_BL = jnp.asarray(GIVEN_BL)
    program = str(jax.make_jaxpr(lambda *a: model.backbone(*a, given_BL=given_BL))(*arguments))
    assert f"f32[{B + 1},{6 * D}]" in program and f"f32[{B * L},{6 * D}]" not in program
    assert f"f32[{B + 1},{width}]" in program and f"f32[{B * L},{width}]" not in program


def test_networks_are_asked_with_given_tokens_by_role():
    model = tiny.model(two_times=True)
    at = tiny.at({"student": model.net(tiny.params(model))}, OneHot, clock_lib.identity())
    state = jax.random.normal(jax.random.key(1), (B, L, tiny.V))
    tau = jnp.linspace(0.2, 0.8, B)
    mine = at.ask("student", state, tau, tau, given_BL=jnp.asarray(GIVEN_BL))
    spread = jnp.where(GIVEN_BL, 1.0, tau[:, None])
    wanted = at.ask("student", state, spread, spread)
    np.testing.assert_allclose(mine.features_BLD, wanted.features_BLD, rtol=1e-4, atol=1e-5)


def test_times_per_position_and_given_tokens_exclude_each_other():
    with pytest.raises(ValueError, match=r"one per sequence, not \(4, 6\)"):
        conditioning.with_given(jnp.zeros((B, L)), jnp.asarray(GIVEN_BL))
