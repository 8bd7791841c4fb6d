"""Flow-map targets and jumps against excerpts of the recorded official runs.

tests/parity_flow_maps.json holds, for two tokens of each method, what the official networks said
on the way; a scripted network says it here again, and our code must combine it to the recorded
states, targets and losses. Whole networks are compared by `flm_jax.lab.parity`.
"""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot
from flm_jax.flow.times import Path
from flm_jax.losses import ESD, LSD, PSD
from flm_jax.losses.flow_map import Setting
from flm_jax.losses.psd import semigroup

RECORDED = json.loads((pathlib.Path(__file__).parent / "parity_flow_maps.json").read_text())
V = 23
CLOCK = clock_lib.build(V)


def recorded(method: str) -> types.SimpleNamespace:
    entry = {k: x for k, x in RECORDED[method].items() if k != "case"}
    return types.SimpleNamespace(**{k: jnp.asarray(x, jnp.float32) for k, x in entry.items()})


def replay(record, answers) -> tuple[Setting, list]:
    """A `Setting` with a network that gives the answers in turn, and what it was asked.

    An answer maps (h, tau_s, tau_t) to log-probabilities.
    """
    asked = []

    def backbone(params, h_BLV, tau_s, tau_t, key):
        asked.append((h_BLV, tau_s, tau_t))
        return answers[(len(asked) - 1) % len(answers)](h_BLV, tau_s, tau_t), None

    head = {"kernel": jnp.eye(V), "bias": jnp.zeros(V)}
    net = Net(backbone, {"embed": {"table": jnp.eye(V)}, "head": head}, logit_cap=0.0)
    path = Path(*(getattr(record, name) for name in Path._fields))
    at = tiny.at({"student": net}, OneHot, CLOCK)
    setting = Setting(at, record.x_s, path, (None, None))
    return setting, asked


def said(log_p):
    return lambda h_BLV, tau_s, tau_t: log_p


def student(record, setting) -> Posterior:
    """delta_{s,t}(x_s) as recorded."""
    return Posterior(record.log_D_st, setting.at.student.head)


def assert_times(asked, *names_of_times):
    for (_, *times), wanted in zip(asked, names_of_times, strict=False):
        for mine, time in zip(times, wanted, strict=True):
            np.testing.assert_allclose(mine, time, rtol=1e-6)


def test_psd():
    record = recorded("psd")
    answers = [said(jnp.log(record.D_su_offdiag)), said(jnp.log(record.D_ut_offdiag))]
    setting, asked = replay(record, answers)
    path = setting.path
    np.testing.assert_allclose(semigroup(setting, "student").dense(), record.offdiag_target, 1e-5)
    np.testing.assert_allclose(asked[1][0], record.X_su, rtol=1e-5, atol=1e-6)
    assert_times(asked, (path.tau_s, path.tau_u), (path.tau_u, path.tau_t))
    weight = maps.semigroup_weight(path.s, path.u, path.t)
    np.testing.assert_allclose(weight, record.lambda_sut, rtol=1e-5)
    loss_BL = PSD().off_diagonal(setting, student(record, setting))
    np.testing.assert_allclose(loss_BL, record.offdiag_loss, rtol=1e-5)
    assert record.t[1] == 1.0 and record.lambda_sut[1] == 0.0  # a boundary sample is among them


def test_lsd():
    record = recorded("lsd")

    def moving(h_BLV, tau_s, tau_t):
        step = (tau_t - record.tau_t)[:, None, None]
        return record.log_D_st_offdiag + step * record.grad_tau_t_log_D_st_offdiag

    setting, asked = replay(record, [moving, said(jnp.log(record.D_t__X_st))])
    path, loss = setting.path, LSD()
    target = loss.target(setting)
    np.testing.assert_allclose(target.dense(), record.offdiag_target_before_entmax, 1e-5, 1e-7)
    projected = target.entmax(2.0).dense()
    np.testing.assert_allclose(projected, record.offdiag_target, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(asked[1][0], record.X_st, rtol=1e-4, atol=1e-6)
    assert_times(asked[1:2], (path.tau_t, path.tau_t))
    np.testing.assert_allclose(CLOCK.dtau_dt(path.t), record.d_tau_by_d_t, rtol=1e-3, atol=1e-8)
    loss_BL = loss.off_diagonal(setting, student(record, setting))
    np.testing.assert_allclose(loss_BL, record.offdiag_loss, rtol=1e-4)


def test_esd():
    record = recorded("esd")
    speed = CLOCK.dtau_dt(record.s)
    np.testing.assert_allclose(speed, record.d_tau_s_by_d_s, rtol=1e-4)
    flow = []

    @jax.custom_jvp
    def moving(h_BLV, tau_s, tau_t):
        return record.log_D_st_offdiag

    @moving.defjvp
    def _(primals, tangents):
        flow.extend(tangents[:2])
        return record.log_D_st_offdiag, record.d_ds_log_D_st

    setting, asked = replay(record, [said(jnp.log(record.D_s)), moving])
    path, loss = setting.path, ESD(official=True, start="self")
    np.testing.assert_allclose(
        loss.target(setting).dense(), record.offdiag_target, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(flow[0], record.tangent_x_s, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flow[1], speed)
    assert_times(asked[:1], (path.tau_s, path.tau_t))
    loss_BL = loss.off_diagonal(setting, student(record, setting))
    np.testing.assert_allclose(loss_BL, record.offdiag_loss, rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_jumps_with_fresh_noise(gamma):
    """Sums over the vocabulary, where p sums to 1: sum z' = keep sum z + add + noise sum xi."""
    record = RECORDED["sampler"][str(gamma)]
    t = np.asarray(record["t"], np.float32)
    np.testing.assert_allclose(CLOCK.to_t(maps.grid(4)), t, atol=2e-6)
    sums = np.asarray(record["state_sums"])
    for i in range(3):
        aim, keep, add, noise = maps.gamma_noise(jnp.asarray(t[i]), jnp.asarray(t[i + 1]), gamma)
        fresh = np.asarray(record["noise_sums"][i]) if gamma else 0.0
        np.testing.assert_allclose(sums[i + 1], keep * sums[i] + add + noise * fresh, atol=2e-5)
        np.testing.assert_allclose(CLOCK.to_tau(aim), record["tau_out"][i], atol=2e-6)
    np.testing.assert_allclose(sums[4], 1.0, atol=1e-5)
