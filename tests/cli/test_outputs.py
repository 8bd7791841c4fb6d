"""What cannot be written is said before anything is computed for it."""

import os
import pathlib

import pytest
from absl.testing import flagsaver
from official_files import hub

from flm_jax import inference
from flm_jax.cli import flags as command_line
from flm_jax.cli import generate
from flm_jax.data import inspect, statistics
from flm_jax.errors import UserError
from flm_jax.inference import evaluation
from flm_jax.inference.conversion import convert
from flm_jax.interop import official
from flm_jax.lab.benchmark import sweep
from flm_jax.lab.parity import __main__ as parity
from flm_jax.lab.parity import runner

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


def command(main, *words: str) -> int:
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
        command_line.run_main(main, ["tool", *words])
    return end.value.code


def test_generate(nowhere, monkeypatch, capsys):
    refuses(monkeypatch, inference, "load")
    assert command(generate.main, "--checkpoint=x", f"--output={nowhere}") == 2
    assert f"cannot write {nowhere}: " in capsys.readouterr().err


def test_evaluate(nowhere, monkeypatch):
    refuses(monkeypatch, inference, "load")
    with pytest.raises(UserError, match=f"cannot write {nowhere}: "):
        evaluation.evaluate(evaluation.Options("x", output=str(nowhere)))


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
    assert command(inspect.main, "rows", f"--html={nowhere}") == 2
    assert f"cannot write {nowhere}: " in capsys.readouterr().err


def test_parity(nowhere, monkeypatch, capsys):
    refuses(monkeypatch, runner, "run")
    monkeypatch.setattr(parity.goldens, "read", lambda _: [])
    assert parity.main(["goldens", "--json", str(nowhere)]) == 2
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
