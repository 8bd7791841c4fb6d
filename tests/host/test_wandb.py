"""Weights & Biases: the real library offline, and stand-ins that fail; training never notices."""

import importlib.util
import json
import logging as std_logging
import os
import pathlib
import struct
import sys
import time

import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.host import runlog, wandb_feed
from flm_jax.training import loop

REAL = importlib.util.find_spec("wandb") is not None
needs_wandb = pytest.mark.skipif(not REAL, reason="wandb is not installed (the extra [wandb])")

# A stand-in that writes down what it is asked for, and may fail at one of the calls.
STAND_IN = """
import json, os, sys, time

def told(*what):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps(what) + "\\n")
    if os.environ.get("FAIL") == what[0]:
        raise RuntimeError(f"{what[0]} has failed.\\nwith details")
    if os.environ.get("HANG") == what[0]:
        time.sleep(60)

class Settings:
    model_fields = {"console": None}
    def __init__(self, **values):
        self.values = values

class Table:
    def __init__(self, columns, data):
        self.columns, self.data = columns, data

class Html:
    def __init__(self, path, inject):
        self.text = open(path).read()

class Run:
    def define_metric(self, name, step_metric):
        told("define_metric", name, step_metric)
    def log(self, values):
        told("log", {name: getattr(value, "data", getattr(value, "text", value))
                     for name, value in values.items()})
    def finish(self, exit_code):
        told("finish", exit_code)

def init(settings, **how):
    print("noise on standard output")
    told("init", how, settings.values, sys.argv)
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The folder of a library wandb that is ours; what it was told is read by `told`."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "wandb.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.syspath_prepend(str(folder))  # so that the config's check finds one
    return tmp_path


def told(folder: pathlib.Path) -> list[list]:
    return [json.loads(line) for line in (folder / "told").read_text().splitlines()]


@pytest.fixture
def warnings(caplog, monkeypatch):
    """The sentences about W&B that were logged."""
    monkeypatch.setattr(std_logging.getLogger("absl"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if "W&B" in r.getMessage()]


def test_everything_that_is_logged_is_sent_in_order(stand_in, warnings):
    workdir = stand_in / "run"
    (page := stand_in / "report.html").write_text("<h1>ends</h1>")
    with runlog.MetricsLog(workdir, tensorboard=False) as log:
        log.follow(wandb_feed.WandbFeed(workdir, "team/texts", {"train": {"steps": 4}}))
        log.write(2, {"loss": 1.5, "mfu": 0.25})
        log.write_samples(2, ["red cat", "blue\ndog"])
        log.write(2, {"eval/loss": 1.25})
        log.write_report(page)
    how, settings, argv = told(stand_in)[0][1:]
    stored = json.loads((workdir / wandb_feed.ID_FILE).read_text())
    assert how == {
        "project": "texts", "entity": "team", "id": stored["id"], "resume": "allow",
        "allow_val_change": True, "name": "run", "dir": str(workdir),
        "config": {"train": {"steps": 4}, "workdir": str(workdir)},
    }  # fmt: skip
    assert settings == {"console": "off"}  # the settings that this version has
    assert argv == sys.argv
    assert told(stand_in)[1:] == [
        ["define_metric", "*", "step"],
        ["log", {"step": 2, "loss": 1.5, "mfu": 0.25}],
        ["log", {"step": 2, "samples": [[2, 0, "red cat"], [2, 1, "blue\ndog"]]}],
        ["log", {"step": 2, "eval/loss": 1.25}],
        ["log", {"report": "<h1>ends</h1>"}],
        ["finish", 0],
    ]
    assert not warnings()


def test_a_run_that_fails_is_shown_as_failed_and_one_without_rows_not_at_all(stand_in):
    with pytest.raises(KeyError), runlog.MetricsLog(stand_in / "run", tensorboard=False) as log:
        log.follow(wandb_feed.WandbFeed(stand_in / "run", "texts", {}))
        log.write(2, {"loss": 1.5})
        raise KeyError
    assert told(stand_in)[-1] == ["finish", 1]
    (stand_in / "told").unlink()
    with runlog.MetricsLog(stand_in / "run", tensorboard=False) as log:
        log.follow(wandb_feed.WandbFeed(stand_in / "run", "texts", {}))
    assert not (stand_in / "told").exists()


def test_the_variables_of_wandb_come_first(stand_in, monkeypatch):
    for name in ("WANDB_NAME", "WANDB_DIR", "WANDB_CONSOLE"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    first = wandb_feed.first_line(stand_in, "texts", {})
    assert not {"name", "dir", "entity"} & set(first["init"])
    assert "console" not in first["settings"] and first["init"]["id"] == "chosen"


def test_the_id_belongs_to_workdir_and_project(tmp_path):
    first = wandb_feed.run_id(tmp_path, "team/texts")
    assert len(first) == 8 and wandb_feed.run_id(tmp_path, "team/texts") == first
    other = wandb_feed.run_id(tmp_path, "team/names")
    assert other != first
    (tmp_path / wandb_feed.ID_FILE).write_text("{")
    assert wandb_feed.run_id(tmp_path, "team/names") not in (first, other)


@pytest.mark.parametrize("call", ["init", "define_metric", "log", "finish"])
def test_what_fails_is_said_once_and_the_rest_goes_on(stand_in, monkeypatch, warnings, call):
    monkeypatch.setenv("FAIL", call)
    with runlog.MetricsLog(stand_in / "run", tensorboard=False) as log:
        feed = wandb_feed.WandbFeed(stand_in / "run", "texts", {})
        log.follow(feed)
        for step in range(1, 20):
            log.write(step, {"loss": 1.0})
            if call != "finish" and step == 10:
                ends = time.monotonic() + 60.0
                while feed._process is None or feed._process.poll() is None:
                    assert time.monotonic() < ends
                    time.sleep(0.01)
    (sentence,) = warnings()
    assert f"nothing more goes to W&B: {call} has failed. with details;" in sentence
    assert [row["step"] for row in runlog.read(stand_in / "run")] == list(range(1, 20))


def test_one_that_hangs_holds_nobody_up(stand_in, monkeypatch, warnings):
    monkeypatch.setenv("HANG", "init")
    monkeypatch.setattr(wandb_feed, "SECONDS", 0.3)
    monkeypatch.setattr(wandb_feed, "QUEUED", 50)
    feed = wandb_feed.WandbFeed(stand_in, "texts", {})
    feed.begin()
    while not (stand_in / "told").exists():
        time.sleep(0.01)
    big = {f"value {i}": 1.0 for i in range(1000)}  # more than a pipe holds
    for step in range(200):
        feed.write(step, big)
    feed.close()
    (sentence,) = warnings()
    assert "50 lines are waiting" in sentence
    feed._thread.join(10)  # what hangs has been killed
    assert not feed._thread.is_alive() and feed._process.returncode


def test_a_process_that_cannot_be_started_is_one_warning(stand_in, monkeypatch, warnings):
    monkeypatch.setattr(sys, "executable", str(stand_in / "nowhere"))
    feed = wandb_feed.WandbFeed(stand_in, "texts", {})
    for step in range(5):
        feed.write(step, {"loss": 1.0})
    feed.close()
    assert len(warnings()) == 1 and "No such file" in warnings()[0]


@pytest.mark.parametrize("project", ["a/b/c", "a:b", "/a", "a/", "a b?", "x" * 129])
def test_impossible_projects_are_refused(tmp_path, stand_in, project):
    config = tiny.run_config(tmp_path, train__wandb=project)
    with pytest.raises(UserError, match=r"train.wandb=.* must be PROJECT or ENTITY/PROJECT"):
        config_lib.validate(config, {})


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny.run_config(tmp_path, train__wandb="texts")
    with pytest.raises(UserError, match=r"needs the library wandb.*pip install 'flm_jax\[wandb\]'"):
        config_lib.validate(config, {})


def run_config(folder: pathlib.Path, **changes) -> config_lib.Config:
    small = {"train__steps": 4, "train__log_every": 1, "train__eval_every": 0}
    small |= {"train__wandb": "texts", "evals": ()}
    config = tiny.run_config(folder, **(small | changes))
    config_lib.validate(config, experiment.tables())
    return config


def test_a_training_is_sent_whole_and_goes_on_in_the_same_run(stand_in, warnings, monkeypatch):
    workdir = stand_in / "run"
    config = run_config(stand_in, train__sample_every=2)
    assert loop.train(config, workdir) == 0
    assert not warnings()
    init, _, *sent, end = told(stand_in)
    assert init[1]["config"]["train"]["steps"] == 4 and end == ["finish", 0]
    logged = [what for _, what in sent]
    numbers = [{"step": row.pop("step"), **row} for row in runlog.read(workdir) if row.pop("time")]
    assert [what for what in logged if not {"samples", "report"} & set(what)] == numbers
    tables = [what for what in logged if "samples" in what]
    kept = [
        [json.loads(line)["text"] for line in path.read_text().splitlines()]
        for path in sorted((workdir / "samples").iterdir())
    ]
    assert [[text for *_, text in table["samples"]] for table in tables] == kept
    assert logged[-1]["report"] == (workdir / "report.html").read_text()
    # A finished run is not opened again; one that goes on is the same.
    (stand_in / "told").unlink()
    assert loop.train(config, workdir) == 0
    assert not (stand_in / "told").exists()
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    assert loop.train(run_config(stand_in, train__steps=6, train__sample_every=0), workdir) == 0
    assert told(stand_in)[0][1]["id"] == init[1]["id"]
    assert [what["step"] for _, what in told(stand_in)[2:-1] if "loss" in what] == [5, 6]


def test_a_training_ends_well_where_that_fails(stand_in, monkeypatch, warnings):
    monkeypatch.setenv("FAIL", "log")
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    assert loop.train(run_config(stand_in, train__sample_every=0), stand_in / "run") == 0
    assert len(warnings()) == 1 and "log has failed" in warnings()[0]
    assert [r["step"] for r in runlog.read(stand_in / "run") if "loss" in r] == [1, 2, 3, 4]


def test_only_process_0_sends(tmp_path, monkeypatch, stand_in):
    from flm_jax.training import session as session_lib

    session = session_lib.Session.__new__(session_lib.Session)
    session.config, session.workdir = run_config(tmp_path), tmp_path
    session.log = session_lib.NoLog()
    session.follow(at_once=True)
    session.log.write_samples(1, ["text"])
    session.log.write_report(tmp_path / "report.html")
    assert not (tmp_path / wandb_feed.ID_FILE).exists()


def records(path: pathlib.Path):
    """What a file of wandb holds: LevelDB's log format, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, whole, place = path.read_bytes(), b"", 7
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # the end of a block is padding
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


