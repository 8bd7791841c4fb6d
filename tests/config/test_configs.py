"""The config files: stages, official hyperparameters, docstrings, and two stages for real."""

import ast
import pathlib
import re

import pytest
import tiny
from config_changes import sentence

from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.checkpoint import Checkpoints
from flm_jax.configs import common
from flm_jax.errors import UserError
from flm_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
PUBLISHED = ("lm1b", "owt", "text8", "wikitext", "tinystories", "ptb")
WITH_SMALL = ("text8", "wikitext", "tinystories")
STAGED = (*PUBLISHED, "quickstart", "python_prose", "text_files")
LOSSES = {
    "pretrain": "flow_matching",
    "distill": "psd",
    "residual": "residual",
    "second_stage": "second_stage",
    "any_order": "any_order",
    "any_order_denoiser": "any_order",
    "mdlm": "masked_diffusion",
    "duo": "uniform_diffusion",
    "ar": "autoregressive",
    "sdtt": "sdtt",
    "dcd": "dcd",
}
FROM_SCRATCH = ("pretrain", *common.BASELINES, *common.ANY_ORDER)
ONE_TIME = ("pretrain", *common.BASELINES, *common.SELF_DISTILLED)


def load(name, stage="", **changes):
    path = f"configs/{name}.py" + (f":{stage}" if stage else "")
    return config_lib.load(path, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.mark.parametrize("stage", common.STAGES)
@pytest.mark.parametrize("name", STAGED)
def test_every_config_has_every_stage(name, stage):
    scratch = stage in FROM_SCRATCH
    config = load(name, stage) if scratch else load(name, stage, teacher="somewhere")
    config_lib.validate(config, experiment.tables())
    assert (config.stage, config.loss.name) == (stage, LOSSES[stage])
    assert config.model.two_times == (stage not in ONE_TIME)
    assert config.clock.name == ("identity" if "any_order" in stage else "decoding_accuracy")
    assert config.init_from == ("" if scratch else "teacher")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        *((name, "") for name in STAGED),
        *((name, ",small") for name in (*WITH_SMALL, "python_prose", "text_files")),
        ("text_files", ",characters"),
    ],
)
def test_a_baseline_is_one_word(name, words):
    """Its network, sampler and steps fit, and all else is that of the denoiser beside it."""
    denoiser = config_lib.to_dict(load(name, "pretrain" + words))
    for stage in common.BASELINES:
        config = load(name, stage + words)
        config_lib.validate(config, experiment.tables())
        assert (config.loss.name, config.sampler.name) == common.BASELINES[stage]
        if stage == "ar":  # one evaluation for every token after the first
            assert config.sampler.steps == (config.data.length - 1,)
        tree = config_lib.to_dict(config)
        for section in ("data", "tokenizer", "optim", "train"):
            assert tree[section] == denoiser[section]
        assert tree["model"] == denoiser["model"] | {
            "mask_token": stage == "mdlm",
            "causal": stage == "ar",
        }


@pytest.mark.parametrize("stage", common.STAGES)
@pytest.mark.parametrize("name", [*PUBLISHED, "text_files", "python_prose"])
def test_our_own_recipe_is_one_word(name, stage):
    """It changes how the network learns and writes, not what it learns from."""
    teacher = {} if stage in FROM_SCRATCH else {"teacher": "somewhere"}
    fast = load(name, f"{stage},fast", **teacher)
    config_lib.validate(fast, experiment.tables())
    assert fast.optim.name == "muon"  # all have large batches
    given = fast.loss.options.get("given", "")
    assert (given == "uniform") == (fast.loss.name in ("flow_matching", "psd"))
    early = fast.loss.options.get("tau_centre", 0.0) < 0.0  # rounds begin at tau = 0
    assert early == (fast.loss.name == "flow_matching")
    rounds = stage in ("pretrain", "distill", *common.ANY_ORDER)
    assert (fast.sampler.name == "refinement") == rounds
    own, official = config_lib.to_dict(fast), config_lib.to_dict(load(name, stage, **teacher))
    for section in ("data", "tokenizer", "model", "train", "clock"):
        assert own[section] == official[section]


