"""Jobs of several processes on localhost: the same curve, stops, restarts on other shapes, deaths.

Losses agree to 2e-5 (relative) on all shapes, as on one process with several devices
(test_sharding.py): float32 sums run in another order.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import Job, config_file, environment, free_port, losses
from runs import finished  # noqa: F401, a fixture

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.host import distributed, sharding, watchdog
from flm_jax.host.distributed import Cluster, detect
from flm_jax.training import loop

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
RTOL = 2e-5
FLAGS = ("10.0.0.2:8476", 4, 1)
SLURM = {
    "SLURM_JOB_ID": "5000",
    "SLURM_STEP_NODELIST": "node[007-009,012]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}
KUBERNETES = {
    "JAX_COORDINATOR_ADDRESS": "flm-worker-0-0.flm",
    "JAX_NUM_PROCESSES": "2",
    "JOB_COMPLETION_INDEX": "1",
}


@pytest.mark.parametrize(
    ("wanted", "flags", "environ", "tpu_hosts", "expected"),
    [
        (None, (), {}, 0, None),
        (None, (), {}, 1, None),
        (None, (), {}, 4, Cluster("TPU slice")),
        (True, (), {}, 1, Cluster("TPU slice")),
        (None, FLAGS, {}, 0, Cluster("flags", *FLAGS)),
        (True, FLAGS, SLURM, 4, Cluster("flags", *FLAGS)),
        (True, ("10.0.0.2:8476", 1, 0), {}, 0, None),
        (None, (), SLURM, 0, Cluster("Slurm", "node007:62344", 4, 2)),
        (False, (), SLURM, 4, None),
        (None, (), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 0, None),
        (None, (), {k: v for k, v in SLURM.items() if "STEP_NODELIST" not in k}, 0, None),
        (
            None,
            (),
            SLURM | {"SLURM_STEP_NODELIST": "a1,b[3-4]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"},
            0,
            Cluster("Slurm", "a1:62344", 4, 2, 0),
        ),
        (None, (), KUBERNETES, 0, Cluster("environment", "flm-worker-0-0.flm:8476", 2, 1)),
        (None, (), {"TPU_WORKER_HOSTNAMES": "a,b"}, None, Cluster("TPU slice")),
        (None, (), {"TPU_WORKER_HOSTNAMES": "localhost"}, None, None),
    ],
)
def test_the_job_is_found(wanted, flags, environ, tpu_hosts, expected):
    names = "coordinator", "num_processes", "process_id"
    given = dict(zip(names, flags, strict=False))
    assert detect(wanted, **given, environ=environ, tpu_hosts=tpu_hosts) == expected


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(wanted=True), "no Slurm step, no TPU slice"),
        (dict(coordinator="a:1"), "--num_processes is missing"),
        (dict(num_processes=2, process_id=0), "--coordinator is missing"),
        (dict(coordinator="a:x", num_processes=2, process_id=0), "'a:x' is not HOST:PORT"),
        (dict(coordinator="a:1", num_processes=2, process_id=2), "process 2 of 2 cannot be"),
        (dict(wanted=False, coordinator="a:1"), "--nodistributed contradicts"),
        (dict(environ=KUBERNETES | {"JAX_NUM_PROCESSES": "many"}), "'many' where a number"),
    ],
)
def test_what_cannot_be_is_said(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        detect(**{"environ": {}, "tpu_hosts": 0} | arguments)


def test_a_process_alone_agrees_with_itself_at_once():
    agreement = distributed.Agreement(sharding.make_mesh((8, 1, 1)))
    assert [agreement(n) for n in (0, 15, 1)] == [0, 15, 1]
    assert distributed.is_main() and not distributed.preempted(3)
    distributed.meet("alone")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (KeyboardInterrupt(), 130),
        (SystemExit(7), 7),
        (SystemExit("x"), 1),
        # what gloo said when its peer was killed, as a ValueError
        (ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer"), 75),
        (RuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: remote error"), 75),
        (RuntimeError("Unable to initialize backend 'cuda': DEADLINE_EXCEEDED: topologies"), 75),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 10 bytes"), 1),
        (ValueError("gloo is no number"), 1),
        (OSError("UNAVAILABLE: no"), 1),
    ],
    ids=str,
)
def test_exit_codes_of_exceptions(error, code):
    assert distributed.exit_code(error) == code


ALONE = """
import sys
from flm_jax.host.distributed import Cluster, session
where, index = sys.argv[1], int(sys.argv[2])
with session(Cluster("flags", where, 2, index), watchdog_seconds=6.0, join_seconds=3.0):
    print("joined")
