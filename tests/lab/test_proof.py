"""The proof: which runs it makes, its table and plots, and the command at a tiny scale."""

from xml.etree import ElementTree

import pytest
from commands import flm

from flm_jax.cli import proof as proof_command
from flm_jax.configs import proof as proof_config
from flm_jax.data.synthetic import LANGUAGES
from flm_jax.errors import UserError
from flm_jax.lab import proof

FOUND = {
    ("city_pairs", "flm, 1 step"): [0.2, 0.4],
    ("city_pairs", "flm, 8 steps"): [0.9, 1.0],
    ("city_pairs", "flm, grid 4, 8 steps"): [1.0, 1.0],
    ("city_pairs", "fmlm, 1 step"): [0.8, 0.8],
    ("addition", "flm, 8 steps"): [0.5],
    ("city_pairs", "unigram sampler"): [0.0, 0.0],
}


def test_runs_come_after_those_they_start_from_and_only_once():
    assert proof.with_earlier(["second_stage", "fmlm"]) == [
        "flm",
        "residual",
        "second_stage",
        "fmlm",
    ]
    assert proof.with_earlier(["mdlm", "duo"]) == ["mdlm", "duo_curriculum", "duo"]


def test_the_table_is_the_mean_and_half_the_range():
    lines = proof.table(FOUND).splitlines()
    assert lines[0] == "| valid samples | city_pairs | addition |"
    assert "| flm, 1 step | 30.0 ± 10.0 % | – |" in lines
    assert "| flm, 8 steps | 95.0 ± 5.0 % | 50.0 % |" in lines


def test_the_table_says_how_many_texts_there_are():
    sizes = {name: proof.possible_texts(name) for name in ("city_pairs", "addition")}
    assert sizes == {"city_pairs": 16, "addition": 100}
    lines = proof.table(FOUND, sizes=sizes).splitlines()
    assert lines[2] == "| possible texts | 16 | 100 |"
    assert "possible" not in proof.report({proof.COLUMN: FOUND} | dict.fromkeys(proof.MORE, {}))
    shown = [proof.count(n) for n in (132, 10**6, 6_758_000_000_000_000_000_000)]
    assert shown == ["132", "1,000,000", "6.8e21"]


def test_languages_that_nobody_knows_by_heart_are_the_default():
    names = proof_command.COMMAND.options().languages
    assert names == ("addition3", "brackets32", "large_grammar")
    assert all(proof.possible_texts(name) >= 10**6 for name in names)
    for name, (length, _, tokenizer, *_) in proof_config.LANGUAGES.items():
        language = LANGUAGES[name]()
        assert tokenizer == language.tokenizer
        assert length == language.longest + (3 if "grammar" in name else 2)


def test_distances_stand_beside_those_of_fresh_truth():
    row: dict[str, float | None] = {"valid": 0.5, "feature_distance": 0.2, "held_out": 0.1}
    row["feature_distance_truth"] = 0.05
    text = proof.report(proof.gather([("addition3", {"flm, 1 step": row})] * 2))
    blocks = text.split("\n\n")
    assert blocks[1].startswith("| distance of features from the truth (of as many samples of the")
    assert "| flm, 1 step | 20.0 ± 0.0 % (5.0 %) |" in blocks[1]
    assert blocks[2].startswith("| never trained on, of the valid | addition3 |")
    assert "(" not in blocks[0]


def test_one_text_again_and_again_is_seen_beside_its_validity():
    row = {"valid": 1.0, "total_variation": 0.9375, "coverage": 1 / 16, "log_likelihood": -2.8}
    unknown = {"valid": 0.25, "total_variation": None, "distinct": 0.5, "log_likelihood": -7.0}
    every = proof.gather(
        [
            ("city_pairs", {"lsd, 1 step": row}),
            ("city_pairs", {"lsd, 1 step": row | {"valid": 0.5}}),
            ("grammar", {"lsd, 1 step": unknown}),
        ]
    )
    blocks = [block.splitlines() for block in proof.report(every).split("\n\n")]
    assert [lines[0].split(" | ")[0] for lines in blocks] == [
        "| valid samples",
        "| total variation from the truth",
        "| texts that occur",
        "| different texts among the valid",
        "| log-likelihood of the valid, nats",
    ]
    rows = [lines[2].split(" | ")[1:] for lines in blocks]
    assert rows == [
        ["75.0 ± 25.0 %", "25.0 % |"],
        ["93.8 ± 0.0 % |"],
        ["6.2 ± 0.0 % |"],
        ["50.0 % |"],
        ["-7.00 |"],
    ]
    assert "texts that occur" not in proof.report(proof.gather([("grammar", {"a": unknown})]))


