"""Flow-map objectives: dense formulas, exact flow maps, kinds of rows, options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny
from small_nets import probabilities

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot, Projected
from flm_jax.losses import ESD, LOSSES, LSD, PSD
from flm_jax.losses.base import Batch
from flm_jax.training import step as step_lib

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
    return loss.evaluate(At(nets, space, clock), batch, draws)


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
    assert loss.kinds(B) == (2, 5, 1, 0)
    params = all_params()
    space = OneHot({role: p["embed"]["table"] for role, p in params.items()})
    draws = loss.draw(KEY, batch, space) | {"dropout": None}
    draws["noise"] = draws["noise"].astype(jnp.float64)

    def ours(params):
        loss_BL, _, metrics = evaluate(loss, params, batch, draws, clock)
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


@functools.cache
def compiled(loss, make_space, seen_by):
    """(params, batch) -> (loss_BL, metrics, path) with drawn numbers, float32."""
    clock = clock_lib.build(V)

    def call(params, batch):
        nets = {role: small_nets.net(p, seen_by=seen_by) for role, p in params.items()}
        space = make_space({role: net.table for role, net in nets.items()})
        draws = loss.draw(KEY, batch, space)
        loss_BL, _, metrics = loss.evaluate(At(nets, space, clock), batch, draws)
        return loss_BL, metrics, loss.path(draws, clock, batch)

    return jax.jit(call)


def evaluated(
    loss,
    batch,
    roles=("student", "teacher"),
    make_space=Projected,
    seen_by=small_nets.backbone,
):
    params = {role: p for role, p in all_params(jnp.float32).items() if role in roles}
    return jax.tree.map(np.asarray, compiled(loss, make_space, seen_by)(params, batch))


@pytest.mark.parametrize("diagonal, parts", [(0.375, 2), (0.375, 4), (0.0, 4), (1.0, 4)])
@pytest.mark.parametrize("name", ["psd", "lsd", "esd"])
def test_rows_dealt_to_micro_batches_have_the_loss_they_have_in_the_whole_batch(
    name, diagonal, parts
):
    """Also where the number of diagonal rows, 3, does not divide; noise and times are the same."""
    options = {"diagonal_fraction": diagonal, "boundary_fraction": 0.3}
    loss = config_lib.build(LOSSES, name, options, "loss")
    whole = batch_of()
    loss_BL, _, path = evaluated(loss, whole)
    dealt = step_lib.split_batch(whole.tokens_BL, whole.mask_BL, parts)
    totals = 0.0
    for i in range(parts):
        part_BL, metrics, part_path = evaluated(loss, jax.tree.map(lambda x, i=i: x[i], dealt))
        np.testing.assert_allclose(part_BL, loss_BL[i::parts], rtol=2e-4, atol=2e-6)
        for mine, wanted in zip(part_path, path, strict=True):
            np.testing.assert_allclose(mine, wanted[i::parts], rtol=1e-6)
        totals += np.asarray(
            [metrics[f"loss_{kind}"].sum() for kind in ("diagonal", "off_diagonal")]
        )
    count = int(B * diagonal)
    means = [rows.mean() if rows.size else 0.0 for rows in (loss_BL[:count], loss_BL[count:])]
    np.testing.assert_allclose(totals / loss_BL.size, means, rtol=1e-4)


@pytest.mark.parametrize("times", ["uniform_diff", "uniform_st"])
def test_times_of_the_kinds(times):
    size = 64
    loss = PSD(off_diagonal_times=times, boundary_fraction=0.25, tau_min=0.1, tau_max=0.9)
    *_, path = evaluated(loss, batch_of(size))
    on, inside, ends = slice(0, 32), slice(32, 56), slice(56, 64)
    np.testing.assert_allclose(path.tau_s[on], path.tau_t[on], rtol=1e-6)
    assert len(np.unique(np.floor((path.tau_s[on] - 0.1) / 0.8 * size))) == 32  # strata
    assert (path.tau_s[inside] < path.tau_t[inside]).all()
    np.testing.assert_array_equal(path.tau_s[ends], 0.0)
    np.testing.assert_array_equal(path.tau_t[ends], 1.0)
    np.testing.assert_array_equal(path.t[ends], 1.0)
    np.testing.assert_allclose(path.tau_u, (path.tau_s + path.tau_t) / 2, rtol=1e-6)
    clock = clock_lib.build(V)
    for tau, t in zip(path[:3], path[3:], strict=True):
        np.testing.assert_allclose(t, clock.to_t(tau), rtol=1e-6)
    *_, path = evaluated(PSD(intermediate="random", off_diagonal_times=times), batch_of(size))
    share = (path.tau_u - path.tau_s)[32:] / (path.tau_t - path.tau_s)[32:]
    assert 0 <= share.min() < 0.2 and 0.8 < share.max() <= 1


@pytest.mark.parametrize("name", ["psd", "lsd", "esd"])
def test_the_diagonal_learns_from_data_without_a_teacher(name):
    options = {"on_diagonal": "data", "diagonal_fraction": 0.5}
    options |= {"start": "self"} if name == "esd" else {}
    loss = config_lib.build(LOSSES, name, options, "loss")
    assert not loss.needs.teacher and loss.needs.two_times
    loss_BL, _, path = evaluated(loss, batch_of(), roles=("student",), make_space=OneHot)
    params = all_params(jnp.float32)["student"]
    batch = batch_of()
    noise = OneHot({"student": params["embed"]["table"]})
    noise = noise.noise(batch.keys(jax.random.split(KEY, 6)[0]), L)
    s = path.s[:, None, None]
    x = (1 - s) * noise + s * jax.nn.one_hot(batch.tokens_BL, V)
    features = small_nets.backbone(
        params, x @ params["embed"]["table"], path.tau_s, path.tau_s, KEY
    )[0]
    raw = features @ params["head"]["kernel"] + params["head"]["bias"][None, None, :]
    log_p = jax.nn.log_softmax(30.0 * jnp.tanh(raw / 30.0))
    wanted = -jnp.take_along_axis(log_p, batch.tokens_BL[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(loss_BL[:4], wanted[:4], rtol=1e-4)


def test_which_networks_an_objective_needs():
    def needed(loss):
        return loss.needs.teacher, loss.needs.ema

    assert needed(PSD()) == needed(LSD()) == needed(ESD()) == (True, False)
    assert needed(PSD(target="ema", on_diagonal="data")) == (False, True)
    assert needed(LSD(on_diagonal="data", end="teacher")) == (True, False)
    assert needed(ESD(on_diagonal="data", start="self")) == (False, False)
    assert needed(ESD(on_diagonal="data")) == (True, False)
    forward = [loss().needs.forward_derivatives for loss in (PSD, LSD, ESD)]
    assert forward == [False, True, True]


def test_only_lsd_has_no_boundary_samples_unless_asked_for():
    assert [loss().boundary_fraction for loss in (PSD, LSD, ESD)] == [1 / 32, 0.0, 1 / 32]
    assert LSD(boundary_fraction=0.25).kinds(64) == (32, 24, 8, 0)


@pytest.mark.parametrize("name", ["psd", "lsd", "lsd teacher", "esd"])
@pytest.mark.parametrize("on", [True, False])
def test_dropout_is_on_in_targets_if_wanted_and_never_in_the_teacher(name, on):
    calls = []

    def seen_by(params, h_BLD, tau_s, tau_t, key):
        teacher = params["embed"]["table"].shape[1] == 4
        assert (tau_t is None) == teacher
        calls.append(("teacher" if teacher else "student", key is not None))
        return small_nets.backbone(params, h_BLD, tau_s, tau_t, key)

    loss = dataclasses.replace(CASES[name], target_dropout=on, on_diagonal="teacher")
    evaluated(loss, batch_of(), seen_by=seen_by)
    targets = [dropout for role, dropout in calls[1:] if role == "student"]
    assert calls[0] == ("student", True) and targets and set(targets) == {on}
    assert {dropout for role, dropout in calls if role == "teacher"} == {False}


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("psd", {"on_diagonal": "nobody"}, "on_diagonal='nobody' is unknown; choose 'teacher' or"),
        ("psd", {"diagonal_fraction": 1.5}, r"diagonal_fraction=1.5 must be in \[0, 1\]"),
        ("lsd", {"boundary_fraction": -0.1}, r"boundary_fraction=-0.1 must be in \[0, 1\]"),
        (
            "lsd",
            {"boundary_fraction": float("nan")},
            "'boundary_fraction' of loss 'lsd' must be a number",
        ),
        ("esd", {"tau_min": 0.9, "tau_max": 0.1}, "need 0 <= tau_min < tau_max <= 1"),
        ("psd", {"off_diagonal_times": "even"}, "off_diagonal_times='even' is unknown"),
        ("psd", {"intermediate": "end"}, "intermediate='end' is unknown; choose 'midpoint' or"),
        ("psd", {"distance": "l1"}, "distance='l1' is unknown; choose 'cross_entropy' or"),
        ("psd", {"target": "teacher"}, "target='teacher' is unknown; choose 'student' or 'ema'"),
        ("lsd", {"alpha": 1.0}, "alpha=1.0 of the entmax projection must be above 1, up to 2"),
        ("lsd", {"end": "data"}, "end='data' is unknown; choose 'self' or 'teacher'"),
        ("esd", {"alpha": 3.0}, r"alpha=3.0 must be 0 \(squared error\) or above 1, up to 2"),
        ("esd", {"alpha": -1.0}, "alpha=-1.0 must be 0"),
        ("esd", {"start": "data"}, "start='data' is unknown; choose 'self' or 'teacher'"),
        ("psd", {"rescal": True}, "has no option 'rescal'; did you mean rescale"),
    ],
)
def test_wrong_options_are_one_sentence(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        config_lib.build(LOSSES, name, options, "loss")
