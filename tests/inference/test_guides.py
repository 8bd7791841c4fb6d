"""Guides and rewards of a model: words and paths, what is refused, what it costs, the command."""

import json
import pickle

import numpy as np
import pytest
import tiny
from commands import call
from runs import finished as finished  # a fixture

import flm_jax
from flm_jax import FlowModel, experiment
from flm_jax.errors import UserError
from flm_jax.host import sharding
from flm_jax.tokenizers import TOKENIZERS

LENGTH = 12


def model(folder, seed=0, letters=" abc", loss="flow_matching", options=None, **changes):
    """A network of random weights over a few characters."""
    section = {"loss": {"name": loss, "options": options or {}}, "data__length": LENGTH}
    config = tiny.run_config(folder, **section | changes)
    tokenizer = TOKENIZERS["characters"]().build(lambda: [letters])
    made = experiment.Experiment(config, tokenizer.vocab_size)
    return FlowModel(made, tokenizer, tiny.params(made.model, seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("guides")


@pytest.fixture(scope="module")
def denoiser(folder):
    return model(folder, options={"given": "uniform"})


def last_is(tokens):
    def reward(ending):
        return ending.probability(tokens)[:, -1]

    return reward


def test_a_guide_by_name_or_model_changes_samples_for_two_evaluations(denoiser, folder):
    plain = denoiser.generate(8, 3)
    other = model(folder, seed=1, options={"given": "uniform"}, model__width=8)
    assert (plain.evaluations, plain.gradients) == (3.0, 0.0)
    for guide in ("dropout", other):
        idle = denoiser.generate(8, 3, guide=guide, guidance=1.0)
        np.testing.assert_array_equal(idle.tokens, plain.tokens)
        assert idle.evaluations == 3.0
        guided = denoiser.generate(8, 3, guide=guide, guidance=30.0)
        assert (guided.tokens != plain.tokens).any() and guided.evaluations == 6.0
    kept = denoiser.guided
    denoiser.generate(8, 3, guide=other, guidance=30.0)
    assert denoiser.guided is kept and len(kept.programs.kept) == 1 and kept.model is other
    copy = pickle.loads(pickle.dumps(denoiser))
    again = copy.generate(8, 3, guide=copy.guided.model, guidance=30.0)
    np.testing.assert_array_equal(again.tokens, guided.tokens)


@pytest.mark.slow
def test_samples_with_dropout_are_the_same_in_any_batch_and_on_any_devices(denoiser):
    knobs = {"guide": "dropout", "guidance": 20.0, "guide_dropout": 0.4}
    whole = denoiser.generate(8, 3, **knobs).tokens
    np.testing.assert_array_equal(denoiser.generate(8, 3, batch_size=2, **knobs).tokens, whole)
    mesh = sharding.make_mesh((8, 1, 1))
    params = sharding.place(denoiser.params, sharding.shardings(denoiser.params, mesh))
    on_eight = FlowModel(denoiser.experiment, denoiser.tokenizer, params, 0, mesh)
    np.testing.assert_array_equal(on_eight.generate(8, 3, **knobs).tokens, whole)
    less = denoiser.generate(8, 3, **knobs | {"guide_dropout": 0.01}).tokens
    assert (less != whole).any()


def test_another_model_guides_on_eight_devices(denoiser, folder):
    other = model(folder, seed=1, options={"given": "uniform"})
    knobs = {"guide": other, "guidance": 4.0}
    mesh = sharding.make_mesh((8, 1, 1))
    params = sharding.place(denoiser.params, sharding.shardings(denoiser.params, mesh))
    on_eight = FlowModel(denoiser.experiment, denoiser.tokenizer, params, 0, mesh)
    wanted = denoiser.generate(8, 3, **knobs).tokens
    np.testing.assert_array_equal(on_eight.generate(8, 3, **knobs).tokens, wanted)


def test_what_is_given_guides(denoiser):
    def texts(**knobs):
        return denoiser.generate(8, 3, prompt="abc a", **knobs)

    plain = texts()
    guided = texts(guide="nothing_given", guidance=9.0)
    assert guided.texts != plain.texts and guided.evaluations == 6.0
    assert all(text.startswith("abc a") for text in guided.texts)
    rounds = denoiser.generate(4, 8, sampler="refinement", guide="nothing_given", guidance=3.0)
    assert rounds.evaluations == 16.0


@pytest.mark.slow
def test_a_reward_is_reached_and_its_gradients_are_counted(denoiser):
    token = denoiser.tokenizer.encode("b")[0]
    shares = []
    for length in (0.5, 60.0):
        samples = denoiser.generate(32, 4, reward=last_is([token]), reward_length=length)
        shares.append((samples.tokens[:, -1] == token).mean())
        assert (samples.evaluations, samples.gradients) == (8.0, 4.0)
    assert shares[0] < shares[1]
    both = {"guide": "dropout", "guidance": 2.0, "reward_scale": 1.0}
    samples = denoiser.generate(4, 4, reward=last_is([token]), **both)
    assert (samples.evaluations, samples.gradients) == (12.0, 4.0)
    again = {"reward": last_is([token]), "reward_scale": 1.0, "steps": 3, "sampler": "euler"}
    assert denoiser.refine("abc ab", rounds=2, **again).gradients == 6.0


def refusal(model, **options) -> str:
    with pytest.raises(UserError) as error:
        model.generate(2, 2, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_makes_no_sense_is_one_sentence(denoiser, folder):
    def of(**changes):
        return model(folder, options={"given": "uniform"}, **changes)

    two = {"guidance": 2.0}
    assert refusal(denoiser, **two) == (
        "guidance=2 needs a guide; set guide to dropout, nothing_given, no_estimate or a checkpoint"
    )
    assert "no_estimate" in refusal(denoiser, guide="no_estimate", **two)
    assert "model.self_conditioning=False" in refusal(denoiser, guide="no_estimate", **two)
    nothing = {"guide": "nothing_given", **two}
    assert refusal(denoiser, **nothing).endswith(
        "but nothing is given; give a prompt or an infill text"
    )
    plain = model(folder)
    sentence = refusal(plain, **nothing, prompt="abc")
    assert "was not trained for given tokens" in sentence
    assert refusal(denoiser, guide=3, **two).startswith("guide=3 must be dropout, ")
    assert "is read as a path: there is no file or folder /no/such/run" in refusal(
        denoiser, guide="/no/such/run", **two
    )
    assert "another vocabulary (9 tokens, this model 8)" in refusal(
        denoiser, guide=of(letters=" abcd"), **two
    )
    assert "another vocabulary (8 tokens, this model 8)" in refusal(
        denoiser, guide=of(letters=" abd"), **two
    )
    assert "has the clock 'identity', this model 'decoding_accuracy'" in refusal(
        denoiser, guide=of(clock={"name": "identity"}), **two
    )
    assert "was not trained for given tokens (loss 'flow_matching'), and some are given" in refusal(
        denoiser, guide=plain, prompt="abc", **two
    )
    flow_map = of(model__two_times=True, sampler__name="flow_map")
    assert "is a denoiser, but the sampler FlowMap makes the jumps of a flow map" in refusal(
        flow_map, guide=denoiser, **two
    )
    assert refusal(denoiser, reward_scale=2.0) == (
        "reward_scale=2 is the strength of a reward, but there is none; give a function, "
        "model.generate(reward=...) in Python"
    )
    assert "has no effect; set for example reward_scale=1" in refusal(denoiser, reward=last_is([4]))
    assert "must be a function" in refusal(denoiser, reward="b", reward_scale=1.0)
    assert "leave one at 0" in refusal(
        denoiser, reward=last_is([4]), reward_scale=1.0, reward_length=1.0
    )


def test_a_baseline_cannot_guide_and_is_not_guided(denoiser, folder):
    kind = {"model__mask_token": True, "sampler__name": "ancestral_masked"}
    masked = model(folder, loss="masked_diffusion", **kind)
    sentence = refusal(denoiser, guide=masked, guidance=2.0)
    assert sentence == (
        "guide='another model' does not predict a text from a noised one (masked diffusion); give "
        "a denoiser or a flow map"
    )
    assert refusal(masked, guide="dropout", guidance=2.0).startswith(
        "guidance=2 has no effect on a sampler of tokens; leave it at 1 (guidance: scale w of "
    )


@pytest.mark.slow
def test_an_earlier_checkpoint_guides_from_the_command_line(finished, tmp_path, capsys):
    run, output = str(finished[1]), tmp_path / "samples.jsonl"
    words = ["generate", f"--checkpoint={run}", "--steps=2,3", "--num_samples=3"]
    assert call(*words, f"--guide={run}@4", "--guidance=2.5", f"--output={output}") == 0
    assert "--- 2 steps, 4.0 evaluations on average" in capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    made = flm_jax.load(run)
    earlier = flm_jax.load(run, step=4)
    wanted = made.generate(3, 2, guide=earlier, guidance=2.5)
    assert [row["text"] for row in rows[:3]] == wanted.texts
    assert call(*words, f"--guide={run}@5", "--guidance=2") == 2
    assert "is read as a path: " in capsys.readouterr().err
    assert call(*words, "--guidance=2") == 2
    assert "guidance=2 needs a guide" in capsys.readouterr().err


@pytest.mark.slow
def test_the_scale_can_be_swept_and_stored_samples_say_it(finished, tmp_path):
    output = tmp_path / "results.json"
    words = ["evaluate", f"--checkpoint={finished[1]}", "--steps=2", "--num_samples=8"]
    words += ["--guide=dropout", "--sweep=guidance=1,3", f"--output={output}"]
    assert call(*words) == 0
    folder = tmp_path / "results_samples"
    origins = [json.loads(path.read_text().splitlines()[0]) for path in sorted(folder.iterdir())]
    assert len(origins) == 2
    shown = [json.dumps(origin) for origin in origins]
    assert '"guide": "dropout"' in shown[0] and '"guidance": 3' in shown[1]
    assert '"guidance"' not in shown[0]
