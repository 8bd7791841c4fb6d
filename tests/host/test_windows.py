"""What works without the parts of Python that Windows lacks, and the sentence about the rest."""

import subprocess
import sys

import pytest
import tiny
from runs import finished as finished  # a fixture

from flm_jax.errors import UserError
from flm_jax.training import loop

# Modules and functions that Python has on POSIX systems only; what is not there yet by the time the
# libraries are imported, because these ask for other platforms in their own ways.
HIDE = """
import sys
import jax, flax.linen, optax, orbax.checkpoint, numpy, scipy.interpolate, tokenizers, tqdm  # noqa
import tensorboardX, sentencepiece, safetensors.numpy, multiprocessing, subprocess, absl.logging
import ctypes, os, signal
for name in ("fcntl", "resource", "pwd", "grp", "termios", "posix"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGKILL", "SIGQUIT"):
    delattr(signal, name)
for name in ("fork", "geteuid", "getuid", "killpg", "sched_getaffinity", "sysconf", "statvfs"):
    delattr(os, name)
def no_library(name=None, *_, **__):
    raise TypeError("bad argument type for built-in operation")  # of None
ctypes.CDLL = no_library
"""
USE = """
import flm_jax, flm_jax.inference.evaluation, flm_jax.inference.conversion
import flm_jax.data, flm_jax.report
from flm_jax import cli
samples = flm_jax.load(sys.argv[1]).generate(2, 1, seed=0)
print(samples.tokens.tolist())
cli.main(["generate", "--checkpoint=" + sys.argv[1], "--steps=1", "--num_samples=2",
          "--output=" + sys.argv[2]])
"""


@pytest.mark.slow
def test_models_load_and_write_without_what_windows_lacks(finished, tmp_path):
    output = tmp_path / "samples.jsonl"
    ran = subprocess.run(
        [sys.executable, "-c", HIDE + USE, str(finished[1]), str(output)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert len(output.read_text().splitlines()) == 2


def test_training_says_what_works(monkeypatch, tmp_path):
    config = tiny.run_config(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="training is for Linux and macOS, on Windows use WSL; flm"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "what"), [("train", "training"), ("prepare", "preparing a corpus")]
)
def test_commands_say_it_before_anything_else(name, what):
    hide = "import sys\nfor name in ('fcntl', 'resource'): sys.modules[name] = None\n"
    use = f"from flm_jax import cli\nsys.platform = 'win32'\ncli.main(['{name}'])"
    ran = subprocess.run([sys.executable, "-c", hide + use], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr.startswith(f"error: {what} is for Linux and macOS")
    assert len(ran.stderr.splitlines()) == 1
