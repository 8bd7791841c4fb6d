"""The launch scripts: syntax, flags that exist, and what they ask the outside programs to do."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from flm_jax.cli import train
from flm_jax.cli.options import options_of
from flm_jax.config import settings
from flm_jax.host import watchdog

ROOT = pathlib.Path(__file__).resolve().parents[2]
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


def test_shellcheck_has_nothing_to_say():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (beside.exists() and str(beside))
    if not program:
        pytest.skip("shellcheck is not installed (it comes with the extra [test] where it can)")
    done = subprocess.run(
        [program, "--external-sources", f"--source-path={LAUNCH}", *SCRIPTS],
        capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_flags_and_files_they_mention_exist(path):
    text = path.read_text()
    known = set(options_of(train.Options)) | {f"config.{key}" for key, _ in settings.knobs()}
    for command in re.findall(r"flm_jax\.main((?:\s+\\?\s*\"?--[^\s]+)+)", text):
        for name in re.findall(r"--([a-z_.]+)", command):
            assert name.removeprefix("no") in known or name in known, f"--{name} in {path.name}"
    for name in re.findall(r"--(config\.[a-z_.]+)", text):
        assert name in known, f"--{name} in {path.name}"
    for name in re.findall(r"\b(?:configs|launch|docs)/[a-z_]+\.[A-Za-z]+", text):
        assert (ROOT / name).is_file(), f"{name} in {path.name}"


def test_the_readme_has_every_file():
    text = (LAUNCH / "README.md").read_text()
    inner = {"README.md", "retry.sh", "tpu_common.sh", "tpu_worker.sh"}
    assert {p.name for p in FILES if p.name not in text} <= inner
    assert "retry.sh" in (LAUNCH / "tpu_worker.sh").read_text()
    assert "tpu_worker.sh" in (LAUNCH / "tpu_run.sh").read_text()


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Programs that note their arguments, one JSON list a line, in place of the real ones.

    They print what ANSWERS has for the first of its keys that is in their command line: a list
    gives one answer a call. {"squeue": ["7 RUNNING"]}; an integer is an exit code.
    """
    calls = tmp_path / "calls.jsonl"
    answers = tmp_path / "answers.json"
    names = ("gcloud", "kubectl", "xpk", "sbatch", "squeue", "scontrol", "srun", "git", "sudo")
    for name in names:
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f"#!{sys.executable} -IS\n"
            "import json, pathlib, sys\n"
            f"line = [{name!r}, *sys.argv[1:]]\n"
            "if line[-2:] == ['-f', '-']:\n"
            "    line.append(sys.stdin.read())\n"
            f"with open({str(calls)!r}, 'a') as f:\n"
            "    f.write(json.dumps(line) + '\\n')\n"
            f"path = pathlib.Path({str(answers)!r})\n"
            "known = json.loads(path.read_text()) if path.exists() else {}\n"
            "for key, left in known.items():\n"
            "    if key in ' '.join(line) and left:\n"
            "        answer = left.pop(0)\n"
            "        path.write_text(json.dumps(known))\n"
            "        if isinstance(answer, int):\n"
            "            sys.exit(answer)\n"
            "        print(answer)\n"
            "        break\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def read(**replies: list) -> list[list[str]]:
        """The calls since the last one; sets the answers to come."""
        answers.write_text(json.dumps(replies))
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    return read


def bash(script, *words, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(LAUNCH / script), *words],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, timeout=60,
    )  # fmt: skip


SLICE = ["flm", "--zone=us-east5-a", "--project=p"]


