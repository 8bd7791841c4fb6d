"""Flow-map objectives: dense formulas, exact flow maps, kinds of rows, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny
from small_nets import probabilities

from flm_jax.flow import clock as clock_lib
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses import ESD, LSD, PSD
from flm_jax.losses.base import Batch

V, L, B = 5, 3, 8
KEY = jax.random.key(0)
SPACES = {"onehot": OneHot, "projected": Projected}
KINDS = dict(diagonal_fraction=0.25, boundary_fraction=0.3)  # of 8: 2 diagonal, 5 interior, 1
CASES = {
    "psd": PSD(**KINDS),
    "psd ema squared": PSD(
        **KINDS, target="ema", distance="squared", rescale=True, intermediate="random",
        off_diagonal_times="uniform_st",
    ),
    "psd data squared": PSD(**KINDS, on_diagonal="data", distance="squared", tau_max=0.9),
    "lsd": LSD(**KINDS),
    "lsd teacher": LSD(**KINDS, on_diagonal="data", end="teacher"),
    "esd": ESD(**KINDS),
    "esd self projected": ESD(**KINDS, start="self", alpha=2.0, stratified=False),
}  # fmt: skip


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def batch_of(size: int = B, length: int = L, vocab_size: int = V) -> Batch:
    return tiny.batch(size=size, length=length, vocab_size=vocab_size)


def all_params(dtype=jnp.float64) -> dict:
    """Student and average of width 3; the teacher's is 4."""
    widths = {"student": 3, "teacher": 4, "ema": 3}
    return {
        role: small_nets.params(i, V, width, dtype=dtype)
        for i, (role, width) in enumerate(widths.items())
    }


def evaluate(loss, params, batch, draws, clock, make_space=OneHot):
    nets = {role: small_nets.net(p) for role, p in params.items()}
    space = make_space({role: net.table for role, net in nets.items()})
    return loss.evaluate(nets, batch, draws, space, clock)


def times_of(path):
    """s, u, t and 1 - s, ready to multiply (B, L, V)."""
    s, u, t = (x[:, None, None] for x in (path.s, path.u, path.t))
    return s, u, t, 1.0 - s + 1e-8


def psd_target(loss, fixed, x, path, clock):
    """lambda delta_{s,u}(x) + (1 - lambda) delta_{u,t}(X_{s,u}(x))."""
    s, u, t, left = times_of(path)
    network = fixed["ema" if loss.target == "ema" else "student"]
    first = probabilities(network, x, path.tau_s, path.tau_u)
    x_u = (1 - u) / left * x + (u - s) / left * first
    second = probabilities(network, x_u, path.tau_u, path.tau_t)
    weight = (1 - t) * (u - s) / ((1 - u) * (t - s) + 1e-8)
    return weight * first + (1 - weight) * second


def lsd_target(loss, fixed, x, path, clock):
    """Projection of D_t(X_{s,t}(x)) - (t - s)(1 - t)/(1 - s) d delta/dt."""
    s, _, t, left = times_of(path)
    delta, slope = jax.jvp(
        lambda tau_t: probabilities(fixed["student"], x, path.tau_s, tau_t),
        (path.tau_t,),
        (clock.dtau_dt(path.t),),
    )
    x_t = (1 - t) / left * x + (t - s) / left * delta
    end = fixed["teacher" if loss.end == "teacher" else "student"]
    end = probabilities(end, x_t, path.tau_t, path.tau_t)
    return small_nets.sparsemax(end - (t - s) * (1 - t) / left * slope)


def esd_target(loss, fixed, x, path, clock):
    """D_s + (t - s)/(1 - s) (delta - D_s) + (t - s) d delta/ds along dx/ds = (D_s - x)/(1 - s)."""
    s, _, t, left = times_of(path)
    start = fixed["teacher" if loss.start == "teacher" else "student"]
    start = probabilities(start, x, path.tau_s, path.tau_s)
    delta, slope = jax.jvp(
        lambda x, tau_s: probabilities(fixed["student"], x, tau_s, path.tau_t),
        (x, path.tau_s),
        ((start - x) / left, clock.dtau_dt(path.s)),
    )
    target = start + (t - s) / left * (delta - start) + (t - s) * slope
    return small_nets.sparsemax(target) if loss.alpha else target


TARGETS = {PSD: psd_target, LSD: lsd_target, ESD: esd_target}


def dense_loss(loss, params, batch, draws, clock):
    """Loss per token with everything over the vocabulary."""
    path = loss.path(draws, clock, batch)
    fixed = jax.lax.stop_gradient(params)
    s = path.s[:, None, None]
    clean = jax.nn.one_hot(batch.tokens_BL, V, dtype=s.dtype)
    x = (1 - s) * draws["noise"] + s * clean
    delta = probabilities(params["student"], x, path.tau_s, path.tau_t)
    here = clean if loss.on_diagonal == "data" else probabilities(fixed["teacher"], x, path.tau_s)
    target = TARGETS[type(loss)](loss, fixed, x, path, clock)
    entropy_on, entropy_off = (-jnp.sum(p * jnp.log(delta), -1) for p in (here, target))
    square_on, square_off = (jnp.sum((p - delta) ** 2, -1) for p in (here, target))
    squared_on = getattr(loss, "distance", None) == "squared"
    squared_off = squared_on or (isinstance(loss, ESD) and not loss.alpha)
    off = square_off if squared_off else entropy_off
    if getattr(loss, "rescale", False):
        off = off * (((path.t - path.s) / (1 - path.s)) ** 2)[:, None]
    on = square_on if squared_on else entropy_on
    return jnp.where(jnp.arange(B)[:, None] < 2, on, off)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_are_those_of_the_formula(name, x64):
    """Targets carry no gradient and other networks get none; float64, one-hot space."""
    loss, batch, clock = CASES[name], batch_of(), clock_lib.build(V)
    assert loss.counts(B) == (2, 5, 1)
    params = all_params()
    space = OneHot({role: p["embed"]["table"] for role, p in params.items()})
    draws = loss.draw(KEY, batch, space) | {"dropout": None}
    draws["noise"] = draws["noise"].astype(jnp.float64)

    def ours(params):
        loss_BL, metrics = evaluate(loss, params, batch, draws, clock)
        return jnp.mean(loss_BL), (loss_BL, metrics)

    def formula(params):
        loss_BL = dense_loss(loss, params, batch, draws, clock)
        return jnp.mean(loss_BL), loss_BL

    gradient, (loss_BL, metrics) = jax.jit(jax.grad(ours, has_aux=True))(params)
    wanted_gradient, wanted_BL = jax.jit(jax.grad(formula, has_aux=True))(params)
    np.testing.assert_allclose(loss_BL, wanted_BL, rtol=1e-6)
    for mine, wanted in zip(
        *map(jax.tree.leaves, (gradient["student"], wanted_gradient["student"])), strict=True
    ):
        assert np.abs(wanted).max() > 1e-4
        np.testing.assert_allclose(mine, wanted, rtol=1e-6, atol=1e-9)
    assert not any(
        np.any(x) for role in ("teacher", "ema") for x in jax.tree.leaves(gradient[role])
    )
    # Averaged over the batch, the two metrics are the means over the rows of their kind.
    np.testing.assert_allclose(jnp.mean(metrics["loss_diagonal"]), jnp.mean(loss_BL[:2]))
    np.testing.assert_allclose(jnp.mean(metrics["loss_off_diagonal"]), jnp.mean(loss_BL[2:]))
