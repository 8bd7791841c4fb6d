"""Exceptions nobody thought of: what is good is saved, told and recorded, and goes on exactly."""

import errno
import json
import os
import re
import signal
import subprocess

import jax
import pytest
from processes import Job, config_file
from runs import finished  # noqa: F401, a fixture
from test_train import assert_same_run, change, steps_of

from flm_jax.cli import exits
from flm_jax.data import Batches
from flm_jax.errors import TryAgain, UserError
from flm_jax.host import distributed
from flm_jax.host.runlog import MetricsLog
from flm_jax.training import loop
from flm_jax.training import workdir as workdir_lib


def failing(method, error: BaseException, call: int):
    """A method that raises in its n-th call instead of doing what it does."""
    calls = 0

    def wrapper(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return method(self, *arguments)

    return wrapper


def ended(workdir) -> tuple[str, int]:
    facts = json.loads((workdir / "run.json").read_text())
    return facts["stopped"], facts["step"]


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
PLACES = {
    # Six batches have been read, and the step of the sixth is done.
    "data": (Batches, "__next__", RuntimeError("exit code -9"), 7, 6),
    # The log of steps 5 and 6 is written when step 7 has been sent off.
    "log": (MetricsLog, "write", FULL, 4, 7),
    "samples": (loop.Session, "write_samples", MemoryError(), 1, 8),
    "told": (loop.Session, "write_samples", UserError("cannot write samples"), 1, 8),
}


SLOW = ("data", "log", "samples")  # the same way as the others, a training run each


@pytest.mark.parametrize(
    "place", [pytest.param(p, marks=[pytest.mark.slow] * (p in SLOW)) for p in PLACES]
)
def test_an_exception_in_the_loop_saves_what_is_good(place, finished, tmp_path, monkeypatch):  # noqa: F811
    config, reference = finished
    workdir = tmp_path / "run"
    owner, name, error, call, step = PLACES[place]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), error, call))
    with pytest.raises(UserError) as told:
        loop.train(config, workdir)
    monkeypatch.undo()
    assert told.value.exit_code == (2 if place == "told" else 75)
    assert steps_of(workdir)[-1] == step and ended(workdir) == ("failed", step)
    sentence = str(told.value)
    assert sentence.startswith(f"training stopped at step {step}: ") and str(error) in sentence
    assert f"; step {step} is saved; the same command goes on" in sentence
    trace = workdir / "tracebacks" / f"step_{step:08d}.txt"
    assert trace.exists() == (place != "told") == (str(trace) in sentence)
    if trace.exists():
        assert type(error).__name__ in trace.read_text() and "raise error" in trace.read_text()
    if place == "data":
        monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
        assert loop.train(config, workdir) == 0
        assert_same_run(config, workdir, reference)


def test_a_step_that_took_the_state_with_it_names_the_newest_checkpoint(
    finished, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    config, _ = finished
    compiled = loop.Session._compile

    def compile_and_fail(self):
        compiled(self)
        step = self.train_step

        def lose(state, *rest):
            lost = int(state.step) == 6
            result = step(state, *rest)
            assert any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
            if lost:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no more memory")
            return result

        self.train_step = lose

    monkeypatch.setattr(loop.Session, "_compile", compile_and_fail)
    quiet = change(config, "train", eval_every=0, sample_every=0)
    with (
        jax.transfer_guard("allow"),
        pytest.raises(TryAgain, match="step 6: .*RESOURCE.*model.remat=full.*step 4 is saved"),
    ):
        loop.train(quiet, tmp_path / "run")
    assert steps_of(tmp_path / "run") == [4] and ended(tmp_path / "run") == ("failed", 4)
    # Again at once: a restart would not help.
    monkeypatch.setattr(Batches, "__next__", failing(Batches.__next__, KeyError("a bug"), 1))
    with pytest.raises(KeyError):
        loop.train(quiet, tmp_path / "run")
    assert ended(tmp_path / "run") == ("failed", 4)
    monkeypatch.setattr(Batches, "__next__", failing(Batches.__next__, FULL, 1))
    with pytest.raises(
        UserError, match="No space left on device; free space there; step 4"
    ) as full:
        loop.train(quiet, tmp_path / "run")
    assert full.value.exit_code == 2
    # A worker that was killed is another matter.
    killed = failing(Batches.__next__, TryAgain("a worker died"), 1)
    monkeypatch.setattr(Batches, "__next__", killed)
    with pytest.raises(TryAgain, match="step 4: a worker died; step 4 is saved; the same command"):
        loop.train(quiet, tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_is_over_is_not_said_to_be_running(finished, tmp_path, monkeypatch):  # noqa: F811
    config, _ = finished
    workdir = tmp_path / "run"
    monkeypatch.setattr(Batches, "__next__", failing(Batches.__next__, KeyboardInterrupt(), 6))
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, workdir)
    assert ended(workdir) == ("interrupted", 4)
    # One that was killed leaves "running"; the next one fails before it trains.
    facts = json.loads((workdir / "run.json").read_text())
    (workdir / "run.json").write_text(json.dumps(facts | {"stopped": "running"}))
    with workdir_lib.locked(workdir), pytest.raises(UserError, match="another process is training"):
        loop.train(config, workdir)
    assert ended(workdir)[0] == "running"  # by whoever has the lock
    monkeypatch.setattr(loop.Session, "restore_or_init", failing(None, ValueError("no"), 1))
    with pytest.raises(ValueError, match="no"):
        loop.train(config, workdir)
    assert ended(workdir) == ("failed", 4)


def test_exit_codes_of_what_may_be_tried_again(capsys):
    assert distributed.exit_code(TryAgain("x")) == 75 and distributed.exit_code(UserError("x")) == 2

    def work():
        raise TryAgain("a worker died")

    with pytest.raises(SystemExit) as end:
        exits.exit_with(work)
    assert end.value.code == 75 and "error: a worker died" in capsys.readouterr().err


def workers_of(process: int) -> list[int]:
    """The processes that read its data."""
    found = subprocess.run(
        ["ps", "-eww", "-o", "pid,ppid,args"], capture_output=True, text=True
    ).stdout
    words = [line.split(None, 2) for line in found.splitlines() if "spawn_main" in line]
    return [int(pid) for pid, parent, _ in words if int(parent) == process]


@pytest.mark.slow  # real processes
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_data_worker_asks_for_a_restart(processes, tmp_path):
    """One process saves; of two both end with the sentence of the one that lost its worker."""
    workdir = tmp_path / "run"
    file = config_file(
        tmp_path, train__log_every=1, train__steps=100000, train__sample_every=0,
        train__save_every=20, train__eval_every=0, data__num_workers=2,
    )  # fmt: skip
    with Job(file, workdir, processes, alone=processes == 1) as job:
        job.wait_for_step(30)
        os.kill(workers_of(job.processes[-1].pid)[0], signal.SIGKILL)
        assert job.wait() == [75] * processes, job.shown()
    sentence = job.output[-1][1].partition("error: ")[2]
    stopped = int(re.match(r"training stopped at step (\d+): the data.num_w", sentence)[1])
    assert "exit code -9" in sentence and "data.num_workers=0 reads without them" in sentence
    saved = int(re.search(r"; step (\d+) is saved; the same command goes on", sentence)[1])
    assert "Traceback" not in job.shown() and saved == steps_of(workdir)[-1]
    assert ended(workdir)[0] == "failed"
    if processes == 1:
        assert saved == stopped
    else:
        assert "process 1 of 2 failed: training stopped" in job.output[0][1]
        assert stopped - 20 <= saved <= stopped