@pytest.mark.parametrize(
    ("states", "actions", "code"),
    [
        (["ACTIVE"], [], 0),
        ([1, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["create"], 0),
        (["WAITING_FOR_RESOURCES", "ACTIVE"], [], 0),
        (["SUSPENDED", "ACTIVE"], ["delete", "create"], 0),
        (["SUSPENDED", "FAILED"], ["delete", "create"], 1),
    ],
    ids=["there", "new", "in the queue", "preempted", "fails"],
)
def test_tpu_create_asks_once(states, actions, code, stand_ins):
    stand_ins(describe=states)
    result = bash("tpu_create.sh", *SLICE, "--type=v5p-64", "--spot", "--poll=0")
    assert result.returncode == code, result.stderr
    calls = [c for c in stand_ins() if "describe" not in c]
    assert [c[4] for c in calls] == actions
    assert all(c[:4] == ["gcloud", "compute", "tpus", "queued-resources"] for c in calls)
    for call in calls:
        assert call[5] == "flm" and {"--zone=us-east5-a", "--project=p"} < set(call)
        if call[4] == "create":
            image = "--runtime-version=v2-alpha-tpuv5"
            assert {"--node-id=flm", "--accelerator-type=v5p-64", image, "--spot"} < set(call)


def test_tpu_run_prepares_all_workers_before_it_starts_any(stand_ins):
    stand_ins(**{"rev-parse": ["0123abcd"]})
    run = ("tpu_run.sh", *SLICE, "--nfs=10.0.0.2:/s")
    assert bash(*run, "--", *RUN).returncode == 0
    calls = [c for c in stand_ins(ssh=[1]) if c[0] == "gcloud"]
    assert [c[4] for c in calls] == ["scp", "ssh", "ssh"]
    for call in calls:
        assert call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
        assert {"--zone=us-east5-a", "--project=p", "--worker=all"} < set(call)
    assert "--command=bash tpu_worker.sh setup 0123abcd 10.0.0.2:/s" in calls[1]
    assert r"start --config=configs/owt.py --workdir=/mnt/my\ runs/owt" in calls[2][-1]
    # one worker could not be prepared
    assert bash(*run, "--", *RUN).returncode == 1
    assert [c[4] for c in stand_ins() if c[0] == "gcloud"] == ["scp", "ssh"]


def test_tpu_status_and_stop(stand_ins):
    for code, ended in ((0, 1), (3, 0), (4, 0), (5, 1)):
        stand_ins(ssh=[code, code])
        assert bash("tpu_status.sh", *SLICE).returncode == code
        assert bash("tpu_status.sh", *SLICE, "--finished").returncode == ended
    stand_ins(ssh=[1])  # a slice that cannot be reached
    assert bash("tpu_stop.sh", *SLICE, "--delete").returncode == 0
    assert [c[4] for c in stand_ins(ssh=[1])] == ["ssh", "describe", "delete"]
    assert bash("tpu_stop.sh", *SLICE).returncode == 1
    assert [c[4] for c in stand_ins()] == ["ssh"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tpu_create.sh", "flm"], "--zone=ZONE is missing"),
        (["tpu_create.sh", "flm", "--zone=z"], "--type=TYPE is missing"),
        (["tpu_create.sh", "flm", "--zone=z", "--type=v9-8"], "no image is known"),
        (["tpu_create.sh", "F L", "--zone=z"], "no name for a slice"),
        (["tpu_run.sh", "flm", "--zone=z"], "nothing to run"),
        (["tpu_run.sh", "flm", "--zone=z", "--config=x"], "flags of flm_jax.main come after --"),
        (["tpu_run.sh", "flm", "--zone=z", "--nfs=a; b", "--", *RUN], "is no HOST:/SHARE"),
        (["gke_jobset.sh", "run", "w", "--type=v5p-64", "--", *RUN], "--image=... is missing"),
        (["gke_jobset.sh", "run", "w", *"--type=x1 --image=i --claim=c -- a".split()], "no type"),
        (["gke_jobset.sh", "walk", "w"], "unknown action walk"),
        (["xpk.sh", "w", "--zone=z", "--", *RUN], "--cluster=... is missing"),
        (["slurm.sbatch", "--nodes=2", *RUN], "nothing to run"),
        (["local_processes.sh"], "launch/local_processes.sh"),
    ],
)
def test_mistakes_are_named_and_nothing_is_asked_for(words, sentence, stand_ins):
    result = bash(*words)
    assert result.returncode == 2 and sentence in result.stderr + result.stdout
    assert not stand_ins()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["tpu_create.sh", *SLICE, "--type=v5e-16"], "--accelerator-type=v5litepod-16"),
        (["tpu_run.sh", *SLICE, "--", *RUN], "tpu-vm ssh flm"),
        (["tpu_status.sh", *SLICE], "tpu-vm ssh flm"),
        (["tpu_stop.sh", *SLICE, "--delete"], "queued-resources delete flm"),
        (["gke_jobset.sh", "stop", "w"], "kubectl delete jobset w"),
        (["gke_jobset.sh", "run", "w", *"--type=t4x1 --image=i --claim=c -- a".split()], "apply"),
        (["xpk.sh", "w", *"--cluster=c --zone=z --project=p --image=i --type=v5p-64 -- a".split()],
         "xpk workload create"),
        (["slurm.sbatch", "--nodes=2", "--", *RUN], "sbatch --job-name=flm_owt --nodes=2"),
        (["local_processes.sh", *RUN], r"flm_jax.main --nodistributed"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)  # fmt: skip