def test_small_stages_have_our_own_recipe_without_muon():
    for name in WITH_SMALL:
        config = load(name, "small")
        assert config.optim.name == "adamw"
        assert config.loss.options["given"] == "uniform" and config.sampler.name == "refinement"


def test_a_flow_map_without_a_teacher_is_told_its_flag():
    for stage in ("distill", "residual", "second_stage", *common.SELF_DISTILLED):
        told = sentence(config_lib.validate, load("text_files", stage), experiment.tables())
        assert re.fullmatch("loss .* needs a teacher; give --config.teacher=WORKDIR, .*", told)


@pytest.mark.parametrize("name", PUBLISHED)
def test_stages_follow_each_other(name):
    for suffix in ("", ",small")[: 1 + (name in WITH_SMALL)]:
        base = f"runs/{name}{suffix.replace(',', '_')}"
        assert load(name, "pretrain" + suffix) == load(name, suffix[1:])
        for stage in ("distill", "residual"):
            assert load(name, stage + suffix).teacher == base
        for stage, before in (("sdtt", "mdlm"), ("dcd", "duo")):
            assert load(name, stage + suffix).teacher == f"{base}_{before}"
        assert load(name, "second_stage" + suffix).teacher == f"{base}_residual"
        sections = [load(name, stage + suffix) for stage in common.STAGES]
        assert len({(str(c.data), str(c.tokenizer), c.model.width) for c in sections}) == 1


def test_the_official_hyperparameters():
    for name, length, gamma in (("lm1b", 128, 0.8), ("owt", 1024, 1.0)):
        stages = {stage: load(name, stage) for stage in common.STAGES}
        for stage, config in stages.items():
            model, optim = config.model, config.optim
            assert (model.width, model.depth, model.heads, model.cond_dim) == (768, 12, 12, 128)
            assert (model.dropout, model.attention_cap, model.logit_cap) == (0.1, 50.0, 30.0)
            assert model.dtype == "bfloat16" and config.data.length == length
            rate, warmup = (6e-5, 500) if stage == "dcd" else (3e-4, 2500)
            assert (optim.learning_rate, optim.beta1, optim.eps) == (rate, 0.9, 1e-8)
            assert optim.beta2 == (0.95 if stage == "distill" else 0.999)
            assert (optim.warmup_steps, optim.schedule, optim.clip_norm) == (
                warmup, "constant", 1.0
            )  # fmt: skip
            assert (optim.weight_decay, optim.ema_decay, config.seed) == (0.0, 0.9999, 1)
            small = name == "owt" and stage in ("distill", "residual")
            small = small or stage in common.SELF_DISTILLED
            assert config.train.batch_size == (128 if small else 512)
            steps = {"sdtt": 80_000, "dcd": 50_000}.get(stage, 1_000_000)
            assert config.train.steps == steps and config.data.drop_remainder_every == 0
            assert model.loss_weighting == (stage == "residual")
            assert bool(config.teacher) == (stage not in FROM_SCRATCH)
        for stage in ("distill", "second_stage"):
            assert stages[stage].sampler.gamma == gamma
        sdtt, dcd = (experiment.Experiment(stages[stage], 8).loss for stage in ("sdtt", "dcd"))
        assert (sdtt.every, sdtt.rounds, sdtt.first_steps, sdtt.teacher_steps) == (
            10_000, 8, 1024, 2
        )  # fmt: skip
        assert (dcd.every, dcd.rounds, dcd.first_steps) == (10_000, 5, 512)
        loss = experiment.Experiment(stages["distill"], 8).loss
        assert (loss.diagonal_fraction, loss.boundary_fraction) == (0.5, 1 / 32)
        assert experiment.Experiment(stages["residual"], 8).loss.boundary_fraction == 1 / 64
        assert experiment.Experiment(stages["second_stage"], 8).loss.boundary_fraction == 1 / 128
    assert load("lm1b").tokenizer.name == "bert-base-uncased"
    assert load("owt").tokenizer.name == "gpt2" and load("owt").tokenizer.options["pad"]
    assert load("owt").data.options["valid_documents"] == 100_000
    assert load("text8").data.packing == "one_per_row" and load("text8").data.length == 258