"""


@pytest.mark.slow
def test_a_process_without_its_others_asks_for_a_restart():
    """Each alone: nobody is at the coordinator, nobody comes to it, its port is taken."""
    with socket.create_server(("", 0)) as taken, socket.create_server(("", 0)) as free:
        ports = [free.getsockname()[1], taken.getsockname()[1]]
        free.close()
        cases = [
            (f"127.0.0.1:{ports[0]}", 1, "process 0 does not answer (Connection refused)"),
            (f"127.0.0.1:{free_port()}", 0, "not all of the 2 processes came within 3 s"),
            (f"127.0.0.1:{ports[1]}", 0, "cannot be opened here (Address already in use)"),
        ]
        running = [
            subprocess.Popen(
                [sys.executable, "-c", ALONE, where, str(index)], env=environment(1),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for where, index, _ in cases
        ]  # fmt: skip
        try:
            for process, (where, index, sentence) in zip(running, cases, strict=True):
                out, err = process.communicate(timeout=120)
                assert process.returncode == watchdog.EXIT_CODE, err
                assert f"cannot join the others at {where}" in err and sentence in err
                assert f"(process {index} of 2, exit code 75)" in err and "joined" not in out
                assert "Traceback" not in err and "Check failure" not in err
        finally:
            for process in running:
                process.kill()


@pytest.mark.slow
def test_the_command_that_cannot_join_ends_with_75(tmp_path):
    file = config_file(tmp_path)
    words = "--process_id=1", "--num_processes=2", "--join_seconds=1"
    where = f"--coordinator=127.0.0.1:{free_port()}"
    with Job(file, tmp_path / "run", 1, 1, where, *words, alone=True) as job:
        assert job.wait() == [watchdog.EXIT_CODE]
    assert "waiting for the other processes" in job.output[0][1]
    assert not (tmp_path / "run").exists()


def close_to(found: dict, wanted: dict) -> None:
    assert found.keys() >= wanted.keys()
    np.testing.assert_allclose([found[s] for s in wanted], list(wanted.values()), rtol=RTOL)


@pytest.mark.slow
def test_stop_and_restart_on_other_shapes(finished, tmp_path):  # noqa: F811
    """2 processes, stopped by SIGTERM to the second, then 1 process x 2, then 2 x 2 to the end.

    The curve is that of the uninterrupted run on 1 process x 8 devices.
    """
    _, reference = finished
    workdir = tmp_path / "run"
    file = config_file(
        tmp_path, train__log_every=1, train__sample_every=0, train__save_every=0,
        train__eval_every=0,
    )  # fmt: skip
    endless = "--config.train.steps=100000"
    with Job(file, workdir, 2, 1, endless, "--config.mesh.fsdp=2") as job:
        job.wait_for_step(2)
        job.send(1)
        assert job.wait() == [143, 143], job.shown()
    (out, _), (silent, err) = job.output
    assert "stopped by SIGTERM at step" in out
    assert [line for line in silent.splitlines() if line and "Gloo" not in line] == []
    assert "training" not in err and "compiling" not in err
    stopped = max(losses(workdir))
    assert stopped < 12
    with Job(file, workdir, 2, 2, "--config.mesh.tensor=2") as job:
        assert job.wait() == [0, 0], job.shown()
    assert f"resuming {workdir} at step {stopped}" in job.output[0][0]
    mine, wanted = losses(workdir), losses(reference)
    # The reference logs means of two steps.
    close_to({s: (mine[s] + mine[s - 1]) / 2 for s in wanted}, wanted)
    close_to({12: losses(workdir, "eval/loss")[12]}, {12: losses(reference, "eval/loss")[12]})
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == 12 and len(results["samples"][0]["texts"]) == 4
    assert json.loads((workdir / "run.json").read_text())["hardware"]["devices"] == 4
    # ... and back on one process: the checkpoint of four devices goes on where it was.
    config = config_lib.load(str(file), {"train.steps": "14"})
    assert loop.train(config, workdir) == 0
    assert sorted(losses(workdir)) == list(range(1, 15))


@pytest.mark.slow
def test_the_notice_of_the_runtime_saves_on_all(tmp_path):
    """SIGTERM that only JAX's runtime hears: before training has a handler of its own."""
    file = config_file(
        tmp_path, train__steps=100000, train__sample_every=0, train__save_every=0,
        train__eval_every=0, model__dtype="auto",
    )  # fmt: skip
    workdir = tmp_path / "run"
    with Job(file, workdir) as job:
        end = time.monotonic() + 200
        while not (workdir / "config.json").exists() and time.monotonic() < end:
            time.sleep(0.01)
        job.send(1)
        assert job.wait() == [143, 143], job.shown()
    assert "SIGTERM: will save" not in job.output[1][1], "training heard it, not the runtime"
    assert "stopped by SIGTERM at step" in job.output[0][0]
    said = [out.count("model.dtype=auto is ") for out, _ in job.output]
    assert said == [1, 0] and '"dtype": "auto"' not in (workdir / "config.json").read_text()
    assert len(list((workdir / "checkpoints").glob("*/MANIFEST.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_other(victim, tmp_path):
    file = config_file(
        tmp_path, train__log_every=1, train__steps=100000, train__sample_every=0,
        train__eval_every=0, train__watchdog_seconds=6.0,
    )  # fmt: skip
    with Job(file, tmp_path / "run") as job:
        job.wait_for_step(2)
        start = time.monotonic()
        job.send(victim, signal.SIGKILL)
        codes = job.wait(60)
    assert time.monotonic() - start < 6
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == watchdog.EXIT_CODE, job.shown()
    assert f"error: process {victim} of 2 died" in job.output[1 - victim][1]


@pytest.mark.slow
def test_an_error_in_one_process_ends_both_with_its_sentence(tmp_path):
    file = config_file(tmp_path)
    with Job(file, tmp_path / "run") as job:
        job.send(1, signal.SIGKILL)
        other = Job(
            file, tmp_path / "other", 1, 1, *job.processes[1].args[5:8], alone=True
        )  # process 1 with another workdir
        with other:
            assert other.wait() == [2]
            assert job.wait() == [2, -signal.SIGKILL], job.shown()
    assert "is not the folder that process 0 has made" in other.output[0][1]
    assert "process 1 of 2 failed" in job.output[0][1]
    assert "Traceback" not in job.output[0][1] + other.output[0][1]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (2, 4)])
def test_the_curve_is_the_same_on_other_shapes(shape, finished, tmp_path):  # noqa: F811
    """Processes x devices, against the run of 1 x 8."""
    _, reference = finished
    file = config_file(tmp_path, train__sample_every=0)
    options = [] if shape == (1, 1) else ["--config.mesh.fsdp=2"]
    with Job(file, tmp_path / "run", *shape, *options) as job:
        assert job.wait(500) == [0] * shape[0], job.shown()
    close_to(losses(tmp_path / "run"), losses(reference))
    close_to(losses(tmp_path / "run", "eval/loss"), losses(reference, "eval/loss"))


@pytest.mark.slow
def test_distillation_on_a_mesh_of_three_axes(finished, tmp_path):  # noqa: F811
    _, teacher = finished
    file = config_file(
        tmp_path, train__steps=4, train__log_every=1, train__sample_every=0, train__save_every=0,
        model__two_times=True, sampler__name="flow_map",
    )  # fmt: skip
    start = {"teacher": str(teacher), "init_from": "teacher", "loss.name": "psd"}
    words = [f"--config.{key}={value}" for key, value in start.items()]
    mesh = "--config.mesh.fsdp=2", "--config.mesh.tensor=2"
    with Job(file, tmp_path / "two", 2, 4, *words, *mesh) as job:
        assert job.wait() == [0, 0], job.shown()
    config = config_lib.load(str(file), start)
    config_lib.validate(config, experiment.tables())
    assert loop.train(config, tmp_path / "one") == 0
    close_to(losses(tmp_path / "two"), losses(tmp_path / "one"))
    close_to(losses(tmp_path / "two", "eval/loss"), losses(tmp_path / "one", "eval/loss"))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_processes_with_the_whole_batch_kept(tmp_path):
    """... and the step before is saved."""
    file = config_file(
        tmp_path, optim__learning_rate=1e38, train__log_every=1, train__eval_every=0,
    )  # fmt: skip
    with Job(file, tmp_path / "run") as job:
        assert job.wait() == [2, 2], job.shown()
    step = max(losses(tmp_path / "run")) + 1
    assert f"is nan at step {step}; step {step - 1} is saved" in job.output[0][1], job.shown()
    with np.load(tmp_path / "run" / "nonfinite" / f"step_{step:08d}.npz") as facts:
        kept = facts["tokens"]
    assert kept.shape == (8, 12)
    config = config_lib.load(str(file))
    session = loop.Session(config, tmp_path / "other")
    rows = [next(session.batches)["tokens"] for _ in range(step)]
    np.testing.assert_array_equal(kept, rows[-1])
    saved = tmp_path / "run" / "checkpoints" / str(step - 1) / "MANIFEST.json"
    assert saved.is_file(), job.shown()