@needs_wandb
def test_the_real_library_offline(tmp_path, monkeypatch, warnings):
    """Config, rows at their steps, table and page are in wandb's own file; so in a second session,
    under the same id.
    """
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(wandb_feed, "SECONDS", 400.0)  # machines of tests may be slow
    (page := tmp_path / "report.html").write_text("<h1>ends</h1>")
    for session in (0, 1):
        with runlog.MetricsLog(tmp_path / "run", tensorboard=False) as log:
            log.follow(wandb_feed.WandbFeed(tmp_path / "run", "texts", {"train": {"steps": 4}}))
            log.write(2 + session, {"loss": 1.5, "eval/loss": float("nan")})
            log.write(2 + session, {"spike/median": 0.5})
            if session == 0:
                log.write_samples(2, ["red cat"])
                log.write_report(page)
    assert not warnings()
    stored = json.loads((tmp_path / "run" / wandb_feed.ID_FILE).read_text())["id"]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{stored}/run-{stored}.wandb"))
    found = [list(records(path)) for path in files]
    if len(files) == 1:  # two sessions in one second share a folder
        pytest.fail("the second session has no file of its own")
    rows = []
    for session in found:
        (run,) = (record.run for record in session if record.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert (run.run_id, run.project, run.display_name) == (stored, "texts", "run")
        assert config["train"] == {"steps": 4}
        for record in session:
            if record.WhichOneof("record_type") == "history":
                items = {(i.key or ".".join(i.nested_key)): i for i in record.history.item}
                rows.append({name: json.loads(i.value_json) for name, i in items.items()})
    named = [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]
    assert named[0]["step"] == 2 and named[0]["loss"] == 1.5
    assert [row["step"] for row in named if "spike/median" in row] == [2, 3]
    media = files[0].parent / "files" / "media"
    (table,) = media.glob("table/samples*")
    assert json.loads(table.read_text())["data"] == [[2, 0, "red cat"]]
    (html,) = media.glob("html/report*")
    assert html.read_text() == "<h1>ends</h1>"
