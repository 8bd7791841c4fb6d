"""Several EMAs beside the first: what they are, saved, resumed exactly, chosen after training."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
import tiny
from config_changes import changed, sentence

import flm_jax
from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.checkpoint import Checkpoints
from flm_jax.config import OptimConfig
from flm_jax.errors import UserError
from flm_jax.flow.space import Projected
from flm_jax.host import sharding
from flm_jax.lab.plan import memory as memory_lib
from flm_jax.lab.plan import program
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.training import loop, optim
from flm_jax.training import step as step_lib

DECAYS = (0.3, 0.15)  # beside 0.9; not above what the warm-up of all allows
NAMES = OptimConfig(ema_decays=DECAYS).more_emas


def equal(tree, reference) -> bool:
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def test_every_ema_has_its_own_decay_and_the_first_one_stays_what_it_was():
    model, batch, key = tiny.model(), tiny.batch(), jax.random.key(3)
    params = tiny.params(model)

    @functools.cache
    def run(decay: float, more: tuple[float, ...]):
        """States after 0 to 4 steps, the third of which has no finite loss."""
        names = OptimConfig(ema_decays=more).more_emas
        step = step_lib.make_train_step(
            {"student": model.net}, FlowMatching(), Projected, tiny.clock(), optax.sgd(0.1),
            ema_decay=decay, skip_limit=2, more_emas=names,
        )  # fmt: skip
        state = step_lib.init_state(params, optax.sgd(0.1), FlowMatching(), more_emas=names)
        states, step = [state], jax.jit(step)
        for mask in (1.0, 1.0, np.nan, 1.0):
            state, _ = step(state, {}, batch.tokens_BL, batch.mask_BL * mask, key)
            states.append(state)
        return states

    for state, plain in zip(run(0.9, DECAYS), run(0.9, ()), strict=True):
        assert equal((state.params, state.ema), (plain.params, plain.ema)) and not plain.emas
    for decay, name in zip(DECAYS, NAMES, strict=True):
        for state, alone in zip(run(0.9, DECAYS), run(decay, ()), strict=True):
            assert equal(state.emas[name], alone.ema)
    last = run(0.9, DECAYS)
    assert equal(last[3].emas, last[2].emas) and not equal(last[4].emas, last[3].emas)
    assert not equal(last[4].emas["ema_0.3"], last[4].emas["ema_0.15"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(config, workdir) of 8 steps at one go."""
    folder = tmp_path_factory.mktemp("emas")
    config = tiny.run_config(
        folder, optim__ema_decays=DECAYS, train__steps=8, train__sample_every=0, train__eval_every=0
    )
    config_lib.validate(config, experiment.tables())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.summary, "finish", lambda *_: None)
        assert loop.train(config, folder / "whole") == 0
        for steps in (4, 8):  # stopped and gone on
            part = dataclasses.replace(config.train, steps=steps)
            assert loop.train(dataclasses.replace(config, train=part), folder / "resumed") == 0
    return config, folder


def items(workdir):
    model = flm_jax.load(workdir)
    wanted = dict.fromkeys(("params", "ema", *NAMES), model.params)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(wanted)[1]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_exactly(trained):
    _, folder = trained
    assert equal(items(folder / "whole"), items(folder / "resumed"))


@pytest.mark.slow
def test_one_is_chosen_after_training(trained, tmp_path):
    _, folder = trained
    stored = items(folder / "whole")
    chosen = {"ema:0.3": "ema_0.3", "ema:.150": "ema_0.15", "ema:0.9": "ema", "ema": "ema",
              "raw": "params"}  # fmt: skip
    for weights, name in chosen.items():
        assert equal(flm_jax.load(folder / "whole", weights).params, stored[name]), weights
    assert len({np.asarray(x["embed"]["table"]).tobytes() for x in stored.values()}) == 4
    for wrong in ("ema:0.6", "ema:", "best"):
        with pytest.raises(UserError, match=f"weights='{wrong}' is unknown; choose ema or raw or "
                           "ema:0.9 or ema:0.3 or ema:0.15"):  # fmt: skip
            flm_jax.load(folder / "whole", wrong)


@pytest.mark.slow
def test_all_start_at_the_parameters_that_a_run_starts_from(trained, tmp_path):
    config, folder = trained
    config = dataclasses.replace(config, init_from=str(folder / "whole"))
    session = loop.Session(config, tmp_path / "next")
    with session.log:
        _, state = session.restore_or_init()
        session.batches.close()
    assert equal(state.params, flm_jax.load(folder / "whole").params)
    assert set(state.emas) == set(NAMES)
    assert all(equal(ema, state.params) for ema in state.emas.values())


@pytest.mark.slow
def test_another_list_is_another_run(trained):
    config, folder = trained
    fewer = dataclasses.replace(config.optim, ema_decays=(0.3,))
    with pytest.raises(UserError, match="optim.ema_decays"):
        loop.train(dataclasses.replace(config, optim=fewer), folder / "whole")


def test_decays_that_are_named_twice_are_refused():
    for decays in ((0.5, 0.5), (0.9999,)):
        said = sentence(config_lib.validate, changed(optim__ema_decays=decays), {})
        assert f"{decays[0]} is more than once among optim.ema_decay and optim.ema_decays" in said
    assert "must be below 1" in sentence(config_lib.validate, changed(optim__ema_decays=(1.0,)), {})


def test_planned_memory_counts_them(tmp_path):
    plain, more = (
        program.work(tiny.run_config(tmp_path, optim__ema_decays=decays), 40)
        for decays in ((), DECAYS)
    )
    found = [memory_lib.bytes_per_chip(one.state, (1, 1, 1)) for one in (plain, more)]
    assert found[1] - found[0] == 2 * 4 * plain.parameters


def test_they_are_shared_between_devices_like_the_first(monkeypatch):
    monkeypatch.setattr(sharding, "SMALL", 1)  # so that fsdp cuts even these tiny arrays
    mesh = sharding.make_mesh((2, 2, 2))
    optimizer = optim.optimizer(OptimConfig(ema_decays=DECAYS))
    state = step_lib.init_state(
        tiny.params(tiny.model()), optimizer, FlowMatching(), more_emas=NAMES
    )
    where = sharding.shardings(state, mesh)
    assert where.emas == dict.fromkeys(NAMES, where.ema)
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(where.emas))