def test_dry_run_only_prints(words, shown, stand_ins):
    end = words.index("--") if "--" in words else len(words)
    result = bash(*words[:end], "--dry-run", *words[end:])
    assert result.returncode == 0 and shown in result.stdout
    subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=True)
    assert not [c for c in stand_ins() if c[0] != "git"]


def test_the_worker_installs_once_and_starts_once(stand_ins, tmp_path):
    home = tmp_path / "home"
    (home / "flm_jax/runs/kept").mkdir(parents=True)
    # The package of this test: a program that waits for SIGTERM, in an environment that is there.
    tree = tmp_path / "tree"
    for folder in ("flm_jax", "launch"):
        (tree / folder).mkdir(parents=True)
    (tree / "setup.cfg").write_text("")
    (tree / "pyproject.toml").write_text("")
    (tree / "flm_jax/__init__.py").write_text("")
    (tree / "flm_jax/main.py").write_text(
        "import signal, sys, time\nprint(sys.argv[1:], flush=True)\n"
        "if '--wrong' in sys.argv: sys.exit(2)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\ntime.sleep(60)\n"
    )
    shutil.copy(LAUNCH / "retry.sh", tree / "launch")
    shutil.make_archive(str(home / "flm_jax"), "gztar", tree)
    (home / "flm_jax.tar.gz").rename(home / "flm_jax.tgz")
    binaries = home / "flm_jax/.venv/bin"
    binaries.mkdir(parents=True)
    (binaries / "pip").touch(mode=0o755)
    (binaries / "python").write_text(
        f'#!/bin/sh\necho "$@" >> {home}/asked\n[ "$2" = pip ] || exec {sys.executable} "$@"\n'
    )
    (binaries / "python").chmod(0o755)

    def worker(*words):
        return bash("tpu_worker.sh", *words, HOME=str(home))

    def wait_for(code):
        end = time.monotonic() + 20
        while worker("status").returncode != code and time.monotonic() < end:
            time.sleep(0.05)
        return worker("status")

    assert worker("status").returncode == 5
    for _ in range(2):
        result = worker("setup", "0123")
        assert result.returncode == 0 and "ready, commit 0123" in result.stdout, result.stderr
    assert (home / "asked").read_text() == "-m pip install -q --retries 10 -e .[tpu]\n"
    assert (home / "flm_jax/runs/kept").is_dir()
    assert "started" in worker("start", "--workdir=my runs").stdout
    try:
        assert "running already" in worker("start", "--workdir=my runs").stdout
        assert "its code stays" in worker("setup", "4567").stdout
        log = home / "flm_jax_run/run.log"
        while "my runs" not in log.read_text():
            time.sleep(0.02)
        assert worker("status").returncode == 0
    finally:
        assert worker("stop").returncode == 0
    assert "exit code 143" in worker("status").stdout and worker("status").returncode == 4
    assert log.read_text() == "['--distributed', '--workdir=my runs']\n"
    assert worker("start", "--wrong").returncode == 0
    assert "exit code 2" in wait_for(4).stdout
    assert not stand_ins()


def rendered(*words) -> dict:
    yaml = pytest.importorskip("yaml")
    shown = bash("gke_jobset.sh", "run", "w", "--image=i", "--claim=c", "--dry-run", *words).stdout
    return yaml.safe_load(shown.partition("\n")[2].removesuffix("YAML\n"))


@pytest.mark.parametrize(
    ("kind", "hosts", "chips", "topology"),
    [
        ("v5p-64", 8, 4, "2x4x4"),
        ("v5p-8", 1, 4, "2x2x1"),
        ("v5e-16", 4, 4, "4x4"),
        ("v6e-1", 1, 1, "1x1"),
        ("h100x8", 2, 8, None),
    ],
)
def test_the_jobset_for_each_kind(kind, hosts, chips, topology):
    odd = '--workdir=/mnt/a "b" & \\c $(HOME)'
    job = rendered(f"--type={kind}", *["--hosts=2"][: not topology], "--", RUN[0], odd)
    assert (job["kind"], job["spec"]["failurePolicy"]["maxRestarts"]) == ("JobSet", 100)
    spec = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == hosts
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"].get("cloud.google.com/gke-tpu-topology") == topology
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    (container,) = pod["containers"]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
    assert container["args"] == ["--distributed", RUN[0], odd.replace("$(", "$$(")]
    resource = "google.com/tpu" if topology else "nvidia.com/gpu"
    assert container["resources"]["limits"] == {resource: chips}
    environment = {e["name"]: e["value"] for e in container["env"]}
    if topology:
        assert not environment
    else:
        from flm_jax.host import distributed

        cluster = distributed.detect(True, environ={**environment, "JOB_COMPLETION_INDEX": "1"})
        found = cluster.coordinator, cluster.num_processes, cluster.process_id
        assert found == ("w-slice-0-0.w:8476", 2, 1)
    assert "${" not in json.dumps(job)


