"""Official checkpoints in and out: load, convert, there and back bit for bit."""

import json
import os
import re

import jax
import numpy as np
import pytest
from commands import call, flm
from official_files import ONE_TIME, TWO_TIMES, L, hub, lightning, saved_letters
from safetensors.numpy import load_file, save_file
from states import HEADS, random_state

import flm_jax
from flm_jax import inference, tokenizers
from flm_jax.checkpoint import Checkpoints
from flm_jax.inference import choose_sampler
from flm_jax.inference.conversion import convert
from flm_jax.interop import hub_layout, layout, official
from flm_jax.options import Reading
from flm_jax.tokenizers.bert import BertRecipe
from flm_jax.tokenizers.gpt2 import Gpt2Recipe

GOLDENS = ("flm.ckpt", "flm_no_ema.ckpt", "fmlm.ckpt", "fmlm_orig_mod.ckpt", "hub_fmlm_ema")


@pytest.fixture(name="letters")
def fixture_letters(tmp_path):
    """A saved tokenizer for the files of official_files.py."""
    return saved_letters(tmp_path / "letters")


def assert_trees_equal(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def items_of(workdir):
    model = inference.load(workdir)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore({"params": model.params, "ema": model.params})[1]


def test_ckpt_becomes_a_workdir_with_both_copies(tmp_path, letters):
    path, raw, average = lightning(tmp_path / "a.ckpt")
    workdir = convert(path, tmp_path / "run", Reading(tokenizer=letters, length=L, heads=HEADS))
    items = items_of(workdir)
    assert_trees_equal(items["params"], hub_layout.to_params(raw))
    assert_trees_equal(items["ema"], hub_layout.to_params(average))
    for weights, state in ((None, average), ("ema", average), ("raw", raw)):
        model = flm_jax.load(workdir, weights)
        assert_trees_equal(model.params, hub_layout.to_params(state))
        direct = flm_jax.load(path, weights, tokenizer=letters, length=L)
        assert_trees_equal(direct.params, model.params)
        assert direct.config == model.config
    assert model.generate(2, 1).texts == direct.generate(2, 1).texts
    assert (workdir / "config.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_raw_weights_stand_for_the_average(tmp_path, letters, caplog):
    path, raw, _ = lightning(tmp_path / "a.ckpt")
    choices = Reading(weights="raw", tokenizer=letters, length=L)
    items = items_of(convert(path, tmp_path / "run", choices))
    assert_trees_equal(items["ema"], hub_layout.to_params(raw))
    path, raw, _ = lightning(tmp_path / "b.ckpt", averaged=False)
    model = flm_jax.load(path, tokenizer=letters, length=L)
    assert_trees_equal(model.params, hub_layout.to_params(raw))
    assert "has no EMA weights; the raw weights are used" in caplog.text


@pytest.mark.parametrize("sizes", [TWO_TIMES, ONE_TIME])
def test_import_of_export_is_bit_equal(tmp_path, letters, sizes):
    folder, params = hub(tmp_path / "official", sizes)
    workdir = convert(folder, tmp_path / "run", Reading(tokenizer=letters))
    exported = convert(workdir, tmp_path / "export")
    again = convert(exported, tmp_path / "again")  # the tokenizer lies beside the weights
    assert_trees_equal(inference.load(again).params, params)
    first, second = (load_file(f / "model.safetensors") for f in (folder, exported))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].tobytes() == second[name].tobytes()
    ours, theirs = (json.loads((f / "config.json").read_text()) for f in (exported, folder))
    assert ours == theirs
    assert sorted(os.listdir(tmp_path)) == ["again", "export", "letters", "official", "run"]


def test_export_takes_the_weights_asked_for(tmp_path, letters):
    path, raw, average = lightning(tmp_path / "a.ckpt")
    workdir = convert(path, tmp_path / "run", Reading(tokenizer=letters, length=L))
    for weights, state in (("raw", raw), ("ema", average)):
        folder = convert(workdir, tmp_path / weights, Reading(weights=weights))
        assert_trees_equal(official.read(folder).params(), hub_layout.to_params(state))


def test_a_tied_head_is_written_as_one_of_its_own(tmp_path, letters, monkeypatch):
    folder, _ = hub(tmp_path / "official")
    workdir = convert(folder, tmp_path / "run", Reading(tokenizer=letters))
    model = flm_jax.load(workdir)
    model.params = {**model.params, "head": {"bias": model.params["head"]["bias"]}}
    monkeypatch.setattr(inference, "load", lambda *_: model)
    head = official.read(convert(workdir, tmp_path / "out")).params()["head"]
    np.testing.assert_array_equal(head["kernel"], model.params["embed"]["table"].T)
    np.testing.assert_array_equal(head["bias"], model.params["head"]["bias"])


def test_official_defaults(tmp_path, letters):
    folder, _ = hub(tmp_path / "official", config={"model": {"dropout": 0.25}})
    model = flm_jax.load(folder, tokenizer=letters)
    settled = model.config.model
    assert (settled.attention_cap, settled.logit_cap, settled.dropout) == (50.0, 30.0, 0.25)
    assert (settled.width, settled.depth, settled.heads, settled.cond_dim) == (8, 2, HEADS, 6)
    assert settled.two_times and settled.loss_weighting
    assert model.config.data.length == L and model.config.clock.name == "decoding_accuracy"
    assert flm_jax.load(folder, tokenizer=letters, length=9).config.data.length == 9


def test_diagonal_of_a_flow_map_gives_the_network_its_time_twice(tmp_path, letters):
    folder, _ = hub(tmp_path / "official")
    model = flm_jax.load(folder, tokenizer=letters)
    h = jax.random.normal(jax.random.key(0), (2, L, 8))
    tau = jax.numpy.array([0.2, 0.7])
    once = model.net(model.params)(h, tau).posterior.dense()
    twice = model.net(model.params, diagonal=False)(h, tau, tau).posterior.dense()
    half = model.net(model.params, diagonal=False)(h, tau).posterior.dense()
    np.testing.assert_array_equal(once, twice)
    assert np.abs(once - half).max() > 1e-3


def test_one_sentence_when_a_flow_map_is_used_on_its_diagonal(tmp_path, letters, monkeypatch):
    said = []
    note = lambda level, message, n, *args: said.append(message % args)  # noqa: E731
    monkeypatch.setattr(choose_sampler.logging, "log_first_n", note)
    for name, sizes in (("one", ONE_TIME), ("two", TWO_TIMES)):
        folder, _ = hub(tmp_path / name, sizes)
        model = flm_jax.load(folder, tokenizer=letters)
        assert model.config.sampler.name == ("flow_map" if name == "two" else "euler")
        model.generate(1, 1)
        assert not said
        model.generate(1, 1, sampler="euler")
    assert len(said) == 1 and "'euler' uses on the diagonal only" in said[0]


def test_several_numbers_of_steps_with_one_loaded_model(tmp_path, letters):
    """The clock must not be built inside the trace of the first compilation."""
    folder, _ = hub(tmp_path / "official", ONE_TIME)
    model = flm_jax.load(folder, tokenizer=letters)
    assert [model.generate(1, steps).tokens.shape for steps in (1, 2)] == [(1, L)] * 2


@pytest.mark.parametrize("golden", GOLDENS)
def test_recorded_checkpoints_go_there_and_back(shared, tmp_path, golden):
    letters = saved_letters(tmp_path / "letters", 23)
    source = shared / "golden/ckpt" / golden
    workdir = convert(source, tmp_path / "run", Reading(tokenizer=letters))
    expected = official.read(source)
    assert_trees_equal(inference.load(workdir).params, expected.params())
    exported = official.read(convert(workdir, tmp_path / "export"))
    assert list(exported.state) == list(expected.state)
    for name, array in expected.state.items():
        assert exported.state[name].tobytes() == array.tobytes()
    assert exported.config["model"]["length"] == expected.length


def test_an_average_of_another_decay(shared, tmp_path):
    letters = saved_letters(tmp_path / "letters", 23)
    source = shared / "golden/ckpt/flm_feb_two_emas.ckpt"
    choices = Reading(weights="ema:0.3", tokenizer=letters)
    model = inference.load(convert(source, tmp_path / "run", choices))
    assert_trees_equal(model.params, official.read(source, "ema:0.3").params())


def test_the_cap_of_the_logits_can_be_chosen(shared, tmp_path, caplog):
    """February code had none; the recorded logits are those before the cap."""
    letters = saved_letters(tmp_path / "letters", 23)
    source = shared / "golden/ckpt/flm_feb_two_emas.ckpt"
    choices = Reading(tokenizer=letters, logit_cap=0.0)
    model = inference.load(convert(source, tmp_path / "run", choices))
    assert "holds a list of EMAs" in caplog.text and "--logit_cap=0" in caplog.text
    direct = flm_jax.load(source, tokenizer=letters, logit_cap=0.0)
    assert direct.config == model.config and direct.config.model.logit_cap == 0.0
    recorded = np.load(shared / "golden/ckpt/flm_feb_two_emas_expected.npz")
    logits = recorded["out/logits_ema_0.9999"]
    for cap, expected in ((0.0, logits), (None, 30.0 * np.tanh(logits / 30.0))):
        model = flm_jax.load(source, tokenizer=letters, logit_cap=cap)
        net = model.net(model.params)
        h = jax.numpy.matmul(recorded["in/x"], net.table, precision="highest")
        ours = net(h, jax.numpy.asarray(recorded["in/tau"])).posterior.dense()
        np.testing.assert_allclose(ours, jax.nn.softmax(expected), atol=5e-6)
    assert np.abs(jax.nn.softmax(logits) - jax.nn.softmax(expected)).max() > 1e-4


@pytest.mark.parametrize("name", ["flm.ckpt", "fmlm.ckpt"])
def test_loaded_networks_give_the_recorded_logits(shared, tmp_path, name):
    letters = saved_letters(tmp_path / "letters", 23)
    recorded = np.load(shared / "golden/ckpt" / name.replace(".ckpt", "_expected.npz"))
    for weights in ("raw", "ema"):
        model = flm_jax.load(shared / "golden/ckpt" / name, weights, tokenizer=letters)
        net = model.net(model.params, diagonal=False)
        times = [recorded["in/tau"]]
        key = f"out/logits_{weights}"
        if model.config.model.two_times:
            times.append(recorded["in/tau_prime"])
            key = f"out/logits_two_times_{weights}"
        h = jax.numpy.matmul(recorded["in/x"], net.table, precision="highest")
        features, _ = net.backbone(net.params, h, *map(jax.numpy.asarray, times))
        head = net.params["head"]
        logits = features @ head["kernel"] + head["bias"][None, None]
        np.testing.assert_allclose(logits, recorded[key], atol=2e-5 * np.abs(recorded[key]).max())


def test_vocabulary_decides_tokenizer_and_length(tmp_path, monkeypatch, shared):
    monkeypatch.setitem(tokenizers.TOKENIZERS, "gpt2", Gpt2Recipe)
    monkeypatch.setitem(tokenizers.TOKENIZERS, "bert-base-uncased", BertRecipe)
    monkeypatch.setenv("FLM_JAX_TOKENIZERS", str(shared / "data/tokenizers"))
    for vocab_size, name, length in ((30522, "bert-base-uncased", 128), (50258, "gpt2", 1024)):
        sizes = layout.Sizes(vocab_size, 8, 6, 1, 4, False, False)
        save_file(random_state(sizes), tmp_path / f"{name}.safetensors")
        model = flm_jax.load(tmp_path / f"{name}.safetensors")
        assert (model.tokenizer.name, model.config.data.length) == (name, length)
        assert model.tokenizer.vocab_size == vocab_size
        folder = str(shared / "data/tokenizers" / name)  # plain vocabulary files
        again = flm_jax.load(tmp_path / f"{name}.safetensors", tokenizer=folder, length=5)
        assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
        assert again.config.data.length == 5


def test_one_command_gives_text(tmp_path, letters):
    path, _, _ = lightning(tmp_path / "a.ckpt", ONE_TIME)
    output = tmp_path / "samples.jsonl"
    flags = [f"--checkpoint={path}", f"--tokenizer={letters}", f"--length={L}", "--steps=1,2"]
    done = flm("generate", *flags, f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == 16
    words = [str(path), str(tmp_path / "my run"), f"--tokenizer={letters}", f"--length={L}"]
    done = flm("convert", *words)
    assert done.returncode == 0, done.stderr
    # By the installed program, or by python -m flm_jax where there is none.
    assert re.search(r"(/| )flm(_jax)? generate --checkpoint=", done.stdout)
    assert f" generate --checkpoint='{tmp_path}/my run' --steps=32" in done.stdout


def test_convert_needs_two_names(capsys):
    for words in ([], ["here"]):
        assert call("convert", *words) == 2
        assert "give SOURCE and DESTINATION" in capsys.readouterr().err


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
