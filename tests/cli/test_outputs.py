"""What cannot be written is said before anything is computed for it."""

import os
import pathlib

import pytest
from commands import call
from official_files import hub

from flm_jax import inference
from flm_jax.data import inspect, statistics
from flm_jax.errors import UserError
from flm_jax.inference import evaluation
from flm_jax.inference.conversion import convert
from flm_jax.interop import official
from flm_jax.lab.benchmark import sweep
from flm_jax.lab.parity import goldens, runner
from flm_jax.options import Evaluation

TOO_LONG = "x" * 250  # no name of a file that is written under a temporary name first


@pytest.fixture(params=["too long", "far too long", "a folder's place is taken", "nothing listens"])
def nowhere(request, tmp_path) -> pathlib.Path:
    """A path in a folder that exists, where nothing can be written; not by root either."""
    if request.param == "too long":
        return tmp_path / TOO_LONG
    if request.param == "far too long":
        return tmp_path / (2 * TOO_LONG)
    if request.param == "nothing listens":
        (tmp_path / "closed").symlink_to("/proc/self/fd/999")
        return tmp_path / "closed"
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file" / "x")
    return tmp_path / "link"


def refuses(monkeypatch, owner, name):
    monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("worked before it looked"))


def test_generate(nowhere, monkeypatch, capsys):
    refuses(monkeypatch, inference, "load")
    assert call("generate", "--checkpoint=x", f"--output={nowhere}") == 2
    assert f"cannot write {nowhere}: " in capsys.readouterr().err


def test_evaluate(nowhere, monkeypatch):
    refuses(monkeypatch, inference, "load")
    with pytest.raises(UserError, match=f"cannot write {nowhere}: "):
        evaluation.evaluate(Evaluation(checkpoint="x", output=str(nowhere)))


def test_the_samples_of_evaluate(tmp_path):
    (tmp_path / "r").symlink_to("r")
    for folder in ("r/samples", TOO_LONG + 10 * "x"):
        with pytest.raises(UserError, match="cannot write .*steps_00001.jsonl: "):
            with evaluation._samples_folder(str(tmp_path / folder), None):
                pytest.fail("went on")
    with evaluation._samples_folder(str(tmp_path / "new/samples"), None):
        assert os.listdir(tmp_path) == ["r"]


def test_pictures_of_inspect(nowhere, monkeypatch, capsys):
    refuses(monkeypatch, inspect, "prepared_below")
    refuses(monkeypatch, statistics, "measure")
    assert call("inspect", "rows", f"--html={nowhere}") == 2
    assert f"cannot write {nowhere}: " in capsys.readouterr().err


def test_parity(nowhere, monkeypatch, capsys):
    refuses(monkeypatch, runner, "run")
    monkeypatch.setattr(goldens, "read", lambda _: [])
    assert call("parity", "goldens", "--json", str(nowhere)) == 2
    assert f"cannot write {nowhere}: " in capsys.readouterr().err


def test_convert(tmp_path, monkeypatch):
    folder, _ = hub(tmp_path / "official")
    refuses(monkeypatch, official, "read")
    for name in (TOO_LONG, 2 * TOO_LONG):
        with pytest.raises(UserError, match="cannot write .*: File name too long"):
            convert(folder, tmp_path / name)
    assert os.listdir(tmp_path) == ["official"]


def test_a_sweep(tmp_path):
    with pytest.raises(UserError, match="cannot write .*json: File name too long"):
        sweep.check(tmp_path, TOO_LONG)
