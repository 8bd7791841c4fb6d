"""flm train: which config a run gets, and what is said when there is none."""

import pytest
import tiny
from commands import call

from flm_jax import config as config_lib
from flm_jax.training import loop


@pytest.fixture
def begun(tmp_path):
    """(config, workdir) of a run, as far as its config goes."""
    config = tiny.run_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(config_lib.to_json(config))
    return config, tmp_path / "run"


@pytest.fixture
def trained(monkeypatch):
    """What training would have been given: (config, workdir) of every call."""
    calls = []
    monkeypatch.setattr(loop, "train", lambda *given: calls.append(given) or 0)
    return calls


def test_a_run_goes_on_with_its_own_config(begun, trained):
    config, workdir = begun
    assert call("train", f"--workdir={workdir}") == 0
    words = ["--config.train.steps=500", "--config.train.max_minutes=30"]
    assert call("train", f"--workdir={workdir}", *words) == 0
    changed = config_lib.changed(config, {"train.steps": 500, "train.max_minutes": 30.0})
    assert trained == [(config, workdir), (changed, workdir)]


def test_a_file_goes_before_the_stored_config(begun, trained):
    words = ["--config=configs/quickstart.py", "--config.seed=4", "--nodistributed"]
    assert call("train", f"--workdir={begun[1]}", *words) == 0
    assert trained[0][0] == config_lib.load("configs/quickstart.py", {"seed": 4})


def test_mistakes_get_a_sentence(begun, trained, tmp_path, capsys):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text("{")
    (tmp_path / "odd/config.json").mkdir(parents=True)
    for words, sentence in (
        ([], "--config=FILE is missing; try --config=configs/quickstart.py"),
        (["--config=configs/quickstart.py"], "--workdir=DIR is missing; try --workdir=runs/quick"),
        ([f"--workdir={tmp_path}"], f"and {tmp_path} holds no config.json of a run to go on with"),
        ([f"--workdir={tmp_path}", "--config.seed=1"], "--config=FILE is missing"),
        ([f"--workdir={tmp_path / 'damaged'}"], "damaged/config.json is not JSON"),
        ([f"--workdir={tmp_path / 'odd'}"], "--config=FILE is missing"),
        (["--workdir=gs://b"], "gs://b names no folder in a bucket; write it like gs://b/run"),
        (["--workdir=hf://b/x"], "hf://b/x is neither a local or mounted folder nor in a bucket"),
        ([f"--workdir={begun[1]}", "--config.train.stps=5"], "did you mean train.steps?"),
        ([f"--workdir={begun[1]}", "--steps=5"], "--config.train.steps or --config.sampler.st"),
    ):
        assert call("train", *words) == 2
        error = capsys.readouterr().err
        assert sentence in error and len(error.splitlines()) == 1
    assert trained == []
