"""A comparison from plan to report at a tiny scale, with measures that look at nothing."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import processes
import pytest
import stub_measures
from commands import ROOT, call

from flm_jax import config as config_lib
from flm_jax import inference
from flm_jax.data.pipeline import Batches
from flm_jax.errors import UserError
from flm_jax.evals import artefact
from flm_jax.host import runlog
from flm_jax.lab.compare import asked as asked_lib
from flm_jax.lab.compare import drawing, driver, rates
from flm_jax.lab.compare.asked import Asked, Drawing, Judging
from flm_jax.lab.compare.drawing import FINAL, PILOT, Trained, Writer
from flm_jax.lab.compare.rates import Rate
from flm_jax.lab.compare.results import Point
from flm_jax.training import loop

TINY = {
    "model.width": 16,
    "model.depth": 1,
    "train.batch_size": 8,
    "train.eval_rows": 8,
    "data.options.documents": 200,
    "data.options.held_out": 50,
}
STEPS = 12  # in the budget
DRAWS = Drawing(evaluations=(1, 2), num_samples=6, pilot_samples=4, points=2)


def asked(**changes) -> Asked:
    base = config_lib.changed(config_lib.load("configs/compare.py:addition"), TINY)
    given = {"base": base, "methods": ("fmlm",), "seeds": (1,), "budget_minutes": 1.0}
    return Asked(**given | {"learning_rates": (1e-3,), "drawing": DRAWS} | changes)


@pytest.fixture
def quick(monkeypatch):
    """No measures, and no clock: the budget is so many steps."""
    stub_measures.install(monkeypatch.setattr)
    step = Rate(60.0 / STEPS, 1.0)
    monkeypatch.setattr(rates, "measured", lambda base, methods: dict.fromkeys(methods, step))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of one comparison that went from beginning to end, with tuning."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        stub_measures.install(patch.setattr)
        step = Rate(60.0 / STEPS, 1.0)
        patch.setattr(rates, "measured", lambda base, methods: dict.fromkeys(methods, step))
        driver.compare(asked(learning_rates=(1e-3, 3e-3)), folder)
    return folder


def results(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.slow
def test_a_student_starts_from_the_run_that_it_shares_its_budget_with(made):
    student, teacher = (
        inference.load(made / "runs" / name).config for name in ("fmlm_1", "flm_half_1")
    )
    assert (student.train.steps, teacher.train.steps) == (STEPS // 2, STEPS // 2)
    assert student.teacher == str(made / "runs" / "flm_half_1")
    assert student.model == dataclasses.replace(teacher.model, two_times=True)
    assert (student.seed, teacher.seed) == (1, 1)


@pytest.mark.slow
def test_every_objective_tries_the_same_learning_rates_at_a_tenth_with_seed_0(made):
    plan = json.loads((made / "plan.json").read_text())
    assert {name: list(tried) for name, tried in plan["tried"].items()} == {
        "flm": ["0.001", "0.003"],
        "fmlm": ["0.001", "0.003"],
    }
    for name, tried in plan["tried"].items():
        best = min(tried, key=tried.get)
        assert plan["learning_rates"][name] == float(best)
        for rate, loss in tried.items():
            run = made / "tuning" / f"{name}_{rate}"
            config = inference.load(run).config
            assert (config.seed, config.train.steps) == (0, 2)  # 0.6 steps, but two at least
            assert config.optim.learning_rate == float(rate)
            if name == "fmlm":
                chosen = plan["learning_rates"]["flm"]
                assert config.teacher == str(made / "tuning" / f"flm_{chosen:g}")
            last = [row for row in runlog.read(run) if "eval/loss" in row][-1]
            assert loss == last["eval/loss"] + last.get("eval/semigroup_defect", 0.0)


@pytest.mark.slow
def test_samples_at_every_point_then_more_at_the_best(made):
    few, more = (sorted((made / "samples/fmlm_1" / which).iterdir()) for which in (PILOT, FINAL))
    names = ["00001_flow_map", "00002_flow_map", "00002_flow_map_gamma_1.0"]
    assert [path.stem for path in few] == names
    assert [path.stem for path in more] == names[::2]
    counts = [len(path.read_text().splitlines()) for path in (*few, *more)]
    assert counts == [4, 4, 4, 6, 6]
    first, second = (artefact.read(paths[0], ["seed"]) for paths in (few, more))
    assert (first.origin, second.origin) == ({"seed": 0}, {"seed": 1})
    rows = results(made)["rows"]
    assert [row["file"] for row in rows] == [str(path.relative_to(made)) for path in more]
    assert [(row["seed"], row["used"]) for row in rows] == [(1, 1.0), (1, 2.0)]


@pytest.mark.slow
def test_what_is_there_is_not_made_again(made, quick, monkeypatch):
    def never(*arguments, **named):
        raise AssertionError("made again")

    monkeypatch.setattr(loop, "train", never)
    monkeypatch.setattr(rates, "measured", never)
    monkeypatch.setattr(inference.FlowModel, "generate", never)
    (made / "results.json").unlink()
    driver.compare(asked(learning_rates=(1e-3, 3e-3)), made)
    assert len(results(made)["rows"]) == 2


@pytest.mark.slow
def test_samples_that_are_damaged_or_of_another_network_are_drawn_again(made):
    path = str(made / "runs/fmlm_1")
    model = inference.load(path)
    trained = Trained("fmlm", 1, path, made / "samples/fmlm_1")
    point = Point("fmlm", 1, "flow_map")
    writer = Writer(model, artefact.weights_sha256(model.params), trained, 6, FINAL)
    assert writer.stored(point) is not None
    assert dataclasses.replace(writer, count=7).stored(point) is None
    assert dataclasses.replace(writer, weights="another").stored(point) is None
    assert writer.stored(dataclasses.replace(point, settings=(("gamma", 0.5),))) is None
    file = writer.file(point)
    whole = file.read_text()
    file.write_text(whole[:-30])
    assert writer.stored(point) is None
    drawing.draw(trained, [point], 6, FINAL)
    assert [json.loads(x)["tokens"] for x in file.read_text().splitlines()] == [
        json.loads(x)["tokens"] for x in whole.splitlines()
    ]


@pytest.mark.slow
def test_another_seed_is_added_with_the_steps_of_the_plan(made, quick, monkeypatch):
    monkeypatch.setattr(rates, "measured", None)
    driver.compare(asked(learning_rates=(1e-3, 3e-3), seeds=(1, 4)), made)
    assert inference.load(made / "runs/fmlm_4").config.train.steps == STEPS // 2
    rows = results(made)["rows"]
    assert {(row["seed"], row["evaluations"]) for row in rows} == {(1, 1), (1, 2), (4, 1), (4, 2)}


@pytest.mark.slow
def test_a_learning_rate_that_explodes_is_only_no_good(tmp_path, quick):
    driver.compare(asked(methods=("ar",), learning_rates=(1e-3, 1e30)), tmp_path)
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["learning_rates"] == {"ar": 1e-3}


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, quick, monkeypatch):
    """An exception in the middle, as a stand-in for the kill of the slow test."""
    one = asked(methods=("ar",))
    driver.compare(one, tmp_path / "whole")
    read, calls = Batches.__next__, []

    def failing(self):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(Batches, "__next__", failing)
    with pytest.raises(KeyboardInterrupt):
        driver.compare(one, tmp_path / "cut")
    monkeypatch.setattr(Batches, "__next__", read)
    driver.compare(one, tmp_path / "cut")
    hashes = [
        artefact.weights_sha256(inference.load(tmp_path / name / "runs/ar_1").params)
        for name in ("whole", "cut")
    ]
    assert hashes[0] == hashes[1] and len(calls) == 8


def test_a_dry_run_measures_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rates, "measured", None)
    driver.compare(asked(), tmp_path / "new", dry_run=True)
    assert not (tmp_path / "new").exists()
    assert "flm_half" in capsys.readouterr().out


def test_a_dry_run_with_time_keeps_the_plan(tmp_path, quick, capsys):
    driver.compare(asked(), tmp_path, dry_run=True, time=True)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert f"{STEPS // 2}" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_that_are_there_are_compared(made, quick, tmp_path):
    given = [str(made / "runs" / name) for name in ("flm_half_1", "fmlm_1")]
    driver.compare_runs(given, tmp_path, DRAWS, Judging())
    rows = results(tmp_path)["rows"]
    assert {row["method"] for row in rows} == {"flm_half_1", "fmlm_1"}
    assert results(tmp_path)["about"]["runs"] == given


def test_runs_are_named_by_their_folders():
    assert driver.names(["runs/a", "/b/"]) == ["a", "b"]
    assert driver.names(["x/flm", "y/flm", "z"]) == [
        "x_flm",
        "y_flm",
        f"{pathlib.Path.cwd().name}_z",
    ]
    with pytest.raises(UserError, match="a run is named twice"):
        driver.names(["runs/a", "runs/a/"])


@pytest.mark.slow
def test_runs_with_other_tokens_are_refused(made, tmp_path, quick):
    other = {"data.length": 14, "model.learned_positions": 14, "data.options.language": "brackets"}
    base = config_lib.changed(asked().base, other)
    driver.compare(asked(methods=("ar",), base=base), tmp_path / "other")
    given = [str(made / "runs/fmlm_1"), str(tmp_path / "other/runs/ar_1")]
    with pytest.raises(UserError, match="has other tokens than .* give runs with one tokenizer"):
        driver.compare_runs(given, tmp_path / "out", DRAWS, Judging())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": ("flm", "flm")}, "--methods=flm,flm must name at least one, and none twice"),
        ({"seeds": (3, 3)}, "--seeds=3,3 must name at least one, and none twice"),
        ({"drawing": Drawing(evaluations=(2, 2))}, "--evaluations=2,2 must name at least one"),
        ({"learning_rates": (1.0, 1.0)}, "--learning_rates=1.0,1.0 must name"),
        ({"drawing": Drawing(num_samples=5)}, "--pilot_samples=256 of every setting are more than"),
        ({"methods": ()}, "--methods= must name at least one"),
    ],
)
def test_what_cannot_be_is_refused(changes, sentence):
    with pytest.raises(UserError) as caught:
        asked_lib.check(asked(**changes))
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods=gan"], "--methods: there is no 'gan'; use ar, mdlm"),
        (["--seeds=1,1"], "--seeds=1,1 must name at least one, and none twice"),
        (["--budget_minutes=0"], "--budget_minutes=0.0 must be greater than 0"),
        (["--evaluations=1,0"], "0 in --evaluations must be at least 1"),
        (["--data=/nowhere"], "--data=/nowhere: there is no such file or folder"),
        (["--config=configs/compare.py:latin"], "no preset 'latin'; write one of text, stories"),
        (["--config.model.heads=3"], "model.heads=3 does not divide model.width=64"),
        (["--output=x"], "--output=x is for runs that are there"),
        (["runs/a", "runs/b"], "--output=DIR is missing: the folder for samples and report"),
        (["runs/a", "--output=x"], "runs/a alone is nothing to compare with; give two runs"),
        (["a", "b", "--output=x", "--seeds=1"], "--seeds is about training, but runs are given"),
        (["a", "b", "--output=x", "--config=quickstart"], "--config is about training, but runs"),
        (["/nowhere/a", "/nowhere/b", "--output=x"], "there is no file or folder /nowhere/a"),
    ],
)
def test_wrong_words_get_a_sentence(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    given = (
        [] if any(word.startswith("--config=") for word in words) else ["--config=compare:addition"]
    )
    words = words if words[0][0] != "-" else ["--dry_run", *given, *words]
    assert call("compare", *words) == 2
    told = capsys.readouterr().err
    assert sentence in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_killed_anywhere_it_is_completed_by_the_same_command(tmp_path):
    """SIGKILL while timing, training, and drawing; the plan and finished runs stay as they are."""
    words = [f"--config.{key}={value}" for key, value in TINY.items()]
    words += [
        "--methods=mdlm,sdtt",
        "--budget_minutes=0.05",
        "--learning_rates=1e-3,3e-3",
        "--tune",
    ]
    words += ["--evaluations=1,2", "--points=2", "--num_samples=6", "--pilot_samples=4"]
    command = [sys.executable, str(pathlib.Path(stub_measures.__file__)), "compare",
               "--config=configs/compare.py:addition", f"--workdir={tmp_path}", *words]  # fmt: skip

    def start():
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    seen = {}
    for place in ("plan.json", "tuning/mdlm_0.003/metrics.jsonl", "runs/mdlm_1/checkpoints/*",
                  "runs/sdtt_1/metrics.jsonl", "samples/mdlm_1/pilot/*.jsonl",
                  "samples/sdtt_1/final/*.jsonl"):  # fmt: skip
        process = start()
        end = time.monotonic() + 600
        while not any(tmp_path.glob(place)):
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < end, f"{place} did not come"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        stored = json.loads((tmp_path / "plan.json").read_text())
        assert seen.setdefault("rates", stored["rates"]) == stored["rates"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = results(tmp_path)["rows"]
    assert {row["method"] for row in rows} == {"mdlm", "sdtt"}
    assert all(row["file"] for row in rows)


@pytest.mark.slow
def test_two_processes_make_one_comparison(tmp_path):
    """They train together, share out the samples, and agree on what is worth more of them."""
    port, environment = processes.free_port(), processes.environment(1)
    words = [f"--config.{key}={value}" for key, value in TINY.items()]
    words += ["--methods=sdtt", "--budget_minutes=0.01", "--learning_rates=1e-3,3e-3", "--tune"]
    words += ["--evaluations=1,2", "--points=2", "--num_samples=6", "--pilot_samples=4"]
    words += ["--config=configs/compare.py:addition", f"--workdir={tmp_path}"]
    words += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    command = [sys.executable, str(pathlib.Path(stub_measures.__file__)), "compare", *words]
    jobs = [
        subprocess.Popen(
            [*command, f"--process_id={index}"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        told = [job.communicate(timeout=900)[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0, 0], told
    assert len(results(tmp_path)["rows"]) == len(list(tmp_path.glob("samples/*/final/*.jsonl"))) > 1
    assert "=== measuring" in told[0] and "=== measuring" not in told[1]
