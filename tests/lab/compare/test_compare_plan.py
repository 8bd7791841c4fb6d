"""The plan of a comparison: minutes become steps once, and another plan is refused."""

import dataclasses
import json

import pytest

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.lab.compare import asked as asked_lib
from flm_jax.lab.compare import driver, rates, shown
from flm_jax.lab.compare import plan as plan_lib
from flm_jax.lab.compare.asked import Asked, Drawing
from flm_jax.lab.compare.plan import Plan
from flm_jax.lab.compare.rates import Rate

BASE = config_lib.load("configs/compare.py:addition")
ASKED = Asked(
    base=BASE,
    methods=("flm", "fmlm"),
    seeds=(1, 2),
    budget_minutes=10.0,
    learning_rates=(1e-3, 3e-3),
)
RATES = {"flm": Rate(0.1, 30.0), "fmlm": Rate(0.3, 60.0)}


def plan(**changes) -> Plan:
    return Plan(dataclasses.replace(ASKED, **changes), "float32", "1 x cpu", RATES)


def test_minutes_become_steps_by_the_rate_of_the_objective():
    steps = {stage.name: plan().steps(stage) for stage in plan().stages}
    assert steps == {"flm": 6000, "flm_half": 3000, "fmlm": 1000}
    assert [plan().tuning_steps(stage) for stage in plan().to_tune()] == [600, 100]
    slow = dataclasses.replace(plan(), rates={"flm": Rate(1e6, 1.0), "fmlm": Rate(1e6, 1.0)})
    assert {slow.steps(stage) for stage in slow.stages} == {2}


def test_the_learning_rate_is_that_of_the_lowest_loss():
    chosen = plan().with_choice("flm", {1e-3: 2.0, 3e-3: 1.5})
    assert chosen.learning_rate("flm") == 3e-3
    assert [stage.method for stage in chosen.to_tune()] == ["fmlm"]
    assert chosen.tried["flm"] == {"0.001": 2.0, "0.003": 1.5}
    one = plan(learning_rates=(7e-4,))
    assert one.to_tune() == [] and one.learning_rate("fmlm") == 7e-4
    with pytest.raises(UserError, match="fmlm has no finite held-out loss with any learning rate"):
        plan().with_choice("fmlm", {1e-3: float("inf")})


def test_a_plan_is_read_as_it_was_written(tmp_path):
    made = plan().with_choice("flm", {1e-3: 2.0, 3e-3: 1.5})
    plan_lib.write(tmp_path, made)
    assert plan_lib.read(tmp_path, ASKED) == made
    stored = json.loads((tmp_path / "plan.json").read_text())
    assert stored["steps"] == {"flm": 6000, "flm_half": 3000, "fmlm": 1000}
    assert plan_lib.read(tmp_path / "empty", ASKED) is None


def test_seeds_methods_and_samples_may_be_others(tmp_path):
    plan_lib.write(tmp_path, plan())
    changed = dataclasses.replace(
        ASKED, seeds=(5,), methods=("mdlm",), drawing=Drawing(evaluations=(3,), num_samples=999)
    )
    found = plan_lib.read(tmp_path, changed)
    assert found is not None
    assert found.rates == RATES and found.without_rate() == ["mdlm"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"budget_minutes": 20.0}, "(budget_minutes: 10.0 -> 20.0); give what it was made with"),
        ({"learning_rates": (1.0,)}, "(learning rates to try: [0.001, 0.003] -> [1.0])"),
        ({"base": config_lib.changed(BASE, {"model.width": 32})}, "(model.width: 64 -> 32)"),
    ],
)
def test_the_plan_of_another_comparison_is_refused(tmp_path, changes, sentence):
    plan_lib.write(tmp_path, plan())
    with pytest.raises(UserError) as caught:
        plan_lib.read(tmp_path, dataclasses.replace(ASKED, **changes))
    assert sentence in str(caught.value) and "another --workdir" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "is not a whole plan"), ("{}", "is not a whole plan"), ('{"version": 9}', "version 9")],
)
def test_a_damaged_plan_gets_a_sentence(tmp_path, content, sentence):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        plan_lib.read(tmp_path, ASKED)


