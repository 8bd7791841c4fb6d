"""Commands of `flm`, in this process or in one of their own."""

import pathlib
import subprocess
import sys

import pytest

from flm_jax import cli

ROOT = pathlib.Path(__file__).resolve().parents[1]


def call(*words: str) -> int:
    """The exit code of a command that runs in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return end.value.code


def flm(*words: str, cwd=ROOT, **options) -> subprocess.CompletedProcess:
    """A command in a process of its own, with what it prints as text."""
    return subprocess.run(
        [sys.executable, "-m", "flm_jax", *words],
        capture_output=True, text=True, check=False, cwd=cwd, **options,
    )  # fmt: skip
