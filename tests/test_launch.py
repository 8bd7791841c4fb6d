"""The launch scripts: syntax, flags that exist, and what they ask the outside programs to do."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
from absl import flags

from flm_jax import config as config_lib
from flm_jax import main  # noqa: F401, defines the flags
from flm_jax.config import settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
FILES = sorted(path for path in LAUNCH.iterdir() if path.is_file())
RUN = ["--config=configs/owt.py", "--workdir=/mnt/my runs/owt"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_shell_and_say_what_they_do(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ") and "\nset -euo pipefail\n" in text
    assert f"launch/{path.name}" in text.split("set -euo")[0]
    if path.suffix == ".sh":
        assert os.access(path, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity=warning", path], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_flags_and_files_they_mention_exist(path):
    text = path.read_text()
    known = set(flags.FLAGS) | {f"config.{key}" for key, _ in settings.knobs()}
    for command in re.findall(r"flm_jax\.main((?:\s+\\?\s*\"?--[^\s]+)+)", text):
        for name in re.findall(r"--([a-z_.]+)", command):
            assert name.removeprefix("no") in known or name in known, f"--{name} in {path.name}"
    for name in re.findall(r"--(config\.[a-z_.]+)", text):
        assert name in known, f"--{name} in {path.name}"
    for name in re.findall(r"\b(?:configs|launch|docs)/[a-z_]+\.[A-Za-z]+", text):
        assert (ROOT / name).is_file(), f"{name} in {path.name}"


def test_the_readme_has_every_file():
    text = (LAUNCH / "README.md").read_text()
    assert [p.name for p in FILES if p.name not in text and p.name != "README.md"] == ["retry.sh"]
    assert "retry.sh" in (LAUNCH / "tpu_pod.sh").read_text()


def test_the_jobset_is_one():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (job["kind"], job["spec"]["failurePolicy"]["maxRestarts"]) == ("JobSet", 100)
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["terminationGracePeriodSeconds"] >= 30
    container = pod["containers"][0]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    words = [w for w in container["args"] if w.startswith("--")]
    assert {w[2:].partition("=")[0] for w in words} <= set(flags.FLAGS)
    config_file = next(w.partition("=")[2] for w in words if w.startswith("--config="))
    assert config_lib.load(str(ROOT / config_file)).train.steps > 0


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Programs that note their arguments, one JSON list a line, in place of the real ones."""
    calls = tmp_path / "calls.jsonl"
    for name in ("gcloud", "xpk", "scontrol", "srun", "git"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable}\nimport json, os, sys\n"
            f"with open({str(calls)!r}, 'a') as f:\n"
            f"    f.write(json.dumps([{name!r}, *sys.argv[1:]]) + '\\n')\n"
            f"sys.exit(int(os.environ.get('{name.upper()}_CODE', '0')))\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def read() -> list[list[str]]:
        return (
            [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        )

    return read


def bash(script, *words, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, timeout=60,
    )  # fmt: skip


def test_tpu_pod_asks_gcloud_for_the_right_things(stand_ins):
    where = ["flm", "--zone=us-east5-a", "--project=p"]
    assert bash("tpu_pod.sh", "install", *where, "--nfs=10.0.0.2:/s").returncode == 0
    assert bash("tpu_pod.sh", "run", *where, "--", *RUN).returncode == 0
    assert bash("tpu_pod.sh", "create", *where, "--type=v5p-64", "--spot", GCLOUD_CODE="0"
                ).stdout == "flm is there already\n"  # fmt: skip
    calls = stand_ins()
    assert [c[0] for c in calls] == ["git", "gcloud", "gcloud", "gcloud", "gcloud"]
    _, scp, install, run, describe = (c[1:] for c in calls)
    for call in (scp, install, run, describe):
        assert call[:3] == ["compute", "tpus", "tpu-vm"]
        assert "--zone=us-east5-a" in call and "--project=p" in call
    assert "--worker=all" in run and "--worker=all" in install
    started = next(word for word in run if word.startswith("--command="))
    assert (
        r"flm_jax.main --distributed --config=configs/owt.py --workdir=/mnt/my\ runs/owt" in started
    )
    assert "launch/retry.sh" in started
    made = bash("tpu_pod.sh", "create", *where, "--type=v5p-64", "--spot", "--dry-run").stdout
    assert "create flm" in made and "--accelerator-type=v5p-64" in made and "--spot" in made
    subprocess.run(["bash", "-n", "-c", started.removeprefix("--command=")], check=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["create", "flm"], "--zone=ZONE is missing"),
        (["create", "flm", "--zone=z"], "--type=TYPE is missing"),
        (["run", "flm", "--zone=z"], "nothing to run"),
        (["run", "flm", "--zone=z", "--config=x"], "flags of flm_jax.main come after --"),
    ],
)
def test_tpu_pod_says_what_is_missing(words, sentence, stand_ins):
    result = bash("tpu_pod.sh", *words)
    assert result.returncode == 2 and sentence in result.stderr
    assert not stand_ins()


def test_xpk(stand_ins):
    words = ["w", "--cluster=c", "--zone=z", "--project=p", "--image=i", "--type=v5p-64"]
    assert bash("xpk.sh", *words, "--", *RUN).returncode == 0
    (call,) = stand_ins()
    assert call[1:3] == ["workload", "create"] and "--tpu-type=v5p-64" in call
    assert any("flm_jax.main --distributed" in word for word in call)
    assert "--cluster=... is missing" in bash("xpk.sh", "w", "--zone=z", "--", *RUN).stderr


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (2, False), (75, True), (143, True)])
def test_slurm_goes_back_into_the_queue(code, requeued, stand_ins):
    result = bash("slurm.sbatch", *RUN, SRUN_CODE=str(code), SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=".")
    calls = stand_ins()
    assert calls[0][0] == "srun" and calls[0][-2:] == RUN and "--distributed" in calls[0]
    assert (["scontrol", "requeue", "7"] in calls) == requeued
    assert result.returncode == (0 if requeued else code)


def test_single_host_with_and_without_processes():
    shown = bash("single_host.sh", "--dry-run", *RUN).stdout
    assert "flm_jax.main --nodistributed" in shown and r"/mnt/my\ runs/owt" in shown
    shown = bash("single_host.sh", "--dry-run", "--processes=3", *RUN).stdout
    assert sorted(re.findall(r"--process_id=(\d)", shown)) == ["0", "1", "2"]
    assert shown.count("--num_processes=3") == 3
    assert bash("single_host.sh").returncode == 2


def test_retry_starts_again_after_a_death_only(tmp_path):
    tries = tmp_path / "tries"
    command = f"echo x >> {tries}; [ $(wc -l < {tries}) -ge 3 ] || exit 75; exit 2"
    result = bash("retry.sh", "--pause=0", "bash", "-c", command)
    assert result.returncode == 2 and tries.read_text() == "x\n" * 3
    assert bash("retry.sh", "--pause=0", "--times=2", "false").returncode == 1
    assert bash("retry.sh", "--pause=0", "--times=2", "bash", "-c", "exit 75").returncode == 75


def test_retry_passes_sigterm_on_and_stops(tmp_path):
    ready = tmp_path / "ready"
    command = f"trap 'sleep 0.3; exit 143' TERM; touch {ready}; while true; do sleep 0.1; done"
    process = subprocess.Popen(["bash", str(LAUNCH / "retry.sh"), "bash", "-c", command])
    end = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.terminate()
    assert process.wait(20) == 143
