"""The benchmark: what it counts, what it needs, what it prints, and what it refuses."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import flm

from flm_jax import config as config_lib
from flm_jax.errors import UserError
from flm_jax.host import bfloat16
from flm_jax.lab.benchmark import measure
from flm_jax.lab.benchmark.asked import Asked
from flm_jax.lab.benchmark.vocabulary import vocabulary_size
from flm_jax.losses import LOSSES
from flm_jax.samplers import SAMPLERS
from flm_jax.training import cost

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = [
    "--config=configs/bench_cpu.py", "--batch=2", "--length=8", "--vocab=80", "--repeats=1",
    "--config.model.width=16", "--config.model.heads=2", "--config.model.depth=1",
    "--config.model.cond_dim=8",
]  # fmt: skip


def command(*words, prefix=""):
    if not prefix:
        return flm("benchmark", *words)
    code = f"{prefix}\nfrom flm_jax import cli\ncli.main()"
    return subprocess.run(
        [sys.executable, "-c", code, "benchmark", *words],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


def tiny_plan(loss="flow_matching", space="projected", mode="train", steps=3):
    config = config_lib.load(
        str(ROOT / "configs/bench_cpu.py"),
        {
            "model.width": 16, "model.heads": 2, "model.depth": 1, "model.cond_dim": 8,
            "train.batch_size": 8, "data.length": 4, "loss.name": loss, "space": space,
            "sampler.steps": (steps,), "mesh.data": -1,
            "model.two_times": loss in ("psd", "residual", "second_stage"),
            "teacher": "random" if loss in ("psd", "residual", "second_stage") else "",
        },
    )  # fmt: skip
    config_lib.validate(config, {"loss": LOSSES, "sampler": SAMPLERS})
    return measure.Plan(mode, config, 80, steps, 1)


def test_operations_of_the_blocks_are_twice_their_matrix_entries():
    plan = tiny_plan()
    flops = cost.evaluation_flops(plan.config.model, 80, 4)
    experiment = measure.Experiment(plan.config, 80)
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    kernels = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(params["blocks"])[0]
        if "kernel" in str(path) and "modulation" not in str(path)
    }
    assert flops["blocks"] == 2 * sum(np.prod(shape) for shape in kernels.values())
    assert flops["head"] == 2 * 16 * 80
    assert flops["attention"] == 2 * 2 * 4 * 16  # scores and their mixture, over 4 tokens


def test_a_training_step_is_three_forward_passes(monkeypatch):
    monkeypatch.setattr(measure, "RATE_SECONDS", 0.01)
    found = measure.measure(tiny_plan())
    forward = sum(cost.evaluation_flops(tiny_plan().config.model, 80, 4).values())
    assert found["model_flops"] == pytest.approx(3 * 32 * forward)
    assert found["tokens_per_second"] == pytest.approx(32 / found["ms_per_step"] * 1e3)
    assert found["peak_memory_bytes"] > 0 and found["devices"] == jax.device_count()


@pytest.mark.slow
def test_networks_without_gradient_count_once(monkeypatch):
    """PSD: the student on all rows three times; targets on 4 diagonal and twice 4 other rows."""
    monkeypatch.setattr(measure, "RATE_SECONDS", 0.01)
    found = measure.measure(tiny_plan("psd"))
    forward = sum(cost.evaluation_flops(tiny_plan().config.model, 80, 4).values())
    assert found["model_flops"] == pytest.approx((3 * 8 + 4 + 2 * 4) * 4 * forward)


@pytest.mark.parametrize("steps", [1, 3])
def test_sampling_counts_every_step(steps, monkeypatch):
    monkeypatch.setattr(measure, "RATE_SECONDS", 0.01)
    found = measure.measure(tiny_plan(mode="sample", steps=steps))
    forward = sum(cost.evaluation_flops(tiny_plan().config.model, 80, 4).values())
    assert found["model_flops"] == pytest.approx(steps * 32 * forward)


def tiny_asked(**asked) -> Asked:
    return Asked(**{"batch": 8, "length": (5,), "vocab": 80, "sampling_steps": 2, **asked})


def tiny_config() -> config_lib.Config:
    small = {"model.width": 16, "model.heads": 2, "model.depth": 1, "model.cond_dim": 8}
    return config_lib.load(str(ROOT / "configs/bench_cpu.py"), small | {"mesh.data": -1})


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_measured_with_the_network_it_is_made_for(name):
    plan = tiny_asked(sampler=name).plan(tiny_config(), "sample", "projected")
    assert plan.sampling_steps == (4 if name == "autoregressive" else 2)
    prepared = measure.prepare(plan)
    prepared.run()
    needs = SAMPLERS[name]().needs
    found = measure._numbers(plan, prepared.experiment, prepared.calls, [1.0], 0.0, 0, 1.0)
    forward = sum(cost.evaluation_flops(plan.config.model, 80, 5).values())
    tokens = 8 * (1 if needs.causal else 5)
    assert found["model_flops"] == (1 + needs.teacher) * 2 * tokens * forward * (1 + needs.causal)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gets_the_network_it_is_made_for(name):
    """In one space of a config whose sampler is for another kind of network."""
    plan = tiny_asked(loss=name).plan(tiny_config(), "train", "onehot")
    needs, model = LOSSES[name]().needs, plan.config.model
    assert (model.two_times, model.causal, model.mask_token) == (
        needs.two_times, needs.causal, needs.mask_token
    )  # fmt: skip
    assert bool(plan.config.teacher) == needs.named_teacher
    if name in ("autoregressive", "sdtt"):  # the second one keeps a network in its state
        measure.prepare(plan).run()


def test_a_width_keeps_the_size_of_the_heads():
    model = tiny_asked(width=48).plan(tiny_config(), "train", "projected").config.model
    assert (model.width, model.heads) == (48, 6)
    with pytest.raises(UserError, match="model.heads=2 gives heads of odd size 15"):
        tiny_asked(width=30).plan(tiny_config(), "train", "projected")


def test_a_type_that_is_open_is_decided_where_it_is_measured(monkeypatch):
    monkeypatch.setattr(bfloat16, "speedup", lambda: 3.0)
    monkeypatch.setattr(measure, "RATE_SECONDS", 0.01)
    plan = tiny_plan(mode="sample", steps=1)
    model = dataclasses.replace(plan.config.model, dtype="auto")
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, model=model))
    assert measure.measure(plan)["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("name", "options", "given", "size"),
    [
        ("gpt2", {}, 0, 50258),
        ("gpt2", {"pad": False}, 0, 50257),
        ("gpt2", {"pad": False}, 80, 80),
        ("bert-base-uncased", {}, 0, 30522),
        ("byte_bpe", {"vocab_size": 300}, 0, 300),
        ("byte_bpe", {"vocab_size": 300}, 80, 80),
        ("characters", {}, 0, None),
    ],
)
def test_the_size_of_a_vocabulary_without_its_text(name, options, given, size):
    tokenizer = config_lib.TokenizerConfig(name=name, options=options)
    config = dataclasses.replace(config_lib.Config(), tokenizer=tokenizer)
    if size is None:
        with pytest.raises(UserError, match="'characters' is not known .* give --vocab=SIZE"):
            vocabulary_size(config, given)
    else:
        assert vocabulary_size(config, given) == size


@pytest.mark.slow
def test_it_runs_without_grain_orbax_and_tensorboard():
    names = ("grain", "orbax", "orbax.checkpoint", "tensorboardX")
    prefix = f"import sys\nsys.modules.update({{name: None for name in {names!r}}})"
    done = command("train", *TINY, "--space=onehot", "--json", prefix=prefix)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["head_chunk"] == 16


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_both_spaces_and_their_ratios(mode):
    done = command(mode, *TINY, "--space", "both", "--sampling_steps=2", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["projected", "onehot", "speed_ratio", "memory_ratio"]
    for ratio, key in (
        ("speed_ratio", "tokens_per_second"),
        ("memory_ratio", "peak_memory_bytes"),
    ):
        assert found[ratio] == pytest.approx(found["projected"][key] / found["onehot"][key])
    assert "projected / onehot" in done.stdout


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([*TINY], "say what to measure, train, sample or data (or sweep, table or"),
        (["fly", *TINY], "WHAT=fly is not known; use train or sample or sweep or"),
        (["sweep", *TINY], "say where with --output=FOLDER"),
        (
            ["sweep", *TINY, "--output=x", "--vary_vocab=80,many"],
            "--vary_vocab=80,many is not a list of whole numbers",
        ),
        (["table", *TINY, "--output=x", "--shapes=8"], "'8' is not LENGTHxVOCABULARY"),
        (["train"], "--config=FILE is missing"),
        (["train", *TINY, "--loss=gan"], "unknown loss 'gan'"),
        (["train", *TINY, "--sampler=euler"], "--sampler=euler has no part in what train"),
        (["train", *TINY, "--space=dense"], "--space=dense"),
        (["train", "--config=configs/proof.py:addition,flm"], "give --vocab=SIZE"),
        (["train", *TINY, "--config.model.heads=3"], "model.heads=3 does not divide"),
    ],
)
def test_wrong_words_get_a_sentence(words, sentence):
    done = command(*words)
    assert done.returncode == 2 and sentence in done.stderr
    assert "Traceback" not in done.stderr