@pytest.mark.parametrize(
    ("state", "actions"),
    [(1, ["get", "apply"]), ("", ["get"]), ("Completed", ["get"]),
     ("Failed", ["get", "delete", "apply"])],
)  # fmt: skip
def test_gke_leaves_a_job_alone_or_starts_it_again(state, actions, stand_ins):
    stand_ins(get=[state])
    words = ["--type=v5p-64", "--image=i", "--claim=c", "--context=k", "--spot", "--", *RUN]
    assert bash("gke_jobset.sh", "run", "w", *words).returncode == 0
    calls = stand_ins()
    assert [c[2] for c in calls] == actions and all("--context=k" in c for c in calls)
    if "apply" in actions:
        assert calls[-1][3:5] == ["-f", "-"] and "kind: JobSet" in calls[-1][5]
        assert 'gke-spot: "true"}' in calls[-1][5]


def test_xpk(stand_ins):
    words = ["owt", "--cluster=c", "--zone=z", "--project=p", "--image=i", "--type=v5p-64"]
    assert bash("xpk.sh", *words, "--", *RUN).returncode == 0
    listed, call = stand_ins(list=["JOBSET  STATUS\nowt  Running"])
    assert listed[1:3] == ["workload", "list"] and call[1:3] == ["workload", "create"]
    # XPK restarts on 42 and 127-255 only, and a watchdog's 75 would end the workload.
    assert {"--tpu-type=v5p-64", "--restart-on-exit-codes=75"} < set(call)
    assert call[-1].startswith("--command=exec python -m flm_jax.main --distributed")
    assert bash("xpk.sh", *words, "--", *RUN).returncode == 0
    assert [c[2] for c in stand_ins()] == ["list"]
    gpus = [*words[:-1], "--type=h100-80gb-8", "--dry-run", "--"]
    assert "cannot pass spaces" in bash("xpk.sh", *gpus, *RUN).stderr
    assert "--num-nodes=1" in bash("xpk.sh", *gpus, "--config=configs/owt.py").stdout


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (1, 0, False),
        (2, 0, False),
        (75, 0, True),
        (143, 3, True),
        (138, 0, True),
        (129, 0, False),
        (75, 100, False),
    ],
)
def test_slurm_goes_back_into_the_queue(code, restarts, requeued, stand_ins):
    stand_ins(srun=[code])
    result = bash(
        "slurm.sbatch", *RUN,
        SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=".", SLURM_RESTART_COUNT=str(restarts),
    )  # fmt: skip
    calls = stand_ins()
    assert calls[0][0] == "srun" and calls[0][-2:] == RUN and "--distributed" in calls[0]
    assert (["scontrol", "requeue", "7"] in calls) == requeued
    assert result.returncode == (0 if requeued else code)


def test_sigusr1_to_the_script_of_a_slurm_job_reaches_the_program(tmp_path, stand_ins):
    """--signal=B:USR1@120; the job goes back into the queue."""
    binaries, ready = tmp_path / "srun_that_saves", tmp_path / "ready"
    binaries.mkdir()
    save = SAVES.format(ready).replace("143", "138").replace("TERM", "USR1")
    (binaries / "srun").write_text(f"#!/usr/bin/env bash\n{save}\n")
    (binaries / "srun").chmod(0o755)
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), *RUN],
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
             "SLURM_SUBMIT_DIR": "."},
    )  # fmt: skip
    wait_for(ready)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(20) == 0
    assert ready.read_text() == "saved\n" and ["scontrol", "requeue", "7"] in stand_ins()


def test_slurm_hands_in_one_job_for_a_workdir(stand_ins):
    words = ["--nodes=4", "--time=24:00:00", "--", *RUN]
    assert bash("slurm.sbatch", *words).returncode == 0
    looked, call = stand_ins(squeue=["7 RUNNING"])
    assert looked[0] == "squeue" and "--name=flm_owt" in looked
    assert call == ["sbatch", "--job-name=flm_owt", *words[:2], "launch/slurm.sbatch", *RUN]
    assert "already: 7 RUNNING" in bash("slurm.sbatch", *words).stdout
    assert [c[0] for c in stand_ins()] == ["squeue"]


