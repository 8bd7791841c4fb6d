"""The proof: which runs it makes, its table and plots, and the command at a tiny scale."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest
from commands import flm

from flm_jax.cli import proof as proof_command
from flm_jax.configs import proof as proof_config
from flm_jax.data.synthetic import LANGUAGES
from flm_jax.errors import UserError
from flm_jax.lab import proof
from flm_jax.lab.proof import runs, tables, ways
from flm_jax.lab.proof.measuring import Measured, Point
from flm_jax.report import svg

CITY = Measured(
    "city_pairs",
    "valid",
    5,
    {
        Point("flm", "", 1): {"valid": 0.2},
        Point("flm", "", 8): {"valid": 0.9},
        Point("flm", "grid 4", 8): {"valid": 1.0},
        Point("fmlm", "", 1): {"valid": 0.8},
        Point("unigram sampler", "", 0): {"valid": 0.0},
    },
    16,
)


def found(*measured):
    made = tables.Tables()
    for one in measured:
        made.add(one)
    return made


def blocks(text):
    """The tables of a text, as lists of lines, by what stands over their first column."""
    return {
        block.splitlines()[0].split(" | ")[0].removeprefix("| "): block.splitlines()
        for block in text.split("\n\n")
        if block.startswith("|")
    }


def test_runs_come_after_those_they_start_from_and_only_once():
    assert proof.with_earlier(["second_stage", "fmlm"], "addition") == [
        "flm",
        "residual",
        "second_stage",
        "fmlm",
    ]
    assert proof.with_earlier(["mdlm", "duo"], "addition") == ["mdlm", "duo_curriculum", "duo"]
    assert proof.with_earlier(["any_order"], "addition") == ["flm_given", "any_order"]


def test_a_denoiser_of_puzzles_has_given_tokens_anyway():
    ordered = proof.with_earlier(["flm", "fmlm", "any_order"], "sudoku4")
    assert ordered == ["flm_given", "fmlm", "any_order"]


def test_the_table_is_the_mean_and_half_the_range_by_evaluations():
    row, no_model = {"valid": 0.4}, Point("unigram sampler", "", 0)  # which is there once
    again = dataclasses.replace(CITY, values={Point("flm", "", 1): row, no_model: {"valid": 0.0}})
    lines = blocks(found(CITY, again).text())["valid samples, by evaluations"]
    assert lines[0] == "| valid samples, by evaluations | 1 | 8 |"
    assert "| flm | 30.0 ± 10.0 % | 90.0 % |" in lines
    assert "| flm, grid 4 | – | 100.0 % |" in lines
    assert lines[-1] == "| unigram sampler (no evaluations) | 0.0 % | – |"


def test_the_section_says_how_many_texts_there_are():
    assert "5 tokens to write, 16 possible texts." in found(CITY).text()
    assert "possible" not in found(dataclasses.replace(CITY, possible=0)).text()
    shown = [tables.count(n) for n in (132, 10**6, 6_758_000_000_000_000_000_000)]
    assert shown == ["132", "1,000,000", "6.8e21"]


def test_languages_that_nobody_knows_by_heart_are_the_default():
    names = proof_command.COMMAND.options().languages
    assert names == ("addition3", "brackets32", "large_grammar")
    assert all(LANGUAGES[name]().size >= 10**6 for name in names)
    for name, row in proof_config.LANGUAGES.items():
        if row.data == "synthetic":
            language = LANGUAGES[name]()
            assert row.tokenizer == language.tokenizer
            assert row.length == language.longest + (3 if "grammar" in name else 2)


def test_distances_stand_beside_those_of_fresh_truth():
    row = {"valid": 0.5, "feature_distance": 0.2, "held_out": 0.1, "feature_distance_truth": 0.05}
    one = Measured("addition3", "valid", 14, {Point("flm", "", 1): row})
    made = blocks(found(one, one).text())
    title = "distance of features from the truth (of as many samples of the truth itself)"
    assert made[f"{title}, by evaluations"][2] == "| flm | 20.0 ± 0.0 % (5.0 %) |"
    assert "never trained on, of the valid, by evaluations" in made
    assert "(" not in made["valid samples, by evaluations"][2]


def test_one_text_again_and_again_is_seen_beside_its_validity():
    row = {"valid": 1.0, "total_variation": 0.9375, "coverage": 1 / 16, "log_likelihood": -2.8}
    unknown = {"valid": 0.25, "total_variation": None, "distinct": 0.5, "log_likelihood": -7.0}
    few = blocks(found(Measured("city_pairs", "valid", 5, {Point("lsd", "", 1): row})).text())
    many = blocks(found(Measured("grammar", "valid", 16, {Point("lsd", "", 1): unknown})).text())
    names = ("total variation from the truth", "texts that occur")
    assert [few[f"{name}, by evaluations"][2] for name in names] == [
        "| lsd | 93.8 % |",
        "| lsd | 6.2 % |",
    ]
    assert not any(name.startswith(names) for name in many)
    assert not any(name.startswith("log-likelihood") for name in few)
    assert many["log-likelihood of the valid, nats, by evaluations"][2] == "| lsd | -7.00 |"
    assert many["different texts among the valid, by evaluations"][2] == "| lsd | 50.0 % |"


def comparable(**changed):
    """Two methods at one task: (share, distinct-4) by method, way and evaluations."""
    values = {
        ("any_order", "", 1): (0.5, 0.9),
        ("any_order", "refined", 1): (0.6, 0.9),
        ("any_order", "", 2): (0.9, 0.9),
        ("mdlm", "", 4): (0.4, 0.9),
        ("mdlm", "by drawn confidence", 4): (0.95, 0.5),  # says the same thing again and again
        ("mdlm", "", 8): (1.0, 0.9),
        ("held-out data", "", 0): (1.0, 0.93),
    }
    rows = {Point(*key): {"valid": x, "distinct_4": y} for key, (x, y) in values.items()}
    return Measured("addition3", "valid", **{"open_tokens": 14, "values": rows} | changed)


def test_any_order_is_compared_at_equal_diversity_with_four_times_its_evaluations():
    lines = blocks(found(comparable()).text())["evaluations"]
    assert lines[2:] == [
        "| 1 against 4 | 60.0 % (refined) | 40.0 % (plain) | yes |",
        "| 2 against 8 | 90.0 % (plain) | 100.0 % (plain) | no |",
    ]


def test_nothing_against_nothing_is_no_success():
    nothing = {point: {**row, "valid": 0.0} for point, row in comparable().values.items()}
    lines = blocks(found(comparable(values=nothing)).text())["evaluations"]
    assert [line.rsplit(" | ", 1)[1] for line in lines[2:]] == ["– |", "– |"]


def test_it_is_compared_below_the_number_of_open_tokens_only():
    lines = blocks(found(comparable(open_tokens=8)).text())["evaluations"]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1 against 4"]
    assert "evaluations" not in blocks(found(comparable(open_tokens=4)).text())


def test_without_a_diversity_to_match_the_best_way_counts():
    values = {
        point: {"right": row["valid"]}
        for point, row in comparable().values.items()
        if point.evaluations
    }
    one = Measured("addition3, left side given", "right", 14, values)
    lines = blocks(found(one).text())["evaluations"]
    assert lines[2] == "| 1 against 4 | 60.0 % (refined) | 95.0 % (by drawn confidence) | no |"


def test_the_plot_has_a_curve_per_way_and_a_mark_per_number_of_evaluations():
    picture = ElementTree.fromstring(svg.draw(found(CITY).picture("city_pairs")))
    names = [element.tag.split("}")[1] for element in picture.iter()]
    assert names.count("polyline") == 3 and names.count("circle") == 4
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"flm", "fmlm", "flm, grid 4", "1", "8"} <= set(texts)
    lines = [e for e in picture.iter() if e.tag.endswith("polyline")]
    assert [bool(e.get("stroke-dasharray")) for e in lines] == [False, True, False]
    assert [e.get("stroke") == lines[0].get("stroke") for e in lines] == [True, True, False]


def made(folder, language, method, seed, scale=1.0, size="default"):
    earlier = proof.before(method, language)
    return runs.make_config(folder, language, method, earlier, seed, scale, size)


def test_students_start_from_the_denoiser_of_their_seed(tmp_path):
    config = made(tmp_path, "addition", "fmlm", 2)
    assert config.teacher == config.init_from == str(tmp_path / "addition_flm_2")
    assert config.seed == 2 and config.model.two_times
    config = made(tmp_path, "addition", "fmlm_self", 2)
    assert config.teacher == "" and config.init_from == str(tmp_path / "addition_flm_2")
    config = made(tmp_path, "addition", "second_stage", 2)
    assert config.teacher == str(tmp_path / "addition_residual_2")
    assert config.init_from == str(tmp_path / "addition_flm_2")
    config = made(tmp_path, "addition", "any_order", 2)
    assert config.teacher == "" and config.init_from == str(tmp_path / "addition_flm_given_2")
    config = made(tmp_path, "sudoku4", "fmlm", 2)
    assert config.teacher == config.init_from == str(tmp_path / "sudoku4_flm_given_2")
    assert config.loss.options["given"] == "uniform"


def test_duo_goes_on_from_its_curriculum(tmp_path):
    config = made(tmp_path, "addition", "duo", 2)
    assert config.init_from == str(tmp_path / "addition_duo_curriculum_2")
    assert config.teacher == "" and not config.model.two_times
    assert made(tmp_path, "addition", "duo_curriculum", 2).init_from == ""


def test_methods_have_one_budget(tmp_path):
    steps = {
        method: made(tmp_path, "addition", method, 1).train.steps for method in proof_config.METHODS
    }
    denoiser = steps.pop("flm")
    assert steps.pop("flm_given") == denoiser
    assert {steps.pop("mdlm"), steps.pop("ar")} == {denoiser + steps["fmlm"]}
    assert steps.pop("duo_curriculum") == denoiser
    assert len(set(steps.values())) == 1
    config = made(tmp_path, "addition", "flm", 1, 0.001)
    assert config.train.steps == 6 and config.optim.warmup_steps == 3


def test_a_large_flow_map_is_wider_and_sees_eight_times_the_samples(tmp_path):
    small = made(tmp_path, "city_pairs", "esd", 1)
    large = made(tmp_path, "city_pairs", "esd", 1, size="large")
    assert large.model.width == 2 * small.model.width
    assert samples(large) == 8 * samples(small) and large.teacher == small.teacher
    denoisers = [made(tmp_path, "city_pairs", "flm", 1, 1.0, size)
                 for size in ("default", "large")]  # fmt: skip
    assert samples(denoisers[1]) == 4 * samples(denoisers[0])


def samples(config):
    return config.train.steps * config.train.batch_size


@pytest.mark.parametrize(
    "stage", ["city_pairs", "city_pairs,gan", "city_pairs,flm,huge", "a,b,c,d"]
)
def test_an_unknown_stage_gets_a_sentence(stage):
    with pytest.raises(UserError, match=f"no stage '{stage}'; write LANGUAGE,METHOD"):
        proof_config.get_config(stage)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--languages=latin"], "--languages: 'latin' is unknown; use city_pairs"),
        (["--methods=gan"], "--methods: 'gan' is unknown; use flm"),
        (["--methods="], "--methods= must name at least one, and none twice"),
        (["--seeds=1,1"], "--seeds=1,1 must name at least one, and none twice"),
        (["--seeds=²"], "--seeds=² is not a list of whole numbers"),
        (["--seeds=4294967296"], "4294967296 in --seeds must be below 4294967296"),
        (["--scale=nan"], "--scale=nan is not a finite number"),
        (["--grid_power=0"], "--grid_power=0.0 must be greater than 0"),
        (["--size=huge"], "--size: 'huge' is unknown; use default, large"),
        (["--seeds=1,x"], "--seeds=1,x is not a list of whole numbers"),
    ],
)
def test_wrong_inputs_get_a_sentence(tmp_path, arguments, sentence):
    done = flm("proof", f"--workdir={tmp_path / 'p'}", *arguments)
    assert done.returncode == 2 and sentence in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "p").exists()


def test_no_more_evaluations_than_tokens_where_each_writes_one():
    way = ways.Way("by confidence", "ancestral_masked", in_turn=True)
    assert [*way.numbers(14, None)] == [1, 2, 4, 8, 16]
    assert [*way.numbers(34, None)] == [1, 2, 4, 8, 16, 32, 128]
    assert [*dataclasses.replace(way, in_turn=False).numbers(3, None)][-1] == 128
    assert [*ways.Way("", "autoregressive").numbers(14, 13)] == [13]
    round_each = ways.WAYS["any_order"][-1]
    assert [*round_each.numbers(14, None)] == []  # as many rounds as refined has
    assert [*round_each.numbers(34, None)] == [32, 128]


@pytest.mark.slow
def test_runs_are_trained_and_asked_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ways, "EVALUATIONS", (1, 4))

    def prove():
        proof.prove(
            tmp_path, ["addition"], ["any_order", "mdlm", "ar"], [1], scale=4e-4, num_samples=50
        )
        return (tmp_path / "proof.md").read_text()

    text = prove()
    free, asked = text.split("## addition, left side given")
    every = ["flm_given", "flm_given, grid 4", "flm_given, refined"]
    every += [way.replace("flm_given", "any_order") for way in every]
    every += ["mdlm", "mdlm, by confidence", "mdlm, by drawn confidence", "ar"]
    for part, title in ((free, "valid samples"), (asked, "right answers")):
        lines = blocks(part)[f"{title}, by evaluations"]
        assert lines[0].endswith("| 1 | 4 | 7 |")
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}
        assert [row for row in rows if "(no evaluations)" not in row] == every
        assert rows["flm_given, grid 4"].startswith("| flm_given, grid 4 | – |")
        assert rows["ar"].startswith("| ar | – | – |") and rows["ar"].count("%") == 1
    assert "against" not in asked  # three tokens
    pictures = {path.name for path in tmp_path.glob("*.svg")}
    assert pictures == {"addition.svg", "addition_left_side_given.svg"}

    capfd.readouterr()
    samples = tmp_path / "addition_mdlm_1/proof/texts_by_confidence_004.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 50 and rows[0]["options"] == {"order": "confidence"}
    samples.write_text(samples.read_text().replace('"sampler_steps": 4', '"sampler_steps": 3'))
    assert prove().partition("## Training")[0] == text.partition("## Training")[0]
    told = capfd.readouterr().err
    assert "compiling the training step" not in told
    assert told.count("compiling the sampler") <= 1  # of another origin: drawn again
    assert '"sampler_steps": 3' not in samples.read_text()


@pytest.mark.slow
def test_puzzles_are_asked_and_solved(tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "EVALUATIONS", (1, 32))
    made = {"scale": 3e-4, "grid_power": 1.0, "num_samples": 20}  # no second grid
    proof.prove(tmp_path, ["sudoku4"], ["flm", "any_order"], [1], **made)
    text = (tmp_path / "proof.md").read_text()
    assert "## sudoku4\n\n19 tokens to write." in text
    lines = blocks(text)["right answers, by evaluations"]
    names = ["flm_given", "flm_given, refined", "any_order", "any_order, refined"]
    names += ["any_order, a round each"]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == names
