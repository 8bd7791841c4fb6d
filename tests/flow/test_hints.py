"""Losses say what they will be multiplied with, so that the vocabulary head is passed once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_nets
import tiny

from flm_jax import config as config_lib
from flm_jax.flow import fused
from flm_jax.flow.at import At
from flm_jax.flow.space import Projected
from flm_jax.losses import LOSSES

V, ROWS = 12, 3  # a third of a batch whose diagonal rows are no multiple of three
CASES = {
    "flow_matching": (1, {}),
    "flow_matching given": (1, {"given_fraction": 0.5}),
    "psd": (2, {}),
    "psd data": (2, {"on_diagonal": "data", "rescale": True}),
    "any_order": (2, {}),
    "lsd": (2, {}),
    "psd squared": (2, {"distance": "squared", "rescale": True}),
    "esd": (2, {}),
    "esd projected": (2, {"alpha": 2.0}),
    "residual": (1, {}),
    "second_stage": (1, {}),
    "autoregressive": (1, {}),
    "masked_diffusion": (1, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cotangent_is_the_hint_times_a_number(name, monkeypatch):
    """With masked tokens, weights per sequence, and a row that is not of its part's kind."""
    matched, ratio = [], fused.ratio

    def recorded(g_BL, hint_BL):
        jax.debug.callback(lambda same, g: matched.append((bool(same), np.any(g))),
                           ratio(g_BL, hint_BL)[1], g_BL)  # fmt: skip
        return ratio(g_BL, hint_BL)

    monkeypatch.setattr(fused, "ratio", recorded)
    calls, options = CASES[name]
    loss = config_lib.build(LOSSES, name.split()[0], options, "loss")
    token_loss = name in ("autoregressive", "masked_diffusion")
    own, teacher, residual = (small_nets.params(i, V, 3, dtype=jnp.float32) for i in range(3))
    clock, batch = tiny.clock(), tiny.batch(size=ROWS, length=4, vocab_size=V)
    mask_BL = jnp.asarray(np.random.default_rng(0).random((ROWS, 4)) < 0.7, jnp.float32)
    batch = dataclasses.replace(
        batch, mask_BL=mask_BL, global_size=3 * ROWS,
        index_B=3 * jnp.arange(ROWS, dtype=jnp.int32) + 1,
    )  # fmt: skip

    def value(params):
        student = small_nets.net(params)
        nets = {"student": student if token_loss else _weighted(student)}
        if loss.needs.teacher:
            nets["teacher"] = small_nets.net(teacher)
        if loss.needs.residual:
            nets["residual"] = small_nets.net(residual)
        space = Projected({role: net.table for role, net in nets.items()})
        draws = loss.draw(jax.random.key(0), batch, space)
        loss_BL, count_BL, _ = loss.evaluate(At(nets, space, clock), batch, draws)
        return jnp.sum(loss_BL * count_BL) / 7.0

    jax.block_until_ready(jax.jit(jax.grad(value))(own))
    jax.effects_barrier()
    assert len(matched) == calls and all(same for same, _ in matched)
    assert any(used for _, used in matched)


def _weighted(net):
    """The network with a learned log weight for every sequence."""

    def seen_by(params, h_BLD, tau_s, *rest):
        tau_B = tau_s if tau_s.ndim == 1 else jnp.mean(tau_s, axis=1)
        features, _ = net.backbone(params, h_BLD, tau_B, *rest)
        return features, 0.3 * jnp.arange(1.0, 1.0 + len(features))

    return dataclasses.replace(net, backbone=seen_by)
