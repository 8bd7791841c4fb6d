"""Runs whose workdir is in a bucket: trained, read, resumed, killed, refused."""

import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
from commands import call
from processes import Job, config_file, free_port, losses
from test_bucket import full, names

from flm_jax import config as config_lib
from flm_jax import experiment, inference
from flm_jax.checkpoint import BucketWorkdir, Checkpoints, bucket, lease
from flm_jax.errors import UserError
from flm_jax.host import runlog
from flm_jax.training import loop

# One of the two stores in `make test`.
LONG = pytest.mark.parametrize(
    "server", ["gs", pytest.param("s3", marks=pytest.mark.slow)], indirect=True
)
WRITTEN = {"config.json", "metrics.jsonl", "run.json"}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Puts this process on the machine of a name, with a disk of its own."""
    monkeypatch.setattr(lease, "SILENT_S", 1.0)

    def move(name: str) -> pathlib.Path:
        monkeypatch.setenv("FLM_JAX_CACHE", str(tmp_path / name))
        monkeypatch.setattr(lease.socket, "gethostname", lambda: name)
        return tmp_path / name

    move("first")
    return move


def config_of(folder: pathlib.Path, **train) -> config_lib.Config:
    knobs = {"steps": 4, "save_every": 2, "eval_every": 0, "sample_every": 0, "log_every": 1}
    config = tiny.run_config(folder, data__cache_dir=str(folder / "rows"))
    train = dataclasses.replace(config.train, **knobs | train)
    config = dataclasses.replace(config, train=train)
    config_lib.validate(config, experiment.tables())
    return config


def rows_of(server, url: str) -> list[int]:
    """Steps of training in the log that is in the bucket."""
    log = server.buckets["bucket"][full(url, "metrics.jsonl")].data
    rows = map(json.loads, log.splitlines())
    return [row["step"] for row in rows if "loss" in row]


@LONG
def test_a_run_is_in_the_bucket_and_another_machine_goes_on(
    server, url, tmp_path, capsys, monkeypatch, machine
):
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    config = config_of(tmp_path)
    assert loop.train(config, url) == 0
    there = set(names(server, url))
    assert WRITTEN <= there and "checkpoints/4/MANIFEST.json" in there
    for folder in ("tensorboard", "tokenizer"):
        assert any(name.startswith(f"{folder}/") for name in there)
    assert not any("probe" in name or "compiled" in name for name in there)
    assert not list(tmp_path.glob("first/**/checkpoints"))
    assert rows_of(server, url) == [1, 2, 3, 4]
    assert inference.load(url).step == 4

    machine("second")
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    capsys.readouterr()
    assert loop.train(longer, url) == 0
    assert f"resuming {url} at step 4" in capsys.readouterr().out
    assert rows_of(server, url) == [1, 2, 3, 4, 5, 6]
    assert Checkpoints(f"{url}/checkpoints").latest_step() == 6
    with pytest.raises(UserError, match=rf"{url} belongs to a run with another .*\nseed: 1 -> 7"):
        loop.train(dataclasses.replace(longer, seed=7), url)
    with pytest.raises(UserError, match=rf"its checkpoints in {url}/checkpoints; give the folder"):
        loop.train(longer, BucketWorkdir(url).folder)


@LONG
def test_what_a_manifest_promises_is_there_before_it(server, url, tmp_path, machine, monkeypatch):
    """Whatever moment a machine vanishes at, the log reaches the newest step."""
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    seen, write_manifest = [], bucket.Bucket.write_manifest

    def look(self, step: int) -> None:
        logged = set(range(1, step + 1)) <= set(rows_of(server, url))
        seen.append((step, logged and {"config.json", "run.json"} <= set(names(server, url))))
        write_manifest(self, step)

    monkeypatch.setattr(bucket.Bucket, "write_manifest", look)
    assert loop.train(config_of(tmp_path), url) == 0
    assert seen == [(2, True), (4, True)]


@LONG
def test_a_run_that_was_taken_over_stops_at_its_next_save(
    server, url, tmp_path, machine, monkeypatch
):
    note = loop.Loop.note

    def stand_still(self, step, *rest):
        note(self, step, *rest)
        if step == 3:
            self.session.checkpoints.wait()
            machine("second")
            other = lease.Lease(BucketWorkdir(url))
            with monkeypatch.context() as patch:
                patch.setattr(lease.Lease, "renew", lambda self: None)  # its process is stopped
                other.take()
            other.release()

    monkeypatch.setattr(loop.Loop, "note", stand_still)
    with pytest.raises(lease.Lost, match=rf"{url} was taken over by another command \(second"):
        loop.train(config_of(tmp_path, steps=40), url)
    assert Checkpoints(f"{url}/checkpoints").latest_step() == 2
    assert not names(server, url, "checkpoints/4") and max(rows_of(server, url)) <= 3


@LONG
def test_an_error_in_the_middle_of_a_save_costs_that_save_alone(
    server, url, tmp_path, machine, monkeypatch, caplog
):
    """The log cannot be brought, so that the step is none; the next save brings both."""
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    refused = []

    def refuse(method: str, bucket: str, name: str) -> int:
        first = name.endswith("metrics.jsonl") and method in ("POST", "PUT") and len(refused) < 1
        refused.extend([name] * first)
        return 403 if first else 0

    server.refuse = refuse
    assert loop.train(config_of(tmp_path), url) == 0
    assert "CHECKPOINT NOT SAVED: the checkpoint of step 2 could not" in caplog.text and refused
    assert Checkpoints(f"{url}/checkpoints").steps() == [4]
    assert rows_of(server, url) == [1, 2, 3, 4]


@pytest.mark.slow
def test_every_command_reads_from_the_address(server, url, tmp_path, machine, capsys):
    def said(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert call(*words) == code, capsys.readouterr()
        return capsys.readouterr().out

    file = config_file(tmp_path, train__steps=8, train__eval_every=0)
    out = said("train", f"--config={file}", f"--workdir={url}")
    assert f"--checkpoint={url}" in out and "report.html" in out
    assert {"report.html", "results.json", "samples/step_00000008.jsonl"} <= set(names(server, url))
    machine("second")
    assert "--- 1 step" in said("generate", f"--checkpoint={url}", "--steps=1", "--num_samples=2")
    chosen = "--steps=1", "--num_samples=4", f"--samples={tmp_path / 'samples'}"
    assert "entropy" in said("evaluate", f"--checkpoint={url}", *chosen)
    out = said("report", f"--workdir={url}")
    assert f"{url}/report.html" in out and pathlib.Path(out.splitlines()[0]).is_file()
    said("export", f"--checkpoint={url}", "--format=hub", f"--output={tmp_path / 'hub'}")
    assert inference.load(tmp_path / "hub").step == 8
    said("convert", url, str(tmp_path / "official"))
    assert (tmp_path / "official").exists()
    assert "was already finished" in said("train", f"--workdir={url}")
    said("train", f"--workdir={url}", "--config.train.steps=10")
    assert Checkpoints(f"{url}/checkpoints").latest_step() == 10
    start = f"--config.init_from={url}", f"--workdir={tmp_path / 'next'}"
    out = said("train", f"--config={file}", *start)
    assert f"starting from the parameters of {url} at step 10" in out
    both = url, str(tmp_path / "next"), "--evaluations=1", "--num_samples=8", "--pilot_samples=8"
    said("compare", *both, f"--output={tmp_path / 'both'}")
    assert (tmp_path / "both" / "report.html").is_file()


@pytest.mark.slow
def test_a_step_that_was_not_finite_is_repeated_from_the_address(
    server, url, tmp_path, machine, capsys
):
    file = config_file(tmp_path, optim__learning_rate=1e38, train__eval_every=0)
    assert call("train", f"--config={file}", f"--workdir={url}") == 2
    error = capsys.readouterr().err
    batch = next(n for n in names(server, url) if n.startswith("nonfinite/"))
    assert f"reproduce {url}/{batch}" in error, error
    machine("second")
    assert call("reproduce", f"{url}/{batch}") == 0
    assert "reproduced" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_wrong_is_said_before_devices_are_touched(tmp_path):
    def refused(place: str, hidden: str = "", **variables: str) -> str:
        words = ["--config=configs/quickstart.py", f"--workdir={place}"]
        hide = f"import sys; sys.modules['{hidden}'] = None; import runpy; sys.argv[0] = 'x'; "
        hide += "runpy.run_module('flm_jax.main', run_name='__main__', alter_sys=True)"
        environment = {"JAX_PLATFORMS": "nothing", "FLM_JAX_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            [sys.executable, "-c", hide, *words],
            capture_output=True,
            text=True,
            env=os.environ | environment | variables,  # would fail with devices
        )
        assert done.returncode == 2 and not (tmp_path / "cache").exists(), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "flm_jax[gcs]" in refused("gs://bucket/run", hidden="gcsfs")
    assert "az://b/run is neither a local or mounted folder nor" in refused("az://b/run")
    assert "names no folder in a bucket; write it like gs://b/run" in refused("gs://b")
    nobody = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", "AWS_ACCESS_KEY_ID": "a"}
    said = refused("s3://bucket/run", AWS_SECRET_ACCESS_KEY="b", **nobody)
    assert "error: s3://bucket/run: the service does not answer (" in said


def of_four_machines(file: pathlib.Path, url: str, disks: pathlib.Path, *options: str) -> Job:
    """A job of four processes, each with a disk of its own; its workdir is that of the first."""
    variables = [{"FLM_JAX_CACHE": str(disks / str(n))} for n in range(4)]
    job = Job(file, url, 4, 1, *options, variables=variables)
    known = hashlib.sha256(url.encode()).hexdigest()[:16]
    job.workdir = disks / "0" / "workdirs" / f"{known}.run" / "run"
    return job


@pytest.mark.slow
@LONG
@pytest.mark.timeout(300)
def test_four_machines_without_a_shared_disk_survive_a_kill(server, url, tmp_path):
    """The curve is that of one process, on other machines that have nothing of the first ones."""
    file = config_file(
        tmp_path, train__steps=6, train__log_every=1, train__save_every=2, train__eval_every=0,
        train__sample_every=0, train__watchdog_seconds=10.0, evals=(), sampler__steps=(1,),
        data__cache_dir=str(tmp_path / "rows"),
    )  # fmt: skip
    config = config_lib.load(str(file))
    config_lib.validate(config, experiment.tables())
    with of_four_machines(file, url, tmp_path / "old", "--config.train.steps=200") as job:
        job.wait_for_step(3)
        while (saved := Checkpoints(f"{url}/checkpoints").latest_step()) is None:
            time.sleep(0.5)
        job.send(2, signal.SIGKILL)
        codes = job.wait(120)
        assert codes == [75, 75, -signal.SIGKILL, 75], job.shown()
    saved = Checkpoints(f"{url}/checkpoints").latest_step()
    with of_four_machines(file, url, tmp_path / "new", f"--config.train.steps={saved + 2}") as job:
        assert job.wait() == [0] * 4, job.shown()
        assert f"resuming {url} at step {saved}" in job.output[0][0]
    assert all(len(list((tmp_path / "new").glob(f"{n}/workdirs/*"))) == 1 for n in range(4))
    alone = config_lib.changed(config, {"train.steps": saved + 2})
    assert loop.train(alone, tmp_path / "alone", lambda *_: None) == 0
    log = tmp_path / "log"
    log.mkdir()
    (log / runlog.FILE_NAME).write_bytes(server.buckets["bucket"][full(url, "metrics.jsonl")].data)
    mine, wanted = losses(log), losses(tmp_path / "alone")
    assert list(mine) == list(range(1, saved + 3))
    np.testing.assert_allclose(list(mine.values()), list(wanted.values()), rtol=2e-5)
    assert {"report.html", "results.json", "run.json"} <= set(names(server, url))
