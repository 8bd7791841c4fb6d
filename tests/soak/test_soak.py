"""The soak: its verdict sees every kind of loss, and a short one passes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from tests.soak import kills, verdict

ROOT = pathlib.Path(__file__).resolve().parents[2]


def record(*extra: dict, rows: tuple = ((0, 1), (2, 3), (1, 0))) -> list[dict]:
    """A run of three steps on four rows that saved step 2."""
    reads = [{"step": step, "rows": list(pair)} for step, pair in enumerate(rows, start=1)]
    saved = [{"saving": 2, "digest": "a"}, {"saved": 2}]
    return [{"rows_in_all": 4}, *reads, *saved, *extra, {"complete": 3, "digest": "z"}]


def test_a_run_that_was_killed_and_repeated_a_step_is_as_good():
    killed = record({"resumed": 2, "digest": "a"}, {"step": 3, "rows": [1, 0]})
    problems, figures = verdict.compare(killed, record())
    assert problems == []
    assert (figures["steps"], figures["steps_repeated"], figures["resumes"]) == (3, 1, 1)


@pytest.mark.parametrize(
    ("soaked", "problem"),
    [
        (record({"resumed": 2, "digest": "b"}), "step 2 was restored with other parameters"),
        (record({"step": 3, "rows": [2, 0]}), "step 3 read other rows when it was repeated"),
        (record({"saving": 2, "digest": "b"}), "step 2 had other parameters when repeated"),
        (record(rows=((0, 1), (0, 3), (1, 0))), "epoch 0 used row 0 twice"),
        (record(rows=((2, 1), (0, 3), (1, 0))), "did not read the rows of the uninterrupted"),
        (record()[:-1], "a run did not complete"),
        (record()[:-1] + [{"complete": 3, "digest": "y"}], "the final parameters differ"),
        ([line for line in record() if line.get("step") != 2], "data rows has gaps"),
    ],
)
def test_the_verdict_sees(soaked, problem):
    assert any(problem in found for found in verdict.compare(soaked, record())[0])


@pytest.mark.parametrize(
    ("steps", "problem"),
    [((500,), True), ((500, 520), False)],  # of which a save began before the session was killed
)
def test_training_must_go_on_with_a_full_disk(steps, problem, tmp_path):
    run = kills.Soak(tmp_path, seed=1, quota=True)
    run.checkpoints.mkdir(parents=True)
    saves = [{"saving": step, "digest": "a"} for step in steps]
    run._check("SIGKILL", -9, True, [], saves)
    assert run.problems == ["training did not go on with a full disk"] * problem


def test_a_line_torn_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "record.jsonl"
    path.write_text('\n{"step": 1}\n{"ste\n{"step": 2}')
    assert verdict.read(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.slow  # a dozen processes, each of which imports everything
@pytest.mark.timeout(240)
def test_four_kills(tmp_path):
    words = [sys.executable, "-m", "tests.soak", "--kills=4", "--minutes=2", "--seed=5"]
    done = subprocess.run(
        [*words, f"--workdir={tmp_path / 'soak'}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "soak" / "result.json").read_text())
    assert result["passed"] and result["kills"] == 4 and result["problems"] == []
    assert done.stdout.splitlines()[-1].startswith("soak PASSED: 4 kills in ")
