"""A run that would take long on this CPU is said to, before its first step."""

import logging

import numpy as np
import pytest
import tiny
from runs import finished  # noqa: F401, a fixture
from test_train import change

from flm_jax import target
from flm_jax.training import cost, estimate, loop


@pytest.fixture
def session(finished, tmp_path, monkeypatch):  # noqa: F811
    """A session that has not begun, on a machine of 1 GFLOP/s."""
    monkeypatch.setattr(estimate, "matrix_rate", lambda session: 1e9)
    session = loop.Session(finished[0], tmp_path / "run")
    yield session
    session.log.close()
    session.batches.close()


def test_the_products_of_a_step_are_those_of_the_formula(session):
    config = session.config
    forward = cost.evaluation_flops(config.model, session.experiment.vocab_size, config.data.length)
    tokens = config.train.batch_size * config.data.length
    # The gradient costs twice that. Time, state space and noise are small beside a real model only.
    assert 1.0 < estimate.step_flops(session) / (3 * tokens * sum(forward.values())) < 3.0


def test_long_runs_are_said_with_what_makes_them_shorter(session, monkeypatch):
    monkeypatch.setattr(
        estimate, "step_flops", lambda session: pytest.fail("a short run is traced")
    )
    assert estimate.warning(session, 0) == ""
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "matrix_rate", lambda session: 1e9)
    config, flops = session.config, estimate.step_flops(session)
    steps = int(50 * estimate.HOUR * estimate.SHARE * 1e9 / flops)  # of 50 hours

    def said(step=0, model=(), **knobs):
        session.config = change(
            change(config, "train", **{"steps": steps} | knobs), "model", **dict(model)
        )
        return estimate.warning(session, step)

    assert f"training to train.steps={steps} will take about 50 hours" in said()
    assert "--config.train.max_minutes=60" in said() and "smaller" not in said()
    assert "about 25 hours" in said(step=steps // 2)
    assert "or train.max_minutes=120 will take about 2 hours" in said(max_minutes=120.0)
    assert said(max_minutes=60.0) == "" == said(step=steps - 10)
    wide = said(model={"width": 256})
    assert "--config=configs/text_files.py:small" in wide and "--config.model.width=128" in wide
    with target.compiling_for(target.Target("tpu", "TPU v5 lite", 1)):
        assert said() == ""


def test_the_warning_comes_before_the_first_step(session, monkeypatch, caplog):
    session.config = change(session.config, "train", steps=10**9)

    def stop(*_):
        assert "will take about" in caplog.text
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Loop, "__call__", stop)
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        loop.go(session)


def test_the_rate_of_this_machine_is_a_number(finished, tmp_path):  # noqa: F811
    session = loop.Session(tiny.run_config(tmp_path), tmp_path / "run")
    assert np.isfinite(estimate.matrix_rate(session)) and estimate.matrix_rate(session) > 0
    session.log.close()
    session.batches.close()
