"""The command that can be pasted: with the script where there is one, else with the interpreter."""

import pathlib
import shlex
import sys

import pytest

from flm_jax.host.command import pasteable

WORDS = "generate", "--checkpoint=my run", "it's"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with an interpreter; the current one is above it, and PATH is empty."""
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "a b/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    return tmp_path / "a b"


def script(folder: pathlib.Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "flm").write_text("#!/bin/sh\n")
    (folder / "flm").chmod(0o755)


def test_words_are_quoted(folder):
    line = pasteable(*WORDS)
    assert line.endswith(""" -m flm_jax generate --checkpoint='my run' 'it'"'"'s'""")
    assert shlex.split(line) == ["a b/python", "-m", "flm_jax", *WORDS]


def test_the_script_of_this_interpreter_is_used(folder, tmp_path, monkeypatch):
    script(tmp_path / "other")
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert pasteable("x") == "'a b/python' -m flm_jax x"  # flm on PATH is another Python's
    script(folder)
    assert pasteable("x") == "'a b/flm' x"
    monkeypatch.setenv("PATH", str(folder))
    assert pasteable("x") == "flm x"
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("PATH", "")
    assert pasteable("x") == f"'{folder / 'flm'}' x"