def test_local_processes():
    shown = bash("local_processes.sh", "--dry-run", *RUN).stdout
    assert "flm_jax.main --nodistributed" in shown and r"/mnt/my\ runs/owt" in shown
    shown = bash("local_processes.sh", "--dry-run", "--processes=3", *RUN).stdout
    assert sorted(re.findall(r"--process_id=(\d)", shown)) == ["0", "1", "2"]
    assert shown.count("--num_processes=3") == 3


def test_retry_starts_again_after_a_death_only(tmp_path):
    tries = tmp_path / "tries"
    command = f"echo x >> {tries}; [ $(wc -l < {tries}) -ge 3 ] || exit 75; exit 2"
    result = bash("retry.sh", "--pause=0", "bash", "-c", command)
    assert result.returncode == 2 and tries.read_text() == "x\n" * 3
    assert bash("retry.sh", "--pause=0", "--times=2", "false").returncode == 1
    noted = ["--pause=0", "--times=2", f"--code-file={tmp_path / 'code'}"]
    assert bash("retry.sh", *noted, "bash", "-c", "exit 75").returncode == 75
    assert (tmp_path / "code").read_text() == "75\n"


SAVES = (
    "trap 'sleep 0.3; echo saved >> {0}; exit 143' TERM; touch {0}; while true; do sleep 0.1; done"
)


def wait_for(*files):
    end = time.monotonic() + 20
    while not all(file.exists() for file in files) and time.monotonic() < end:
        time.sleep(0.02)


def test_retry_passes_sigterm_on_and_stops(tmp_path):
    ready = tmp_path / "ready"
    command = ["bash", str(LAUNCH / "retry.sh"), "bash", "-c", SAVES.format(ready)]
    process = subprocess.Popen(command)
    wait_for(ready)
    process.terminate()
    assert process.wait(20) == 143
    assert ready.read_text() == "saved\n"


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_to_local_processes_reaches_the_program(processes, tmp_path):
    """... and the script waits for its save."""
    python = tmp_path / "python"
    ready = [tmp_path / f"ready{i}" for i in range(processes)]
    which = 'i=0; for w in "$@"; do case $w in --process_id=*) i=${w#*=};; esac; done\n'
    python.write_text("#!/usr/bin/env bash\n" + which + SAVES.format(f"{tmp_path}/ready$i"))
    python.chmod(0o755)
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "local_processes.sh"), f"--processes={processes}", *RUN],
        env={**os.environ, "PYTHON": str(python)},
    )
    wait_for(*ready)
    process.terminate()
    assert process.wait(20) == 143
    assert [path.read_text() for path in ready] == ["saved\n"] * processes


def test_local_processes_end_with_the_code_that_says_most(tmp_path):
    """Process 1 was killed and the other two saw it."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *id=1*) exit 137;; esac\nexit 75\n')
    python.chmod(0o755)
    done = bash("local_processes.sh", "--processes=3", *RUN, PYTHON=str(python))
    assert done.returncode == 137


def exit_codes() -> dict[int, bool]:
    """Code to whether launchers restart, of docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text()
    text = text.partition("## Exit codes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d, ]+) \|.*\| (yes|no)[^|]*\|$", text, re.MULTILINE)
    return {int(code): word == "yes" for codes, word in rows for code in codes.split(",")}


def test_launchers_restart_what_the_table_says(stand_ins, tmp_path):
    table = exit_codes()
    assert len(table) == 12 and table[watchdog.EXIT_CODE] and not table[2]
    state = tmp_path / "flm_jax_run"
    state.mkdir()
    (state / "run.log").touch()
    policy = rendered("--type=v5p-8", "--", *RUN)["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = policy["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
    assert {0, *rule["onExitCodes"]["values"]} == {c for c, again in table.items() if not again}
    for code, again in table.items():
        tries = tmp_path / f"tries{code}"
        command = f"echo x >> {tries}; exit {code}"
        done = bash("retry.sh", "--times=2", "--pause=0", "bash", "-c", command)
        found = done.returncode, len(tries.read_text().splitlines())
        assert found == (code, 2 if again else 1)
        stand_ins(srun=[code])
        bash("slurm.sbatch", *RUN, SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=".")
        assert (["scontrol", "requeue", "7"] in stand_ins()) == again
        (state / "run.code").write_text(f"{code}\n")
        wanted = 5 if again else 4 if code else 3  # start it, look at it, finished
        assert bash("tpu_worker.sh", "status", HOME=str(tmp_path)).returncode == wanted
    (state / "run.code").write_text("143\n")
    bash("tpu_worker.sh", "stop", HOME=str(tmp_path))  # a person wants it so
    assert bash("tpu_worker.sh", "status", HOME=str(tmp_path)).returncode == 4
