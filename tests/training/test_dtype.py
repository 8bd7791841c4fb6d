"""model.dtype=auto: decided when a run begins, written down, and kept when it goes on."""

import collections
import dataclasses
import json
import shutil

import pytest
import tiny
from runs import finished as finished  # a fixture

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.host import bfloat16, distributed
from flm_jax.training import dtype, loop


def with_dtype(config: config_lib.Config, name: str) -> config_lib.Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=name))


def stored_dtype(workdir) -> str:
    return json.loads((workdir / "config.json").read_text())["model"]["dtype"]


def begin(config: config_lib.Config, workdir) -> loop.Session:
    session = loop.Session(config, workdir)
    session.batches.close()
    return session


@pytest.mark.parametrize("ratio, name", [(2.0, "bfloat16"), (0.4, "float32")])
def test_a_new_run_decides_says_and_writes_it_down(ratio, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bfloat16, "speedup", lambda: ratio)
    session = begin(with_dtype(tiny.run_config(tmp_path), "auto"), tmp_path / "run")
    assert stored_dtype(tmp_path / "run") == session.config.model.dtype == name
    assert session.experiment.model.module.dtype == name
    said = [line for line in capsys.readouterr().out.splitlines() if "model.dtype=auto" in line]
    assert len(said) == 1 and f"is {name}: bfloat16 products are {ratio:.2g} times" in said[0]


def test_a_run_goes_on_with_the_type_it_began_with(finished, tmp_path, monkeypatch):
    """Though this machine would choose another one; a type that is named must be the same."""
    config, original = finished
    monkeypatch.setattr(bfloat16, "speedup", lambda: pytest.fail("it has been decided"))
    shutil.copytree(original, tmp_path / "run")
    assert loop.train(with_dtype(config, "auto"), tmp_path / "run") == 0
    assert stored_dtype(tmp_path / "run") == "float32"
    with pytest.raises(UserError, match="model.dtype: 'float32' -> 'bfloat16'"):
        loop.train(with_dtype(config, "bfloat16"), tmp_path / "run")


def test_process_0_decides_for_the_others(monkeypatch):
    """The second process's own CPU would choose otherwise, and is not asked."""
    config, board = with_dtype(config_lib.Config(), "auto"), {}

    class Client:
        def key_value_set(self, key, value):
            board[key] = value

        def blocking_key_value_get(self, key, timeout_in_ms):
            return board[key]

    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_client", Client)
    found = []
    for index, ratio in enumerate((2.0, 0.5)):
        monkeypatch.setattr(distributed.jax, "process_index", lambda index=index: index)
        monkeypatch.setattr(
            distributed, "_calls", collections.Counter()
        )  # as in a process of its own
        monkeypatch.setattr(bfloat16, "speedup", lambda ratio=ratio: ratio)
        found.append(dtype.settled(config, lambda text: None).model.dtype)
    assert found == ["bfloat16", "bfloat16"]


def test_a_wrong_type_is_one_sentence():
    with pytest.raises(UserError, match="model.dtype=float16 is not known; use float32 or bf"):
        config_lib.validate(with_dtype(config_lib.Config(), "float16"), {})
    config = config_lib.load("quickstart", {"model.dtype": "auto"})
    config_lib.validate(config, experiment.tables())