def test_the_plot_has_a_curve_per_method_and_a_mark_per_number_of_steps():
    picture = ElementTree.fromstring(proof.plot(FOUND, "city_pairs"))
    names = [element.tag.split("}")[1] for element in picture.iter()]
    assert names.count("polyline") == 3 and names.count("circle") == 4
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"flm", "fmlm", "grid 4", "1", "8"} <= set(texts)
    assert "flm, grid 4" not in texts  # the same colour, dashed
    dashes = [e.get("stroke-dasharray") for e in picture.iter() if e.tag.endswith("polyline")]
    assert [bool(d) for d in dashes] == [False, True, False]


def test_students_start_from_the_denoiser_of_their_seed(tmp_path):
    config = proof.make_config(tmp_path, "addition", "fmlm", 2)
    assert config.teacher == config.init_from == str(tmp_path / "addition_flm_2")
    assert config.seed == 2 and config.model.two_times
    config = proof.make_config(tmp_path, "addition", "fmlm_self", 2)
    assert config.teacher == "" and config.init_from == str(tmp_path / "addition_flm_2")
    config = proof.make_config(tmp_path, "addition", "second_stage", 2)
    assert config.teacher == str(tmp_path / "addition_residual_2")
    assert config.init_from == str(tmp_path / "addition_flm_2")


def test_duo_goes_on_from_its_curriculum(tmp_path):
    config = proof.make_config(tmp_path, "addition", "duo", 2)
    assert config.init_from == str(tmp_path / "addition_duo_curriculum_2")
    assert config.teacher == "" and not config.model.two_times
    assert proof.make_config(tmp_path, "addition", "duo_curriculum", 2).init_from == ""


def test_methods_have_one_budget(tmp_path):
    steps = {
        method: proof.make_config(tmp_path, "addition", method, 1).train.steps
        for method in proof_config.METHODS
    }
    denoiser = steps.pop("flm")
    assert {steps.pop("mdlm"), steps.pop("ar")} == {denoiser + steps["fmlm"]}
    assert steps.pop("duo_curriculum") == denoiser
    assert len(set(steps.values())) == 1
    config = proof.make_config(tmp_path, "addition", "flm", 1, 0.001)
    assert config.train.steps == 6 and config.optim.warmup_steps == 3


def test_a_large_flow_map_is_wider_and_sees_eight_times_the_samples(tmp_path):
    small = proof.make_config(tmp_path, "city_pairs", "esd", 1)
    large = proof.make_config(tmp_path, "city_pairs", "esd", 1, size="large")
    assert large.model.width == 2 * small.model.width
    assert samples(large) == 8 * samples(small) and large.teacher == small.teacher
    denoisers = [proof.make_config(tmp_path, "city_pairs", "flm", 1, 1.0, size)
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


@pytest.mark.slow
def test_the_command_trains_tables_and_does_not_train_again(tmp_path):
    arguments = [f"--workdir={tmp_path}", "--languages=city_pairs", "--methods=mdlm,flm"]
    arguments += ["--seeds=1", "--scale=0.0004"]
    done = flm("proof", *arguments)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "proof.md").read_text()
    assert "| mdlm, 1 step |" in text and "| mdlm, 8 steps |" in text
    assert "| flm, 8 steps |" in text and "| flm, grid 4, 8 steps |" in text
    assert "grid 4, 1 step |" not in text and "mdlm, grid" not in text
    again = flm("proof", *arguments)
    assert again.returncode == 0 and "compiling the training step" not in again.stderr
    assert "the samples of 8 steps are those of" in again.stderr
    samples = tmp_path / "city_pairs_flm_1/grid_4/steps_00008.jsonl"
    samples.write_text(samples.read_text().replace('"seed": 0', '"seed": 7'))  # of another origin
    assert flm("proof", *arguments).returncode == 0
    assert '"seed": 7' not in samples.read_text()
    assert (tmp_path / "proof.md").read_text() == text
