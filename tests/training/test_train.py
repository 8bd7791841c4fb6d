"""The training loop on a real, tiny corpus: files, exact resume, signals, refusals."""

import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from runs import finished as finished  # a fixture

from flm_jax import config as config_lib
from flm_jax.checkpoint import Checkpoints
from flm_jax.errors import UserError
from flm_jax.host import runlog
from flm_jax.training import loop
from flm_jax.training import session as session_lib
from flm_jax.training import workdir as workdir_lib

TESTS = pathlib.Path(__file__).resolve().parents[1]


def change(config: config_lib.Config, section: str, **values) -> config_lib.Config:
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def copied(workdir: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    shutil.copytree(workdir, to / "run")
    return to / "run"


def steps_of(workdir: pathlib.Path) -> list[int]:
    return Checkpoints(workdir / "checkpoints").steps()


def final(config: config_lib.Config, workdir: pathlib.Path):
    """(step, state, next rows of data) that a session in this workdir would start from."""
    session = loop.Session(config, workdir)
    with session.log:
        step, state = session.restore_or_init()
        rows = next(session.batches)["tokens"]
        session.batches.close()
    return step, state, rows


def assert_same_run(config, workdir, reference_workdir):
    """Parameters, optimizer, EMA, data position and log are bit for bit the same."""
    step, state, rows = final(config, workdir)
    wanted_step, wanted, wanted_rows = final(config, reference_workdir)
    assert step == wanted_step == config.train.steps
    for mine, reference in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(mine), np.asarray(reference))
    np.testing.assert_array_equal(rows, wanted_rows)
    assert log_of(workdir) == log_of(reference_workdir)


def log_of(workdir) -> list[dict]:
    volatile = ("time", "tokens_per_second", "data_wait_share")
    return [{k: v for k, v in r.items() if k not in volatile} for r in runlog.read(workdir)]


