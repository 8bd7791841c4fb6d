"""Flow maps: a teacher that is asked several times, a student that is told its estimate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny
from small_nets import probabilities

from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot, Projected
from flm_jax.host import sharding
from flm_jax.losses import ESD, LSD, PSD, AnyOrder
from flm_jax.losses.base import Batch

V, L, B = 5, 3, 8
CLOCK = clock_lib.build(V)
KEY = jax.random.key(0)
KINDS = dict(diagonal_fraction=0.25, boundary_fraction=0.3)  # of 8: 2 diagonal, 5 interior, 1
TOLD = (np.arange(B) >= 1) & (np.arange(B) < 5)
WIDTHS = {"student": 3, "teacher": 4, "ema": 3}


def params(dtype=jnp.float64) -> dict:
    return {
        role: small_nets.params(i, V, width, dtype=dtype, told=True)
        for i, (role, width) in enumerate(WIDTHS.items())
    }


def batch_of() -> Batch:
    return tiny.batch(size=B, length=L, vocab_size=V)


def drawn(loss, batch, space):
    return tiny.wide(loss.draw(KEY, batch, space) | {"dropout": None})


def evaluate(loss, nets, batch, make_space=OneHot, dense=None):
    space = make_space({role: net.table for role, net in nets.items()})
    draws = drawn(loss, batch, space)
    if dense is not None:
        draws["noise"] = space.from_dense(dense)
    return loss.evaluate(At(nets, space, CLOCK), batch, draws).loss_BL


def several_times(passes: int):
    """A backbone that asks itself: what a teacher says after so many passes, as one plain net."""

    def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None):
        told_BLD = jnp.zeros_like(h_BLD)
        for _ in range(passes):
            features, _ = small_nets.backbone(params, h_BLD, tau_s, tau_t, key, None, told_BLD)
            logits = features @ params["head"]["kernel"] + params["head"]["bias"][None, None]
            p_BLV = jax.nn.softmax(30.0 * jnp.tanh(logits / 30.0))
            told_BLD = p_BLV @ params["embed"]["table"]
        return features, None

    return backbone


SLOW = pytest.mark.slow
ASKING = {
    "psd": PSD(**KINDS),
    "lsd": LSD(on_diagonal="data", end="teacher", **KINDS),
    "esd": ESD(**KINDS),
}


@pytest.mark.parametrize("name", ["psd", *(pytest.param(n, marks=SLOW) for n in ("lsd", "esd"))])
def test_a_student_learns_what_the_teacher_says_after_its_iterations(name):
    """In every place where the objective asks the teacher."""
    batch = batch_of()
    with jax.enable_x64(True):
        nets = {role: small_nets.net(p) for role, p in params().items() if role != "ema"}
        teacher = params()["teacher"]

        @jax.jit
        def losses():
            found = {}
            for passes in 1, 3:
                told = small_nets.net(teacher, self_conditioning=True)
                loss = dataclasses.replace(ASKING[name], teacher_iterations=passes)
                found[passes] = evaluate(loss, nets | {"teacher": told}, batch, Projected)
            plain = small_nets.net(teacher, seen_by=several_times(3))
            return found, evaluate(ASKING[name], nets | {"teacher": plain}, batch, Projected)

        found, wanted = losses()
    np.testing.assert_allclose(found[3], wanted, rtol=1e-6)
    assert np.abs(found[1] - wanted).max() > 1e-3


def formula(loss, params, batch):
    """Loss per token with everything over the vocabulary; estimates are constants."""
    draws = drawn(loss, batch, OneHot({"student": params["student"]["embed"]["table"]}))
    path = loss.path(draws, CLOCK, batch)
    s, u, t = (x[:, None, None] for x in (path.s, path.u, path.t))
    left = 1.0 - s + 1e-8
    clean = jax.nn.one_hot(batch.tokens_BL, V, dtype=s.dtype)
    x = (1 - s) * draws["noise"] + s * clean
    first_pass = probabilities(params["student"], x, path.tau_s, path.tau_t)
    told = jnp.where(TOLD[:, None, None], first_pass, 0.0)
    delta = probabilities(params["student"], x, path.tau_s, path.tau_t, told)

    fixed, x, told = jax.lax.stop_gradient((params, x, told))
    student = fixed["student"]
    if isinstance(loss, PSD):
        first = probabilities(fixed[loss.target], x, path.tau_s, path.tau_u, told)
        x_u = (1 - u) / left * x + (u - s) / left * first
        second = probabilities(fixed[loss.target], x_u, path.tau_u, path.tau_t, first)
        weight = (1 - t) * (u - s) / ((1 - u) * (t - s) + 1e-8)
        target = weight * first + (1 - weight) * second
    elif isinstance(loss, LSD):
        moved, slope = jax.jvp(
            lambda tau_t: probabilities(student, x, path.tau_s, tau_t, told),
            (path.tau_t,),
            (CLOCK.dtau_dt(path.t),),
        )
        x_t = (1 - t) / left * x + (t - s) / left * moved
        end = probabilities(student, x_t, path.tau_t, path.tau_t, moved)
        target = small_nets.sparsemax(end - (t - s) * (1 - t) / left * slope)
    else:
        start = probabilities(student, x, path.tau_s, path.tau_s, told)
        moved, slope = jax.jvp(
            lambda x, tau_s: probabilities(student, x, tau_s, path.tau_t, told),
            (x, path.tau_s),
            ((start - x) / left, CLOCK.dtau_dt(path.s)),
        )
        target = small_nets.sparsemax(start + (t - s) / left * (moved - start) + (t - s) * slope)
    on, off = (-jnp.sum(p * jnp.log(delta), -1) for p in (clean, target))
    return jnp.where(jnp.arange(B)[:, None] < 2, on, off)


CARRIED = {
    "psd": PSD(on_diagonal="data", target="ema", intermediate="random", **KINDS),
    "lsd": LSD(on_diagonal="data", **KINDS),
    "esd": ESD(on_diagonal="data", start="self", alpha=2.0, **KINDS),
}


@pytest.mark.parametrize("name", ["psd", "lsd", pytest.param("esd", marks=SLOW)])
def test_a_student_is_told_what_it_said_and_a_target_what_was_said_on_the_way(name):
    """Value and gradient are those of the formula in which estimates are constants."""
    loss, batch = CARRIED[name], batch_of()
    assert loss.kinds(B) == (2, 5, 1, 0)

    def ours(params):
        nets = {role: small_nets.net(p, self_conditioning=True) for role, p in params.items()}
        loss_BL = evaluate(loss, nets, batch)
        return jnp.mean(loss_BL), loss_BL

    def wanted(params):
        loss_BL = formula(loss, params, batch)
        return jnp.mean(loss_BL), loss_BL

    with jax.enable_x64(True):
        both = jax.jit(lambda p: [jax.grad(f, has_aux=True)(p) for f in (ours, wanted)])
        (gradient, loss_BL), (wanted_gradient, wanted_BL) = both(params())
    np.testing.assert_allclose(loss_BL, wanted_BL, rtol=1e-6)
    for mine, theirs in zip(*map(jax.tree.leaves, (gradient, wanted_gradient)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)
    assert np.abs(gradient["student"]["told"]).max() > 1e-4


def test_both_spaces_agree_and_devices_do_not_matter():
    loss, batch = PSD(on_diagonal="data", **KINDS), batch_of()

    def of(params, batch, dense, make_space):
        net = small_nets.net(params, self_conditioning=True)
        return evaluate(loss, {"student": net}, batch, make_space, dense)

    jitted = jax.jit(of, static_argnums=3)
    with jax.enable_x64(True):
        dense = jax.random.normal(KEY, (B, L, V), jnp.float64)
        student = params()["student"]
        onehot, projected = (jitted(student, batch, dense, make) for make in (OneHot, Projected))
        where = sharding.batch_sharding(sharding.make_mesh((8, 1, 1)))
        there = jitted(student, *jax.device_put((batch, dense), where), OneHot)
    np.testing.assert_allclose(onehot, projected, rtol=1e-3)  # the jitter of the noise
    assert len(there.sharding.device_set) == 8
    np.testing.assert_allclose(there, onehot, rtol=1e-6)


def test_any_order_flow_maps_are_told_too_and_with_a_map_of_zeros_nothing():
    loss, batch = AnyOrder(diagonal_fraction=0.25, boundary_fraction=0.3), batch_of()
    student = small_nets.params(0, V, 3, dtype=jnp.float32, told=True)
    silent = student | {"told": jnp.zeros((3, 3))}

    @jax.jit
    def losses(*many):
        nets = [small_nets.net(p, self_conditioning=True) for p in many]
        return [evaluate(loss, {"student": net}, batch) for net in (*nets, small_nets.net(many[0]))]

    heard, unheard, plain = losses(student, silent)
    np.testing.assert_allclose(unheard, plain, rtol=1e-5, atol=1e-6)
    differs = np.abs(heard - plain).max(1) > 1e-4
    np.testing.assert_array_equal(differs[:2], [False, True])  # targets of the others differ, too


def test_iterations_need_a_teacher_and_are_at_least_one():
    for options in {"on_diagonal": "data"}, {"on_diagonal": "data", "target": "ema"}:
        with pytest.raises(UserError, match="teacher_iterations=2 has no effect without a teacher"):
            PSD(teacher_iterations=2, **options)
    assert LSD(on_diagonal="data", end="teacher", teacher_iterations=2).needs.teacher
    with pytest.raises(UserError, match="teacher_iterations=0 must be at least 1"):
        PSD(teacher_iterations=0)
