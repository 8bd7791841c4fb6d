"""The last words of a run: its commands work when they are pasted into a shell."""

import pathlib
import shlex
import subprocess

import pytest
import tiny
from test_train import change, steps_of

from flm_jax import config as config_lib
from flm_jax.training import loop, summary

ROOT = pathlib.Path(__file__).resolve().parents[2]
ODD = "my runs [1]; it's"


def words(config: config_lib.Config) -> dict[str, list[str]]:
    """The words that a shell makes of the commands, from the first one that is no program."""
    found = {what: shlex.split(line) for what, line in summary.commands(config, ODD)}
    return {
        what: line[next(i for i, word in enumerate(line) if word in ("generate", "train", "rm")) :]
        for what, line in found.items()
    }


def test_the_commands_are_words_of_a_shell(tmp_path):
    config = tiny.run_config(tmp_path, train__max_minutes=3.2)
    assert words(config) == {
        "more samples": ["generate", f"--checkpoint={ODD}", "--steps=1,3"],
        "train longer": [
            "train", f"--workdir={ODD}", "--config.train.steps=24", "--config.train.max_minutes=7",
        ],
        "start over": ["rm", "-r", ODD],
    }  # fmt: skip
    assert words(change(config, "train", max_minutes=0.0))["train longer"][2:] == [
        "--config.train.steps=24"
    ]
    # Other schedules are made for one number of steps.
    assert "train longer" in words(change(config, "optim", schedule="stable"))
    assert list(words(change(config, "optim", schedule="cosine"))) == ["more samples", "start over"]


@pytest.mark.slow  # three programs that import everything
@pytest.mark.timeout(300)
def test_the_printed_commands_can_be_pasted(tmp_path, capsys):
    workdir = tmp_path / ODD / "run"
    assert loop.train(tiny.run_config(tmp_path / ODD, train__steps=2), workdir) == 0
    printed = dict(
        line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ":  " in line
    )

    def paste(what: str) -> str:
        done = subprocess.run(
            printed[what].strip(), shell=True, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--- 1 step," in (samples := paste("more samples")) and "--- 3 steps," in samples
    assert "The run is finished at step 4 of 4." in paste("train longer")
    assert steps_of(workdir) == [2, 4]
    paste("start over")
    assert not workdir.exists()