def test_a_run_leaves_its_files_and_lowers_the_loss(finished):
    config, workdir = finished
    names = {path.name for path in workdir.iterdir()}
    assert names >= {
        "config.json", "run.json", "results.json", "metrics.jsonl", "report.html", "tokenizer",
        "checkpoints", "samples",
    }  # fmt: skip
    assert not list(workdir.glob("**/*.tmp"))
    assert steps_of(workdir) == [4, 8, 12]
    assert config_lib.from_json((workdir / "config.json").read_text()) == config
    run = json.loads((workdir / "run.json").read_text())
    assert (run["stopped"], run["step"]) == ("complete", 12)
    assert min(run["timings"].values()) > 0
    results = json.loads((workdir / "results.json").read_text())
    assert [group["steps"] for group in results["samples"]] == [1, 3]
    assert [len(group["texts"]) for group in results["samples"]] == [4, 4]
    assert len(results["strip"]["frames"]) == 3
    periodic = (workdir / "samples" / "step_00000008.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in periodic] == [8] * 4


def test_the_log_starts_at_ln_v_falls_and_has_every_row_once(finished):
    config, workdir = finished
    rows = runlog.read(workdir)
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert list(losses) == [2, 4, 6, 8, 10, 12]
    vocabulary = json.loads((workdir / "run.json").read_text())["corpus"]["vocab_size"]
    # The first update has learning rate 0, so two losses are those of the initialisation.
    assert losses[2] == pytest.approx(np.log(vocabulary), abs=1e-4)
    held_out = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert list(held_out) == [4, 8, 12]
    assert held_out[4] > held_out[8] > held_out[12]
    assert held_out[12] < np.log(vocabulary) - 0.1
    keys = [(row["step"], "loss" in row) for row in rows]
    assert len(set(keys)) == len(keys)


def test_evaluation_depends_on_the_parameters_only(finished):
    """Same numbers again, and whatever the batch (the last one is padded)."""
    config, workdir = finished
    session = loop.Session(config, workdir)
    with session.log:
        _, state = session.restore_or_init()
        logged = [row for row in runlog.read(workdir) if "eval/loss" in row][-1]["eval/loss"]
        session.log.write = lambda step, values: None
        assert session.evaluate(state, 12) == session.evaluate(state, 12) == logged
        session.config = change(config, "train", batch_size=16)
        assert session.evaluate(state, 12) == pytest.approx(logged, rel=1e-6)
        other = state.replace(ema=jax.tree.map(lambda x: 1.1 * x, state.ema))
        assert session.evaluate(other, 12) != logged
        session.batches.close()


def test_a_complete_run_says_so_and_is_left_alone(finished, tmp_path, capsys):
    config, original = finished
    workdir = copied(original, tmp_path / "a [1]")
    before = {p: p.read_bytes() for p in workdir.glob("*.json*")}
    assert loop.train(config, workdir) == 0
    out = capsys.readouterr().out
    assert "was already finished at step 12 of 12" in out
    assert f"rm -r '{workdir}'" in out and f"--checkpoint='{workdir}'" in out
    assert {p: p.read_bytes() for p in workdir.glob("*.json*")} == before
    assert steps_of(workdir) == [4, 8, 12]
    with pytest.raises(UserError, match="train.steps=5, but .* is at step 12 already; give"):
        loop.train(change(config, "train", steps=5), workdir)
    assert {p: p.read_bytes() for p in workdir.glob("*.json*")} == before


def test_results_older_than_a_knob_are_left_alone(finished, tmp_path, capsys):
    config, original = finished
    workdir = copied(original, tmp_path)
    stored = json.loads((workdir / "results.json").read_text())
    del stored["settings"]["sampler"]["grid_power"]
    (workdir / "results.json").write_text(json.dumps(stored))
    before = (workdir / "results.json").read_bytes()
    assert loop.train(config, workdir) == 0
    assert "was already finished at step 12 of 12" in capsys.readouterr().out
    assert (workdir / "results.json").read_bytes() == before


@pytest.mark.slow
def test_signals_save_and_the_same_command_continues_exactly(
    finished, tmp_path, capsys, monkeypatch
):
    config, reference = finished
    workdir = tmp_path / "run"
    evaluate = loop.Session.evaluate
    for number, name, at in [(signal.SIGHUP, "SIGHUP", 4), (signal.SIGTERM, "SIGTERM", 8)]:

        def evaluate_and_signal(self, state, step, number=number, at=at):
            if step == at:
                os.kill(os.getpid(), number)
            return evaluate(self, state, step)

        monkeypatch.setattr(loop.Session, "evaluate", evaluate_and_signal)
        assert loop.train(config, workdir) == 128 + number
        assert f"stopped by {name} at step {at}, saved" in capsys.readouterr().out
        assert steps_of(workdir)[-1] == at
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert json.loads((workdir / "run.json").read_text())["stopped"] == "signal"
    monkeypatch.setattr(loop.Session, "evaluate", evaluate)
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    assert loop.train(config, workdir) == 0
    assert_same_run(config, workdir, reference)


DIE_WHILE_SAVING = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import conftest, tiny
from flm_jax.training import loop
config = tiny.run_config(pathlib.Path(sys.argv[2]))
save = loop.Session.save
def save_and_die(self, state, step, *rest):
    if step == 8:
        self.checkpoints.wait()  # that of step 4
        save(self, state, step, *rest)
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, state, step, *rest)
loop.Session.save = save_and_die
loop.train(config, pathlib.Path(sys.argv[3]))
"""


@pytest.mark.slow  # a second process imports and compiles everything
def test_kill_9_and_resume_equals_an_uninterrupted_run(finished, tmp_path, monkeypatch):
    """A process killed in the middle of saving step 8 leaves step 4; going on is bit-exact."""
    config, reference = finished
    workdir = tmp_path / "run"
    script = tmp_path / "die.py"
    script.write_text(DIE_WHILE_SAVING)
    corpus = reference.parent
    command = [sys.executable, str(script), str(TESTS), str(corpus), str(workdir)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    died = subprocess.run(command, env=environment, capture_output=True, timeout=120, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert 4 in steps_of(workdir)
    assert runlog.read(workdir)[-1]["step"] >= 8 > steps_of(workdir)[0]
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    assert loop.train(config, workdir) == 0
    assert_same_run(config, workdir, reference)


def test_a_workdir_of_another_config_is_refused_with_the_keys(finished):
    config, workdir = finished
    other = dataclasses.replace(change(config, "optim", learning_rate=1e-3), seed=7)
    before = (workdir / "config.json").read_bytes()
    with pytest.raises(UserError) as error:
        loop.train(other, workdir)
    assert str(error.value).splitlines() == [
        f"{workdir} belongs to a run with another config; choose another --workdir, or undo:",
        "seed: 1 -> 7",
        "optim.learning_rate: 0.003 -> 0.001",
    ]
    assert (workdir / "config.json").read_bytes() == before


def test_more_steps_continue_the_run(finished, tmp_path, capsys, monkeypatch):
    config, original = finished
    workdir = copied(original, tmp_path)
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    longer = change(config, "train", steps=14, log_every=1)
    assert loop.train(longer, workdir) == 0
    assert f"resuming {workdir} at step 12" in capsys.readouterr().out
    assert steps_of(workdir) == [4, 8, 12, 14]
    losses = [row["step"] for row in runlog.read(workdir) if "loss" in row]
    assert losses == [2, 4, 6, 8, 10, 12, 13, 14]
    assert config_lib.from_json((workdir / "config.json").read_text()) == longer


def test_the_time_limit_counts_over_sessions(finished, tmp_path, capsys):
    config, _ = finished
    workdir = tmp_path / "run"
    short = change(config, "train", max_minutes=1e-6, eval_every=0)
    assert loop.train(short, workdir) == 0
    assert "stopped by train.max_minutes=1e-06 at step 2 of" in capsys.readouterr().out
    assert steps_of(workdir) == [2]  # the first one compiled, which does not count
    assert json.loads((workdir / "run.json").read_text())["stopped"] == "time limit"
    assert loop.train(short, workdir) == 0
    assert "stopped by train.max_minutes=1e-06 at step 2 of" in capsys.readouterr().out


def test_a_stable_schedule_decays_before_the_time_is_up(finished, tmp_path, monkeypatch, capsys):
    config, _ = finished
    ticks = itertools.count(0.0, 15.0)  # every step takes as long; the first one compiles
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: next(ticks)))
    config = change(config, "train", steps=24, max_minutes=2.0, eval_every=0, sample_every=0)
    config = change(config, "optim", schedule="stable", decay_fraction=0.25)
    workdir = tmp_path / "run"
    assert loop.train(config, workdir) == 0
    printed = capsys.readouterr().out
    assert "the learning rate decays from step 7 to 10, the last in train.max_minutes=2" in printed
    assert "stopped by train.max_minutes=2 at step 10 of 24" in printed
    rates = {r["step"]: r["learning_rate"] for r in runlog.read(workdir) if "loss" in r}
    peak = config.optim.learning_rate
    means = pytest.approx([peak, 0.75 * peak], rel=1e-4)  # of updates 6 and 7; 8 and 9
    assert [rates[8], rates[10]] == means

    def horizons(minutes: float, step: int) -> tuple[int, int]:
        session = loop.Session(change(config, "train", max_minutes=minutes), workdir)
        with session.log:
            _, state = session.restore(step)
            session.batches.close()
        return session.horizon, int(state.horizon)

    assert horizons(2.0, 8) == horizons(2.0, 10) == (10, 10)  # decided once, also when over
    assert horizons(9.0, 10) == horizons(0.0, 8) == (24, 24)  # more time: it goes on learning
    assert loop.train(config, workdir) == 0
    assert "stopped by train.max_minutes=2 at step 10 of 24" in capsys.readouterr().out


def test_a_mistake_at_the_start_does_not_occupy_the_workdir(finished, tmp_path):
    config, _ = finished
    wrong = change(config, "data", options={"path": str(tmp_path / "nowhere.txt")})
    with pytest.raises(UserError, match="nowhere.txt"):
        loop.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    workdir_lib.check(config, tmp_path / "run")


def everything_in(folder: pathlib.Path) -> dict[pathlib.Path, tuple[bytes, int]]:
    """Content and time of change of all files below a folder, lock and empty folders included."""
    return {
        path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.mark.parametrize("there", ["a finished run", "a run without a checkpoint"])
def test_a_second_command_changes_nothing_in_the_workdir(finished, tmp_path, there):
    """Neither config.json, which the first run is loaded with, nor its log, whose end may be torn,
    nor its tokenizer or programs.
    """
    config, original = finished
    workdir = copied(original, tmp_path)
    if there != "a finished run":
        shutil.rmtree(workdir / "checkpoints")
    with open(workdir / "metrics.jsonl", "a") as log, workdir_lib.locked(workdir):
        log.write('{"step": 12, "lo')  # it is being written
        log.flush()
        before = everything_in(tmp_path)
        for changed in (
            change(config, "clock", name="identity"),
            dataclasses.replace(config, seed=5),
            change(config, "train", steps=99),
        ):
            with pytest.raises(UserError, match="another process is training in .*wait for it"):
                loop.train(changed, workdir)
        assert everything_in(tmp_path) == before


def test_only_process_0_holds_the_workdir(tmp_path, monkeypatch):
    with workdir_lib.locked(tmp_path / "run"):
        monkeypatch.setattr(workdir_lib.distributed, "process_id", lambda: 1)
        with workdir_lib.locked(tmp_path / "run"), workdir_lib.locked(tmp_path / "elsewhere"):
            pass
    assert not (tmp_path / "run").exists() and not (tmp_path / "elsewhere").exists()


@pytest.fixture
def kept_in_the_workdir():
    """Compiled programs go where a user's go, not to the cache of the tests."""
    cache = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", cache)


