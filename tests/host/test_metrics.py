"""The metrics log survives kills and resumes; JSON stays valid."""

import json
import logging as std_logging
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from flm_jax.errors import UserError
from flm_jax.host import runlog


def strict_rows(workdir):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_rows_come_back_as_written(tmp_path):
    with runlog.MetricsLog(tmp_path / "new" / "folder", tensorboard=False) as log:
        log.write(1, {"loss": 2.5, "tokens": 64})
        log.write(np.int64(2), {"loss": np.float32(0.25)})
    rows = runlog.read(tmp_path / "new" / "folder")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == 2.5 and rows[0]["tokens"] == 64 and rows[1]["loss"] == 0.25
    assert abs(rows[0]["time"] - time.time()) < 60
    assert runlog.read(tmp_path) == []


def test_jax_scalars_are_numbers(tmp_path):
    import jax.numpy as jnp

    with runlog.MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(jnp.int32(3), {"loss": jnp.float32(1.5)})
    assert strict_rows(tmp_path)[0]["step"] == 3
    assert strict_rows(tmp_path)[0]["loss"] == 1.5


def test_not_finite_values_are_valid_json_and_come_back(tmp_path):
    with runlog.MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"a": math.nan, "b": math.inf, "c": -np.inf})
    row = strict_rows(tmp_path)[0]
    assert (row["a"], row["b"], row["c"]) == ("nan", "inf", "-inf")
    row = runlog.read(tmp_path)[0]
    assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


@pytest.mark.parametrize(
    "torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\0\0\0\0", '{"step": 3}{\n', "7\n"]
)
def test_a_torn_end_is_dropped_on_open_and_ignored_by_read(tmp_path, torn):
    with runlog.MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write(torn)
    assert [row["step"] for row in runlog.read(tmp_path)][:2] == [1, 2]
    with runlog.MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(3, {"loss": 3.0})
    assert [row["step"] for row in strict_rows(tmp_path)] == [1, 2, 3]


def test_every_row_is_on_disk_after_kill_9(tmp_path):
    program = (
        "import os, signal, sys\nfrom flm_jax.host import runlog\n"
        "log = runlog.MetricsLog(sys.argv[1], tensorboard=False)\n"
        "for step in range(1, 6): log.write(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert [row["step"] for row in strict_rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_truncate_after_drops_later_steps_only_and_keeps_the_rest_verbatim(tmp_path):
    log = runlog.MetricsLog(tmp_path, tensorboard=False)
    for step in (1, 2, 2, 3, 4):
        log.write(step, {"loss": float(step)})
    before = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    log.truncate_after(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before[:3])
    log.write(3, {"loss": 30.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in strict_rows(tmp_path)][-2:] == [(2, 2.0), (3, 30)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_failed_truncation_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    log = runlog.MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"loss": 1.0})
    log.write(2, {"loss": 1.0})

    def fail(*_):
        raise OSError(5, "power cut")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match="power cut"):
        log.truncate_after(1)
    assert [row["step"] for row in runlog.read(tmp_path)] == [1, 2]


def test_tensorboard_files_appear_and_hide_dropped_steps(tmp_path):
    tensorboardX = pytest.importorskip("tensorboardX")
    purged = []
    original = tensorboardX.SummaryWriter

    def spy(logdir, purge_step, **options):
        purged.append(purge_step)
        return original(logdir, purge_step=purge_step, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorboardX, "SummaryWriter", spy)
        with runlog.MetricsLog(tmp_path) as log:
            log.write(5, {"loss": math.nan})
            log.truncate_after(3)
            log.write(4, {"loss": 1.0})
    assert purged == [None, 4]
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_samples_are_text_in_tensorboard_as_they_stand(tmp_path, monkeypatch):
    tensorboardX = pytest.importorskip("tensorboardX")
    found = []
    monkeypatch.setattr(
        tensorboardX.SummaryWriter, "add_text", lambda self, *args: found.append(args)
    )
    with runlog.MetricsLog(tmp_path) as log:
        log.write_samples(np.int64(8), ["a <b> *c*", "", "one\n\ntwo"])
    ((tag, text, step),) = found
    assert (tag, step) == ("samples", 8)
    assert text.split("\n") == [
        "**0**", "", "    a <b> *c*", "", "**1**", "", "    ", "", "**2**", "", "    one", "    ",
        "    two", "",
    ]  # fmt: skip
    monkeypatch.undo()
    with runlog.MetricsLog(tmp_path / "real") as log:
        log.write_samples(8, ["red cat"])
    (events,) = (tmp_path / "real" / "tensorboard").glob("events*")
    assert b"red cat" in events.read_bytes()


def test_without_tensorboardX_there_is_one_notice(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    absl_logger = std_logging.getLogger("absl")
    monkeypatch.setattr(absl_logger, "propagate", True)
    with caplog.at_level(std_logging.WARNING), runlog.MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 1.0})
        log.write(2, {"loss": 1.0})
    assert sum("tensorboardX" in record.getMessage() for record in caplog.records) == 1
    assert len(runlog.read(tmp_path)) == 2


def test_a_workdir_that_is_a_file_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/metrics.jsonl.*--workdir"):
        runlog.MetricsLog(tmp_path / "file")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a disk that is full")
def test_a_full_disk_is_an_error_once_and_hides_no_other(tmp_path):
    """The log and TensorBoard's file keep what they could not write and try again when closed."""
    with pytest.raises(KeyError), runlog.MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 2.0})
        log._file.close()
        log._file = open("/dev/full", "ab")
        log._events.close()
        log._events = open("/dev/full", "ab")
        log._events.write(b"rows of TensorBoard")
        with pytest.raises(OSError, match="No space left"):
            log.write(2, {"loss": 1.0})
        raise KeyError("what happened before")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_of_tensorboard_that_ended_holds_nobody_up(tmp_path, monkeypatch, caplog):
    def full(data):
        raise OSError("No space left on device")

    with runlog.MetricsLog(tmp_path) as log:
        log.write(1, {"loss": 2.0})
        worker = log._events.file_writer.event_writer._worker
        monkeypatch.setattr(worker._record_writer, "write_event", full)
        log.write(2, {f"value {i}": 1.0 for i in range(50)})
        worker.join(20)
        for step in range(3, 40):
            log.write(step, {"loss": 1.0})
    assert caplog.text.count("no more TensorBoard files") == 1
    assert [row["step"] for row in runlog.read(tmp_path)] == list(range(1, 40))