@pytest.mark.parametrize("name", PUBLISHED)
def test_docstrings_say_how_where_and_what_for(name):
    text = ast.get_docstring(ast.parse((ROOT / f"configs/{name}.py").read_text()))
    for word in ("Command:", "Hardware:", "Time:", "Published:", "--workdir", ":distill"):
        assert word in text, word
    for line in text.splitlines():  # the commands name files and workdirs that exist or follow
        if "--config=" in line:
            path = line.partition("--config=")[2].split()[0].partition(":")[0].rstrip(",")
            assert (ROOT / path).is_file() or not path.startswith("configs/"), line
    assert "runs/" + name in text


@pytest.mark.parametrize(
    "stage", ["distil", "pretrain,tiny", "pretrain,distill", "small,pretrain,x", "Small"]
)
@pytest.mark.parametrize("name", WITH_SMALL)
def test_stages_that_there_are_not(name, stage):
    with pytest.raises(UserError, match="this config has no stage .*second_stage"):
        load(name, stage)


def test_words_of_a_stage():
    assert common.split_stage("distill,small", "small") == ("distill", {"small"})
    assert common.split_stage("small,distill", "small") == ("distill", {"small"})
    assert common.split_stage("small", "small") == ("pretrain", {"small"})
    assert common.split_stage("", "small") == ("pretrain", set())
    with pytest.raises(UserError, match="no stage 'a,b'"):
        common.split_stage("a,b")
    with pytest.raises(UserError, match="no stage 'smal'; .* and after a comma small"):
        common.split_stage("smal", "small")


def tiny_changes(folder):
    """What makes a stage of text_files.py an experiment of seconds."""
    same = tiny.run_config(folder)
    plain = config_lib.to_dict(same)
    keys = ("data", "tokenizer", "model", "optim", "train")
    changes = {f"{s}.{k}": v for s in keys for k, v in plain[s].items()}
    of_stages = ("two_times", "loss_weighting", "mask_token", "causal")
    for key in (*(f"model.{knob}" for knob in of_stages), "data.packing"):
        changes.pop(key)
    changes |= {"train.steps": 2, "sampler.num_samples": 4, "sampler.batch_size": 8}
    return changes | {"train.eval_every": 0, "train.sample_every": 0, "evals": ()}


@pytest.mark.slow
def test_the_two_stages_of_a_config_for_real(tmp_path):
    """text_files.py: pretrain, residual, second_stage, each from the run before."""
    changes = tiny_changes(tmp_path) | {"sampler.steps": (1,)}
    teacher = ""
    for stage in ("pretrain", "residual", "second_stage"):
        config = config_lib.load(f"configs/text_files.py:{stage}", {**changes, "teacher": teacher})
        config_lib.validate(config, experiment.tables())
        teacher = str(tmp_path / stage)
        assert loop.train(config, pathlib.Path(teacher)) == 0
        assert Checkpoints(tmp_path / stage / "checkpoints").steps() == [2]


@pytest.mark.slow
@pytest.mark.parametrize("stage", common.BASELINES)
def test_a_baseline_of_a_config_for_real(tmp_path, stage):
    changes = tiny_changes(tmp_path)
    steps = (changes["data.length"] - 1,) if stage == "ar" else (2,)
    config = config_lib.load(f"configs/text_files.py:{stage}", changes | {"sampler.steps": steps})
    config_lib.validate(config, experiment.tables())
    assert loop.train(config, tmp_path / stage) == 0
    assert Checkpoints(tmp_path / stage / "checkpoints").steps() == [2]
    assert (tmp_path / stage / "report.html").is_file()