def test_a_refused_teacher_leaves_nothing(finished, tmp_path, monkeypatch, kept_in_the_workdir):
    """Not even an empty folder for programs, though something was compiled to read it."""
    config, _ = finished

    def refused(*_):
        jax.jit(lambda x: x * 3.25 - 1)(np.float32(1))
        raise UserError("the teacher does not fit")

    monkeypatch.setattr(session_lib, "load_sources", refused)
    with pytest.raises(UserError, match="does not fit"):
        loop.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_run_that_ended_before_its_first_checkpoint_starts_over_cleanly(finished, tmp_path):
    """Its config may change, its log rows go, its tokenizer is written anew."""
    config, _ = finished
    workdir = tmp_path / "run"
    workdir_lib.claim(dataclasses.replace(config, seed=5), workdir)
    with runlog.MetricsLog(workdir) as log:
        log.write(2, {"loss": 1.0})
    workdir_lib.check(config, workdir)
    step, _, _ = final(config, workdir)
    assert step == 0
    assert runlog.read(workdir) == []


def test_a_config_that_cannot_be_written_is_one_sentence(finished, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cannot write .*config\.json: Not a directory; free space"
    ):
        workdir_lib.claim(finished[0], tmp_path / "file/run")


def test_another_corpus_under_the_same_path_is_refused(finished, tmp_path):
    config, original = finished
    workdir = copied(original, tmp_path)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(pathlib.Path(config.data.options["path"]).read_text() + "\nΩ ends it")
    changed = change(config, "data", options={"path": str(corpus)})
    (workdir / "config.json").write_text(config_lib.to_json(changed))
    with pytest.raises(UserError, match="the tokenizer now has fingerprint .* was trained with"):
        loop.train(changed, workdir)


@pytest.mark.parametrize(
    "section, values, sentence",
    [
        ("train", {"batch_size": 12}, "train.batch_size=12 must be a multiple of 8, for 8 devices"),
        ("mesh", {"data": 3}, "needs 3 devices but there are 8"),
        ("data", {"options": {}}, "needs options.path"),
        ("data", {"length": 10**6}, "set data.length to 9924 or less"),
    ],
)
def test_what_only_the_machine_or_the_text_can_tell(finished, tmp_path, section, values, sentence):
    config, _ = finished
    with pytest.raises(UserError, match=sentence):
        loop.train(change(config, section, **values), tmp_path / "run")


def test_a_workdir_that_cannot_be_made_is_one_sentence(finished, tmp_path):
    config, _ = finished
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to --workdir=.*file/run: Not a directory"):
        loop.train(config, tmp_path / "file" / "run")


def test_a_damaged_config_file_is_one_sentence(finished, tmp_path):
    config, original = finished
    workdir = copied(original, tmp_path)
    (workdir / "config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        loop.train(config, workdir)
    assert steps_of(workdir) == [4, 8, 12]
    (workdir / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match="not JSON"):
        loop.train(config, workdir)
