"""Rows with a given part in training: it is seen as it is, and nothing is learnt of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot
from flm_jax.inference import heldout, solving
from flm_jax.losses import LOSSES
from flm_jax.losses.base import Batch
from flm_jax.options import Solving
from flm_jax.training import loop
from flm_jax.training import step as step_lib

PROMPT_BL = jnp.arange(tiny.L)[None] < jnp.array([0, 2, 3, tiny.L])[:, None]
MASK_BL = 1.0 - PROMPT_BL
TOKENS_BL = tiny.batch(seed=1).tokens_BL
KEY = jax.random.key(5)
KEEPING = {
    "flow_matching": {},
    "psd": {"on_diagonal": "data", "boundary_fraction": 0.5},
    "masked_diffusion": {},
    "autoregressive": {},
}


def parts(name: str):
    """(loss, make_net, parameters) of a tiny network that fits the loss."""
    loss = LOSSES[name](**KEEPING[name])
    model = tiny.model(depth=1, **tiny.needs(loss))
    return loss, model.net, tiny.params(model)


def at_of(net, params) -> At:
    made = net(params)
    return At({"student": made}, OneHot({"student": made.table}), tiny.clock())


def batch(tokens_BL=TOKENS_BL) -> Batch:
    return Batch(tokens_BL, MASK_BL, jnp.arange(tiny.B), tiny.B, PROMPT_BL)


@pytest.mark.parametrize("name", KEEPING)
def test_what_is_given_is_seen_and_not_learnt(name):
    loss, net, params = parts(name)
    at = at_of(net, params)
    draws = loss.draw(KEY, batch(), at.space)
    draws.pop("dropout", None)
    evaluate = jax.jit(lambda tokens_BL, draws: loss.evaluate(at, batch(tokens_BL), draws)[:2])
    loss_BL, count_BL = evaluate(TOKENS_BL, draws)
    assert not count_BL[PROMPT_BL].any() and count_BL[~PROMPT_BL][1:].all()
    other, _ = evaluate(jnp.where(PROMPT_BL, (TOKENS_BL + 1) % tiny.V, TOKENS_BL), draws)
    changed = np.abs(other - loss_BL) * (count_BL > 0) > 1e-6
    assert changed[1:3].any(axis=1).all()  # they are seen ...
    np.testing.assert_allclose(other[0], loss_BL[0], atol=1e-6)
    noised = {
        key: jnp.where(PROMPT_BL[..., None], x + 3.0, x) if key == "noise" else x
        for key, x in draws.items()
    }
    again, _ = evaluate(TOKENS_BL, noised)
    np.testing.assert_allclose(again * count_BL, loss_BL * count_BL, atol=1e-5)  # ... without noise


def test_the_step_tells_the_loss_what_is_given():
    loss, net, params = parts("flow_matching")
    gradients = step_lib.make_gradients(
        {"student": net}, loss, OneHot, tiny.clock(), accumulation_steps=2, prompts=True
    )
    values = jax.jit(gradients)(params, {}, TOKENS_BL, MASK_BL, KEY)[1]
    at = at_of(net, params)
    draws = loss.draw(KEY, batch(), at.space)
    loss_BL, count_BL, _ = loss.evaluate(at, batch(), draws)
    wanted = jnp.sum(loss_BL * count_BL) / jnp.sum(count_BL)
    np.testing.assert_allclose(values["loss"], wanted, rtol=1e-5)


def test_held_out_losses_see_what_is_given():
    _, net, params = parts("flow_matching")
    step = jax.jit(heldout.make_eval_step(net, OneHot, tiny.clock(), prompts=True))
    arguments = MASK_BL, jnp.arange(tiny.B), jnp.array([0.4]), KEY
    (found,), _ = step(params, TOKENS_BL, *arguments)
    made, tau_BL = net(params), jnp.where(PROMPT_BL, 1.0, 0.4)
    space = OneHot({"student": made.table})
    noise = space.noise(batch().keys(KEY), tiny.L)
    state = space.corrupt(noise, TOKENS_BL, tiny.clock().to_t(tau_BL))
    log_prob_BL = made(space.view(state, "student"), tau_BL).posterior.log_prob(TOKENS_BL)
    np.testing.assert_allclose(found, -jnp.sum(log_prob_BL * MASK_BL), rtol=1e-5)


def sums(folder, **changes) -> config_lib.Config:
    """Addition of two digits, left side given."""
    corpus = {"language": "addition", "given": True, "documents": 64, "held_out": 32}
    changes = {"loss__options": {"given": "uniform"}, **changes}
    return tiny.run_config(
        folder,
        data__name="synthetic",
        data__options=corpus,
        data__packing="one_per_row",
        data__length=8,
        sampler__steps=(2,),
        **{"loss": {}, "evals": (), **changes},
    )


def test_a_loss_that_would_learn_what_is_given_is_refused(tmp_path):
    config = sums(tmp_path, loss={"name": "uniform_diffusion"}, loss__options={})
    with pytest.raises(
        UserError, match="'synthetic' begin with a given part, .* 'uniform_diffusion' cannot"
    ):
        loop.train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_run_is_trained_goes_on_exactly_and_solves_sums(tmp_path):
    whole, halves = (sums(tmp_path, train__steps=8) for _ in range(2))
    config_lib.validate(whole, experiment.tables())
    assert loop.train(whole, tmp_path / "whole") == 0
    assert loop.train(sums(tmp_path, train__steps=4), tmp_path / "halves") == 0
    assert loop.train(halves, tmp_path / "halves") == 0
    logs = [
        {
            row["step"]: row["loss"]
            for row in map(json.loads, path.read_text().splitlines())
            if "loss" in row
        }
        for path in (tmp_path / run / "metrics.jsonl" for run in ("whole", "halves"))
    ]
    assert logs[0] == logs[1] and logs[0]
    output = tmp_path / "solved.json"
    options = Solving(
        checkpoint=str(tmp_path / "whole"), steps=(1, 3), num_samples=12, output=str(output)
    )
    solved = solving.solve(options)
    assert json.loads(output.read_text()) == solved and solved["tasks"] == 12
    for row, steps in zip(solved["rows"], (1, 3), strict=True):
        assert row["values"]["evaluations"] == steps and 0 <= row["values"]["right"] <= 1
