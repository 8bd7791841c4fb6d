"""Real jobs of several processes on this machine, for the tests of distributed training."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import tiny

from flm_jax import config as config_lib
from flm_jax.host import runlog

ROOT = pathlib.Path(__file__).resolve().parents[1]
TIMEOUT = 240  # of a whole job


class Job:
    """``processes`` times the same command, with ``devices`` virtual devices each.

    ``variables``: of the environment of each process, beside those that all have.

    Use as a context: what still runs at the end is killed.
    """

    def __init__(
        self, config_file, workdir, processes=2, devices=1, *options, alone=False, variables=None
    ):
        port = free_port()
        self.processes = []
        for index in range(processes):
            together = [
                f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={processes}",
                f"--process_id={index}",
            ]
            self.processes.append(
                subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "flm_jax.main",
                        f"--config={config_file}",
                        f"--workdir={workdir}",
                        *([] if alone else together),
                        *options,
                    ],
                    cwd=ROOT,
                    env=environment(devices) | (variables[index] if variables else {}),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        self.workdir = pathlib.Path(workdir)
        self.output = []

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def wait(self, timeout: float = TIMEOUT) -> list[int]:
        """The exit codes; `output` then holds (stdout, stderr) of each."""
        end = time.monotonic() + timeout
        self.output = [p.communicate(timeout=end - time.monotonic()) for p in self.processes]
        return [p.returncode for p in self.processes]

    def wait_for_step(self, step: int) -> None:
        """Returns when the log holds this step."""
        end = time.monotonic() + TIMEOUT
        while not any(row["step"] >= step for row in runlog.read(self.workdir)):
            ended = [p.poll() for p in self.processes]
            assert ended == [None] * len(ended), (ended, self.wait(), self.output)
            assert time.monotonic() < end, "no progress"
            time.sleep(0.05)

    def send(self, index: int, number: int = signal.SIGTERM) -> None:
        self.processes[index].send_signal(number)

    def shown(self) -> str:
        return "\n".join(f"--- {i}\n{out}\n{err}" for i, (out, err) in enumerate(self.output))


def environment(devices: int) -> dict[str, str]:
    fast = "--xla_backend_optimization_level=0"
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "TPU_", "JAX_"))},
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": f"{fast} --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
        "JAX_COMPILATION_CACHE_DIR": os.path.expanduser(os.environ["FLM_JAX_TEST_CACHE"])
        + "-processes",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": str(ROOT),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def config_file(folder: pathlib.Path, **overrides) -> pathlib.Path:
    """A file for --config with `tiny.run_config`."""
    tree = config_lib.to_dict(tiny.run_config(folder, **overrides))
    path = folder / "config_file.py"
    path.write_text(
        "import json\nimport ml_collections\n\n\ndef get_config():\n"
        f"    return ml_collections.ConfigDict(json.loads({json.dumps(tree)!r}))\n"
    )
    return path


def losses(workdir: pathlib.Path, name: str = "loss") -> dict[int, float]:
    return {row["step"]: row[name] for row in runlog.read(workdir) if name in row}
