"""Texts from a finished run: the command line, `flm_jax.load`, and what each knob does."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call, flm
from runs import finished as finished  # a fixture

import flm_jax
from flm_jax import FlowModel
from flm_jax import config as config_lib
from flm_jax.cli.streams import NobodyReads
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.host import sharding


@pytest.fixture(scope="session")
def model(finished):
    return flm_jax.load(finished[1])


def generate(*words: str) -> int:
    return call("generate", *words)


def test_the_command_writes_texts_and_a_file(finished, model, tmp_path, capsys):
    output = tmp_path / "samples.jsonl"
    arguments = [f"--checkpoint={finished[1]}", "--steps=1,3", "--num_samples=3", "--seed=5"]
    assert generate(*arguments, f"--output={output}") == 0
    printed = capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["sampler_steps"], row["index"]) for row in rows] == [
        (1, 0), (1, 1), (1, 2), (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    assert {row["seed"] for row in rows} == {5}
    for row in rows:
        assert len(row["tokens"]) == 12
        assert model.text(np.asarray(row["tokens"])) == row["text"]
        assert " | ".join(row["text"].splitlines()) in printed
    assert "--- 1 step," in printed and "--- 3 steps," in printed
    assert f"wrote 6 samples to {output}" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["samples.jsonl"]
    before = output.read_bytes()
    assert generate(*arguments, f"--output={output}") == 0
    assert output.read_bytes() == before
    assert rows == [row for steps in (1, 3) for row in model.generate(3, steps, seed=5).rows()]


class Unreadable(io.StringIO):
    """Standard output whose reader has gone."""

    def write(self, text):
        raise NobodyReads


def test_samples_are_saved_before_they_are_shown(finished, tmp_path, monkeypatch):
    output = tmp_path / "samples.jsonl"
    arguments = [f"--checkpoint={finished[1]}", "--steps=1,3", "--num_samples=2"]
    monkeypatch.setattr(sys, "stdout", Unreadable())
    assert generate(*arguments, f"--output={output}") == 141
    assert len(output.read_text().splitlines()) == 4


@pytest.mark.parametrize("fails", ["disk", "Ctrl-C"])
def test_samples_that_cannot_be_saved_are_shown(finished, tmp_path, monkeypatch, capsys, fails):
    def full(*_):
        raise OSError(28, "No space left on device")

    def interrupted(self, steps, **options):
        if steps == 3:
            raise KeyboardInterrupt
        return draw(self, steps=steps, **options)

    draw = flm_jax.FlowModel.generate
    if fails == "disk":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr(flm_jax.FlowModel, "generate", interrupted)
    output = tmp_path / "samples.jsonl"
    output.write_text("older")
    arguments = [f"--checkpoint={finished[1]}", "--steps=1,3", "--num_samples=2"]
    assert generate(*arguments, f"--output={output}") == (2 if fails == "disk" else 130)
    out, err = capsys.readouterr()
    assert "--- 1 step," in out and ("--- 3 steps," in out) == (fails == "disk")
    assert len(out.splitlines()) == (6 if fails == "disk" else 3) and "wrote" not in out
    assert ("cannot write" if fails == "disk" else "interrupted") in err
    assert output.read_text() == "older"


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--steps=0"], "0 in --steps must be at least 1"),
        (["--steps=abc"], "--steps=abc is not a list of whole numbers such as 1,8,32"),
        (["--steps=1,,8"], "--steps=1,,8 is not a list"),
        (["--steps="], "--steps= is not a list"),
        (["--num_samples=0"], "num_samples=0 must be at least 1"),
        (["--num_samples=many"], "--num_samples=many is not a whole number"),
        (["--batch_size=0"], "batch_size=0 must be at least 1"),
        (["--top_p=2"], "top_p=2.0 must be at most 1"),
        (["--top_p=0"], "top_p=0.0 must be greater than 0"),
        (["--temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["--temperature=nan"], "--temperature=nan is not a finite number"),
        (["--denoiser_temperature=0"], "denoiser_temperature=0.0 must be greater than 0"),
        (["--prior_scale=-2"], "prior_scale=-2.0 must be greater than 0"),
        (["--grid_power=0"], "grid_power=0.0 must be greater than 0"),
        (["--grid_power=inf"], "--grid_power=inf is not a finite number"),
        (["--seed=-1"], "seed=-1 must be at least 0"),
        (["--seed=99999999999"], "--seed=99999999999 must be below 4294967296"),
        (["--sampler=eulr"], "unknown sampler 'eulr'; did you mean euler"),
        (["--weights=best"], "weights='best' is unknown; choose ema or raw"),
        (["--output=nowhere/x.jsonl"], "there is no folder nowhere; make it first"),
        (["--output=."], "--output=. is a folder; give the name of a file"),
        (["--step=5"], "has no checkpoint of step 5; it has 4, 8, 12"),
        (
            ["--gamma=0.5"],
            "gamma=0.5 has no effect on the sampler Euler; leave it at 0 (gamma: share of fresh "
            "noise in every jump of a flow map (official: LM1B 0.8, OpenWebText 1)); samplers that "
            "use it: flow_map (for flow maps)",
        ),
        (["more"], "unexpected argument 'more'"),
        (["--stpes=3"], "unknown option --stpes; did you mean --steps?"),
    ],
)
def test_a_wrong_flag_is_one_sentence_and_exit_code_2(finished, words, sentence, capsys):
    assert generate(f"--checkpoint={finished[1]}", "--steps=1", *words) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith(("error", "       "))]
    assert len(lines) == 1 and sentence in lines[0], error
    assert "Traceback" not in error


def test_a_wrong_checkpoint_is_one_sentence(finished, tmp_path, capsys):
    def fails(*words: str) -> str:
        assert generate("--steps=1", *words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and len(error.splitlines()) == 1, error
        return error

    assert "--checkpoint=PATH is missing" in fails()
    assert "no file or folder" in fails(f"--checkpoint={tmp_path / 'none'}")
    assert "holds no config.json" in fails(f"--checkpoint={tmp_path}")
    for damage, sentence in [
        (lambda w: shutil.rmtree(w / "checkpoints"), "there is no checkpoint in"),
        (lambda w: shutil.rmtree(w / "tokenizer"), "no tokenizer in"),
        (lambda w: (w / "tokenizer" / "flm_tokenizer.json").write_text("{"), "is damaged"),
        (lambda w: (w / "config.json").write_text("{"), "not JSON"),
        (lambda w: (w / "config.json").write_bytes(b"\xff"), "cannot be read"),
    ]:
        workdir = tmp_path / "run"
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(finished[1], workdir)
        damage(workdir)
        assert sentence in fails(f"--checkpoint={workdir}")


def test_the_module_runs_as_a_program_without_a_traceback():
    done = flm("generate", "--checkpoint=x", "--steps=none", timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --steps=none is not a list")
    assert "Traceback" not in done.stderr and not done.stdout


def test_load_takes_the_ema_unless_raw_weights_are_asked_for(finished, model):
    raw = flm_jax.load(finished[1], weights="raw")
    older = flm_jax.load(finished[1], step=4)
    assert (model.step, raw.step, older.step) == (12, 12, 4)
    tables = [m.params["embed"]["table"] for m in (model, raw, older)]
    assert all((a != b).any() for a, b in zip(tables, tables[1:] + tables[:1], strict=True))
    with pytest.raises(UserError, match="has no checkpoint of step 5; it has 4, 8, 12"):
        flm_jax.load(finished[1], step=5)
    with pytest.raises(UserError, match="weights='best' is unknown"):
        flm_jax.load(finished[1], weights="best")


def test_samples_depend_on_seed_and_index_only(model):
    seven = model.generate(7, 3, seed=1)
    assert seven.tokens.shape == (7, 12) and len(seven.texts) == 7
    assert seven.tokens.dtype == np.int32 and seven.seconds > 0
    np.testing.assert_array_equal(model.generate(2, 3, seed=1).tokens, seven.tokens[:2])
    in_parts = model.generate(7, 3, seed=1, batch_size=3)
    np.testing.assert_array_equal(in_parts.tokens, seven.tokens)
    other = model.generate(7, 3, seed=2)
    assert (other.tokens != seven.tokens).any()


def test_what_is_left_out_comes_from_the_config(model):
    samples = model.generate(2)
    assert samples.steps == model.config.sampler.steps[-1] == 3
    assert samples.tokens.shape == (2, model.config.data.length)
    assert samples.trajectory is None
    assert model.generate(2, 1, length=5).tokens.shape == (2, 5)
    with pytest.raises(UserError, match="length=2 must be at least 3"):
        model.generate(2, 1, length=2)
    with pytest.raises(UserError, match="steps"):
        model.generate(2, 0)


def test_numbers_of_numpy_are_as_good_and_nothing_else_is(model):
    same = model.generate(
        np.int64(3), steps=np.int64(2), seed=np.int32(1), temperature=np.float32(1)
    )
    np.testing.assert_array_equal(same.tokens, model.generate(3, 2, 1, temperature=1.0).tokens)
    assert json.loads(json.dumps(same.rows())) == same.rows()
    assert type(same.steps) is type(same.seed) is int
    for name, value in [
        ("num_samples", 3.0), ("num_samples", True), ("num_samples", "3"), ("steps", np.float32(2)),
        ("steps", [2]), ("seed", None), ("seed", np.True_), ("batch_size", 2.5), ("length", "8"),
        ("patience", 1.5),
    ]:  # fmt: skip
        sentence = f"{name}={value!r} must be a whole number, for example {name}=8"
        with pytest.raises(UserError) as error:
            model.generate(**{name: value})
        assert str(error.value) == sentence
    with pytest.raises(UserError, match="^temperature='hot' must be a number$"):
        model.generate(1, temperature="hot")


def test_a_denoiser_says_which_samplers_it_has(model):
    for knobs in {}, {"gamma": 0.8}:
        with pytest.raises(UserError) as error:
            model.generate(1, 2, sampler="flow_map", **knobs)
        assert str(error.value) == (
            "the sampler 'flow_map' does not fit this model, a denoiser of one time; use euler or "
            "churn; a flow map comes by distilling it (loss psd, lsd or esd)"
        )
    with pytest.raises(
        UserError, match="'autoregressive' does not fit this .*; use euler or churn$"
    ):
        model.generate(1, 2, sampler="autoregressive")
    with pytest.raises(UserError) as error:
        model.generate(1, 2, gamma=0.8)
    assert str(error.value) == (
        "gamma=0.8 has no effect on the sampler Euler; leave it at 0 (gamma: share of "
        "fresh noise in every jump of a flow map (official: LM1B 0.8, OpenWebText 1)); "
        "samplers that use it: flow_map (for flow maps)"
    )


def test_a_model_shows_what_it_is(model):
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert repr(model) == (
        f"FlowModel(denoiser, {size:,} parameters, vocabulary {model.experiment.vocab_size}, "
        "length 12, tokenizer characters, training step 12)"
    )
    names = dir(flm_jax)
    assert {"FlowModel", "Samples", "UserError", "load", "__version__"} <= {*names}
    assert all(hasattr(flm_jax, name) for name in names)
    assert flm_jax.__version__ == metadata.version("flm_jax")


@pytest.mark.parametrize("meshed", [False, True], ids=["loaded", "of a training session"])
def test_a_pickled_model_samples_the_same(model, meshed):
    """The mesh stays behind: the copy samples on one device."""
    if meshed:
        mesh = sharding.make_mesh((8, 1, 1))
        params = sharding.place(model.params, sharding.shardings(model.params, mesh))
        model = flm_jax.FlowModel(model.experiment, model.tokenizer, params, model.step, mesh)
    texts = model.generate(8, 2).texts
    assert model.programs.kept
    copy = pickle.loads(pickle.dumps(model))
    assert not copy.programs.kept and repr(copy) == repr(model)
    assert copy.generate(8, 2).texts == texts


def test_knobs_of_the_decode_and_of_the_flow_have_an_effect(model):
    def tokens(**knobs):
        return model.generate(8, 3, seed=0, **knobs).tokens

    plain = tokens()
    with pytest.raises(UserError, match="top_p=0.5 has no effect on the arg max"):
        tokens(temperature=0.0, top_p=0.5)
    for knobs in (
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.3},
        {"denoiser_temperature": 0.05},
        {"prior_scale": 0.1},
        {"grid_power": 6.0},
    ):
        assert (tokens(**knobs) != plain).any(), knobs
    assert len(np.unique(tokens(temperature=1.0))) > len(np.unique(tokens(temperature=1e-4)))


def test_the_factor_of_the_noise_follows_the_parameters(model):
    """It is made once for the same tables; set, and trained in place, they get their own."""
    config = dataclasses.replace(model.config, space="projected")
    experiment = dataclasses.replace(model.experiment, config=config)
    own = flm_jax.FlowModel(experiment, model.tokenizer, model.params)
    made = []
    make = own.programs._make_constant
    vars(own.programs)["_make_constant"] = lambda tables: made.append(0) or make(tables)
    first = own.generate(4, 1).tokens
    np.testing.assert_array_equal(own.generate(4, 1).tokens, first)
    assert len(made) == 1

    def scaled(params, columns):
        # Some columns only: the noise is then another one, not only a larger one.
        table = jnp.asarray(params["embed"]["table"]).at[:, columns].multiply(30.0)
        return params | {"embed": params["embed"] | {"table": table}}

    own.params = scaled(model.params, slice(0, 4))
    fresh = flm_jax.FlowModel(experiment, model.tokenizer, own.params)
    second = own.generate(4, 1).tokens
    np.testing.assert_array_equal(second, fresh.generate(4, 1).tokens)
    assert (second != first).any()

    own.params["embed"]["table"] = scaled(model.params, slice(4, 8))["embed"]["table"]
    third = own.generate(4, 1).tokens
    fresh = flm_jax.FlowModel(experiment, model.tokenizer, own.params)
    np.testing.assert_array_equal(third, fresh.generate(4, 1).tokens)
    assert (third != second).any() and len(made) == 3

    own.params = jax.tree.map(np.array, model.params)
    np.testing.assert_array_equal(own.generate(4, 1).tokens, first)
    own.params["embed"]["table"][:] = scaled(model.params, slice(4, 8))["embed"]["table"]
    np.testing.assert_array_equal(own.generate(4, 1).tokens, third)


def test_a_number_of_steps_is_compiled_once(model):
    model.generate(2, 2)
    programs = len(model.programs.kept)
    model.generate(2, 2, seed=9)
    assert len(model.programs.kept) == programs


def test_numbers_of_samples_share_programs(model):
    """A program for 4 writes 3: the same ones as ever, and no more."""
    four = model.generate(4, 2)
    programs = len(model.programs.kept)
    three = model.generate(3, 2)
    assert len(model.programs.kept) == programs
    np.testing.assert_array_equal(three.tokens, four.tokens[:3])
    assert len(three.texts) == 3


def test_documents_of_a_row_are_lines_of_its_text(model):
    tokenizer = model.tokenizer
    red, cat = tokenizer.encode("red"), tokenizer.encode("cat")
    row = [tokenizer.bos_id, *red, tokenizer.eos_id, *cat, tokenizer.eos_id, tokenizer.pad_id]
    assert model.text(np.asarray(row)) == "red\ncat"
    assert model.text(np.asarray([tokenizer.bos_id, tokenizer.eos_id])) == ""
    # A row that is one document ends with it, whatever an undecided network says behind.
    config = config_lib.changed(model.config, {"data.packing": "one_per_row"})
    alone = FlowModel(Experiment(config, tokenizer.vocab_size), tokenizer, model.params)
    assert alone.text(np.asarray(row)) == "red"
    row[row.index(tokenizer.eos_id)] = tokenizer.pad_id
    assert alone.text(np.asarray(row)) == "red"


def test_a_trajectory_has_one_entry_per_evaluation(model):
    samples = model.generate(2, 3, trajectory=True)
    path = samples.trajectory
    assert path.tokens_SBL.shape == path.confidence_SBL.shape == (3, 2, 12)
    np.testing.assert_array_equal(path.tokens_SBL[-1], samples.tokens)
    assert ((0 < path.confidence_SBL) & (path.confidence_SBL <= 1)).all()