def test_only_what_has_no_rate_is_timed(monkeypatch):
    timed = []

    def measured(base, methods):
        timed.extend(methods)
        return {name: Rate(1.0, 2.0) for name in methods}

    monkeypatch.setattr(rates, "measured", measured)
    monkeypatch.setattr(rates, "device", lambda: "1 x cpu")
    assert driver.timed(plan()) == plan() and timed == []
    more = driver.timed(plan(methods=("flm", "mdlm")))
    assert timed == ["mdlm"] and more.rates == RATES | {"mdlm": Rate(1.0, 2.0)}
    monkeypatch.setattr(rates, "device", lambda: "8 x TPU")
    with pytest.raises(UserError, match="step of mdlm must be timed where .* 1 x cpu, and this is"):
        driver.timed(plan(methods=("flm", "mdlm")))


@pytest.mark.slow
def test_a_step_is_timed_with_its_teachers():
    small = config_lib.changed(BASE, {"model.width": 8, "model.depth": 1, "train.batch_size": 8})
    found = rates.measured(small, ["fmlm"])["fmlm"]
    assert 0.0 < found.step_s < 5.0 < 60.0 and found.compile_s > found.step_s


def test_the_plan_in_words(tmp_path):
    text = shown.text(plan(), tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert ["fmlm", "psd", "1,000", "5.00", "300.0", "flm_half"] in lines
    assert ["flm_half", "flow_matching", "3,000", "5.00", "100.0", "random"] in lines
    assert "each with seed 1, 2: runs/NAME_SEED" in text
    # 2 x (10 + 5 + 5) minutes; three tenths of 10 and of 5, of two rates; 30 + 30 + 60 s and again
    # for two rates of both.
    assert "minutes: training 40.0, tuning 3.0, compiling about 5.0" in text
    chosen = plan().with_choice("flm", {1e-3: 2.0, 3e-3: 1.5})
    assert "chosen so far: flm 0.003" in shown.text(chosen, tmp_path)
    unknown = shown.text(dataclasses.replace(plan(), rates={}), tmp_path)
    assert "--dry_run --time measures it" in unknown


def corpus(folder):
    (folder / "text.txt").write_text("\n".join(f"number {n} of many" for n in range(400)))
    return folder / "text.txt"


def test_text_of_ones_own(tmp_path):
    path = corpus(tmp_path)
    for data in (str(path), str(tmp_path), str(tmp_path / "*.txt")):
        found = asked_lib.base("configs/compare.py", {}, data)
        assert (found.data.name, found.data.options["path"]) == ("text_files", data)
        assert found.data.options["document"] == "line"
    found = asked_lib.base(
        "configs/compare.py:addition",
        {"data.options.document": "file", "data.length": "12"},
        str(path),
    )
    assert found.data.options == {"path": str(path), "document": "file"} and found.data.length == 12


def test_a_data_set_by_name_and_its_options():
    found = asked_lib.base("configs/compare.py:addition", {"data.options.language": "brackets"}, "")
    assert found.data.options["language"] == "brackets"
    found = asked_lib.base("configs/compare.py", {}, "unicode_names")
    assert (found.data.name, found.data.options) == ("unicode_names", {})


def test_rows_bring_their_length_and_tokenizer(tmp_path):
    from flm_jax import data

    section = {"name": "text_files", "length": 9, "options": {"path": str(corpus(tmp_path))}}
    section["cache_dir"] = str(tmp_path / "prepared")
    data.load_data(section, {"name": "characters"})
    found = asked_lib.base("configs/compare.py:stories", {}, str(tmp_path / "prepared"))
    assert (found.data.name, found.data.length, found.tokenizer.name) == ("prepared", 9, "")
    assert rates.vocabulary(found) == data.load_data(found.data, {}).tokenizer.vocab_size


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (
            "/nowhere/x.txt",
            "--data=/nowhere/x.txt: there is no such file or folder, and no data set",
        ),
        (
            "",
            "--data=TEXT is missing: a file, a folder, a glob, rows of flm prepare, or a data set",
        ),
    ],
)
def test_text_that_is_not_there_gets_a_sentence(data, sentence):
    with pytest.raises(UserError) as caught:
        asked_lib.base("configs/compare.py", {}, data)
    assert str(caught.value).startswith(sentence)


def test_learning_rates_are_around_the_configs():
    assert asked_lib.learning_rates(BASE, (), True) == (6.7e-4, 2e-3, 6e-3)
    assert asked_lib.learning_rates(BASE, (), False) == (2e-3,)
    assert asked_lib.learning_rates(BASE, (1.0, 2.0), True) == (1.0, 2.0)
    assert asked_lib.learning_rates(BASE, (1.0,), False) == (1.0,)
    with pytest.raises(UserError, match="--learning_rates=1.0,2.0 are to be tried, but --notune"):
        asked_lib.learning_rates(BASE, (1.0, 2.0), False)
