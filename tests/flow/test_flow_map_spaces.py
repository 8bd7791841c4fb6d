"""Distillation without the vocabulary in memory: exact gradients, no dense array, any devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny
from jaxprs import most_vectors

from flm_jax import config as config_lib
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import noise as noise_lib
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot, Projected
from flm_jax.host import sharding
from flm_jax.losses import LOSSES

V, B, L, WIDTH, TEACHER = 12, 8, 3, 3, 4
KEY = jax.random.key(0)


def params_of(roles, vocab_size=V, dtype=jnp.float32):
    """The teacher is one wider than the others."""
    return {
        role: small_nets.params(i, vocab_size, TEACHER if role == "teacher" else WIDTH, dtype=dtype)
        for i, role in enumerate(roles)
    }


def nets_and_space(params, make_space, chunk=16):
    nets = {role: small_nets.net(p, chunk) for role, p in params.items()}
    return nets, make_space({role: net.table for role, net in nets.items()})


class Held(Projected):
    """The noise part of the state is given: gradients reach the tables through the text alone."""

    def scatter(self, noise, scale=1.0):
        return space_lib.per_token(scale) * noise


@pytest.mark.parametrize("name", ["psd", "lsd", "esd", "residual", "second_stage"])
def test_the_gradient_of_the_table_is_the_projected_dense_one(name, monkeypatch):
    """z = n T R^-T with eta = 0: equal losses; dE = dE_text + P dE_noise; all else equal."""
    monkeypatch.setattr(noise_lib, "cholesky_factor", jnp.linalg.cholesky)
    with jax.enable_x64(True):
        loss = config_lib.build(LOSSES, name, {}, "loss")
        roles = ["student", "teacher"] + ["residual"] * (name == "second_stage")
        params = params_of(roles, dtype=jnp.float64)
        clock, batch = clock_lib.build(V), tiny.batch(size=B, length=L, vocab_size=V)
        dense = jax.random.normal(jax.random.key(1), (B, L, V), jnp.float64)
        joint = jnp.concatenate([p["embed"]["table"] for p in params.values()], axis=1)

        def value(student, make_space, noise):
            nets, space = nets_and_space(params | {"student": student}, make_space)
            draws = loss.draw(KEY, batch, space) | {"noise": noise, "dropout": None}
            loss_BL, *_ = loss.evaluate(At(nets, space, clock), batch, draws)
            return jnp.mean(loss_BL), loss_BL

        gradient = jax.jit(jax.grad(value, has_aux=True), static_argnums=1)
        own = params["student"]
        z = nets_and_space(params, Projected)[1].from_dense(dense)
        wanted, wanted_BL = gradient(own, OneHot, dense)
        mine, loss_BL = gradient(own, Projected, z)
        text, _ = gradient(own, Held, dense @ joint)
    np.testing.assert_allclose(loss_BL, wanted_BL, rtol=1e-8, atol=1e-9)
    # Without x64 the arithmetic of jax arrays is float32, whatever they hold.
    mine, wanted, text, joint = jax.tree.map(np.asarray, (mine, wanted, text, joint))
    table, table_wanted, table_text = (g.pop("embed")["table"] for g in (mine, wanted, text))
    P = joint @ np.linalg.pinv(joint)
    assert np.abs(table_wanted - table_text).max() > 1e-6
    expected = table_text + P @ (table_wanted - table_text)
    np.testing.assert_allclose(table, expected, rtol=1e-8, atol=1e-10)
    assert np.abs(table - table_wanted).max() > 1e-3 * np.abs(table_wanted).max()
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-8)


NEW = {
    "psd": {},
    "psd squared": {"distance": "squared", "target": "ema", "rescale": True},
    "lsd": {"alpha": 1.5},
    "lsd teacher": {"end": "teacher"},
    "esd": {},
    "esd self": {"start": "self", "alpha": 2.0},
    "residual": {},
    "second_stage": {},
}


@pytest.mark.parametrize("name", NEW)
def test_no_array_over_batch_positions_and_vocabulary(name):
    """V is a prime, so that every array over it shows; chunks hold 8 of the 32 positions."""
    vocab_size, length, chunk = 1009, 4, 8
    loss = config_lib.build(LOSSES, name.split()[0], NEW[name], "loss")
    params = params_of(["student", "teacher", "ema", "residual"], vocab_size)
    clock, batch = clock_lib.build(vocab_size), tiny.batch(0, B, length, vocab_size)

    def value(student, make_space):
        nets, space = nets_and_space(params | {"student": student}, make_space, chunk)
        draws = loss.draw(KEY, batch, space)
        return jnp.mean(loss.evaluate(At(nets, space, clock), batch, draws)[0])

    def largest(make_space):
        traced = jax.make_jaxpr(lambda p: jax.value_and_grad(value)(p, make_space))
        return most_vectors(traced(params["student"]).jaxpr, vocab_size)

    joint_width = 3 * WIDTH + TEACHER  # the joint table is (V, 13)
    assert chunk <= largest(Projected) <= max(chunk, joint_width) < B * length
    if name == "psd":
        assert largest(OneHot) >= B * length  # the counting can see one


@pytest.mark.parametrize(
    "name",
    ["psd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lsd", "esd", "second_stage"))],
)
def test_losses_are_the_same_on_eight_devices(name):
    loss = config_lib.build(LOSSES, name, {}, "loss")
    params, clock = params_of(["student", "teacher", "residual"]), clock_lib.build(V)
    batch = tiny.batch(size=B, length=L, vocab_size=V)

    @jax.jit
    def call(params, batch):
        nets, space = nets_and_space(params, Projected)
        draws = loss.draw(KEY, batch, space)
        return loss.evaluate(At(nets, space, clock), batch, draws)[0], draws["noise"]

    loss_BL, noise = call(params, batch)
    mesh = sharding.make_mesh((8, 1, 1))
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    there_BL, there_noise = call(params, placed)
    assert len(there_noise.sharding.device_set) == 8
    np.testing.assert_array_equal(there_noise, noise)
    np.testing.assert_allclose(there_BL, loss_BL, rtol=1e-4, atol=1e-6)
    assert np.ptp(loss_BL) > 1e-3


def test_one_table_in_two_roles_stays_one_table_without_gradients():
    table = small_nets.params(0, V, WIDTH, dtype=jnp.float32)["embed"]["table"]
    other = table + 1.0
    space = Projected({"student": table, "ema": table, "teacher": other})
    still = space_lib.without_gradients(space)
    assert still.noise_width == space.noise_width == 2 * WIDTH
    assert still.tables["student"] is still.tables["ema"]

    def seen(student):
        space = space_lib.without_gradients(Projected({"student": student, "teacher": other}))
        return jnp.sum(space.scatter(jnp.ones((1, 1, 2 * WIDTH))))

    assert not np.any(jax.grad(seen)(table))
