"""What cannot be loaded or converted gets one sentence, runs nothing and writes nothing."""

import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch_files as tf
from official_files import TWO_TIMES, L, V, hub, lightning, saved_letters
from safetensors.numpy import save_file
from states import HEADS, random_state

import flm_jax
from flm_jax import inference
from flm_jax.checkpoint import Checkpoints
from flm_jax.errors import UserError
from flm_jax.inference.conversion import convert
from flm_jax.interop import layout
from flm_jax.options import Reading


@pytest.fixture(name="letters")
def fixture_letters(tmp_path):
    """A saved tokenizer for the files of official_files.py."""
    return saved_letters(tmp_path / "letters")


class Malicious:
    """Pickles itself as a call that leaves a file behind."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def malicious(path, mark):
    call = tf.call("os", "mkdir", str(mark))
    state = random_state(TWO_TIMES)
    storages = {str(i): array for i, array in enumerate(state.values())}
    tensors = {f"backbone.{n}": tf.tensor(str(i), a) for i, (n, a) in enumerate(state.items())}
    return tf.save(path, {"state_dict": {**tensors, "backbone.embed.weight": call}}, storages)


def bad_sources(folder):
    """(name, path, words of its sentence)."""
    good, state, _ = lightning(folder / "good.ckpt")
    cut = folder / "cut.ckpt"
    cut.write_bytes(good.read_bytes()[:-2000])
    other = folder / "notes.ckpt"
    other.write_text("not a checkpoint at all")
    wrong = dict(state)
    wrong["blocks.0.norm1.weight"] = np.zeros(9, np.float32)
    renamed = {n.replace("blocks.1.attn_qkv", "blocks.1.qkv"): a for n, a in state.items()}
    save_file(wrong, folder / "wrong.safetensors")
    save_file(renamed, folder / "renamed.safetensors")
    diverged = dict(state)
    diverged["output_layer.linear.bias"] = np.full(V, np.nan, np.float32)
    save_file(diverged, folder / "diverged.safetensors")
    (folder / "empty").mkdir()
    yield "cut", cut, "cut.ckpt"
    yield "other", other, "notes.ckpt"
    yield "wrong", folder / "wrong.safetensors", r"blocks.0.norm1.weight has shape \(9,\)"
    yield "renamed", folder / "renamed.safetensors", "a tensor blocks.1.qkv.weight"
    yield "diverged", folder / "diverged.safetensors", "linear.bias holds numbers that are not"
    yield "empty", folder / "empty", "holds no config.json and no model.safetensors"
    yield "absent", folder / "absent.ckpt", "there is no file or folder"
    yield "no decay", good, "has no EMA of decay 0.5"


def test_bad_sources_leave_nothing_behind(tmp_path, letters):
    for name, path, sentence in bad_sources(tmp_path):
        weights = "ema:0.5" if name == "no decay" else None
        choices = Reading(weights=weights, tokenizer=letters, length=L, heads=HEADS)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=sentence) as caught:
            convert(path, tmp_path / "out", choices)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=sentence):
            flm_jax.load(path, weights, tokenizer=letters, length=L, heads=HEADS)
        assert sorted(tmp_path.iterdir()) == before


def test_nothing_in_a_file_is_executed(tmp_path, letters):
    mark = tmp_path / "executed"
    path = malicious(tmp_path / "evil.ckpt", mark)
    choices = Reading(tokenizer=letters, length=L, heads=HEADS)
    try:  # the foreign value may be skipped or refused, but never called
        convert(path, tmp_path / "out", choices)
    except UserError:
        assert not (tmp_path / "out").exists()
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Malicious(mark)))
    with pytest.raises(UserError):
        convert(tmp_path / "plain.ckpt", tmp_path / "out2", choices)
    assert not mark.exists() and not (tmp_path / "out2").exists()


def test_what_must_be_asked_for(tmp_path, letters):
    path, _, _ = lightning(tmp_path / "a.ckpt")
    saved_letters(tmp_path / "many", V + 1)
    (tmp_path / "bare").mkdir()
    for options, sentence in (
        ({}, "vocabulary of 11 tokens, which tells no tokenizer"),
        ({"tokenizer": letters}, "does not tell its block length"),
        ({"tokenizer": letters, "length": 2}, "length=2 must be at least 3"),
        ({"tokenizer": "characters", "length": L}, "neither a folder with a tokenizer nor"),
        ({"tokenizer": "no/such/folder", "length": L}, "'no/such/folder' is neither a folder"),
        ({"tokenizer": str(tmp_path / "bare"), "length": L}, "holds no tokenizer"),
        ({"tokenizer": str(tmp_path / "many"), "length": L}, "11 entries but the tokenizer has 12"),
        ({"tokenizer": letters, "length": L, "heads": 3}, "3 attention heads do not divide"),
        ({"tokenizer": letters, "length": L, "weights": "best"}, "weights='best' is not known"),
        ({"tokenizer": letters, "length": L, "logit_cap": -1.0}, "logit_cap=-1.0 must be a finite"),
        (
            {"tokenizer": letters, "length": L, "logit_cap": np.inf},
            "logit_cap=inf must be a finite",
        ),
        (
            {"tokenizer": letters, "length": L, "logit_cap": np.nan},
            "logit_cap=nan must be a finite",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            convert(path, tmp_path / "out", Reading(**options))
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="a.ckpt is not a workdir, so step=3 cannot be chosen"):
        convert(path, tmp_path / "out", Reading(step=3, tokenizer=letters, length=L))
    with pytest.raises(UserError, match="step=3 cannot be chosen"):
        flm_jax.load(path, step=3, tokenizer=letters, length=L)


def test_a_workdir_knows_what_it_is(tmp_path, letters):
    folder, _ = hub(tmp_path / "official")
    workdir = convert(folder, tmp_path / "run", Reading(tokenizer=letters))
    for name, value in (("tokenizer", letters), ("length", 9), ("heads", 2), ("logit_cap", 0.0)):
        with pytest.raises(UserError, match=f"a workdir, which knows its {name}"):
            flm_jax.load(workdir, **{name: value})
        with pytest.raises(UserError, match=f"a workdir, which knows its {name}"):
            convert(workdir, tmp_path / "out", Reading(**{name: value}))
    with pytest.raises(UserError, match="weights='ema:0.5' is unknown; choose ema or raw"):
        flm_jax.load(workdir, "ema:0.5")
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        convert(workdir, tmp_path / "out", Reading(step=7))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "key, value",
    [
        ("logit_cap", 0.0),
        ("attention_cap", 10.0),
        ("learned_positions", 60),
        ("self_conditioning", True),
        ("input_scale", 0.5),
        ("norm", "rms"),
        ("mlp", "swiglu"),
        ("qk_norm", True),
    ],
)
def test_what_the_official_layout_cannot_say_is_not_exported(
    tmp_path, letters, key, value, monkeypatch
):
    folder, _ = hub(tmp_path / "official")
    workdir = convert(folder, tmp_path / "run", Reading(tokenizer=letters))
    config = flm_jax.load(workdir).config
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **{key: value}))
    monkeypatch.setattr(flm_jax.inference.FlowModel, "config", config)
    with pytest.raises(UserError, match=f"model.{key}={value}, which the official layout cannot"):
        convert(workdir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_destinations_that_exist_stay_as_they_are(tmp_path, letters):
    folder, _ = hub(tmp_path / "official")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    (tmp_path / "a_file").write_text("mine")
    for name in ("full", "a_file"):
        with pytest.raises(UserError, match=f"{name} exists already"):
            convert(folder, tmp_path / name, Reading(tokenizer=letters))
    assert os.listdir(tmp_path / "full") == ["file"]
    with pytest.raises(UserError, match="cannot write .*a_file/run: Not a directory"):
        convert(folder, tmp_path / "a_file/run", Reading(tokenizer=letters))
    (tmp_path / "vacant").mkdir()
    convert(folder, tmp_path / "vacant", Reading(tokenizer=letters))
    assert inference.is_workdir(tmp_path / "vacant")


def test_a_failed_write_leaves_no_trace(tmp_path, letters, monkeypatch):
    folder, _ = hub(tmp_path / "official")
    before = sorted(os.listdir(tmp_path))

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        convert(folder, tmp_path / "run", Reading(tokenizer=letters))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_changed_loss_weighting_is_refused(tmp_path, letters):
    sizes = layout.Sizes(V, 8, 6, 2, 4, False, True, loss_hidden=10)
    folder, _ = hub(tmp_path / "official", sizes)
    with pytest.raises(UserError, match="weights its loss with 10 hidden units"):
        flm_jax.load(folder, tokenizer=letters)
