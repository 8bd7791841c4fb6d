"""The official layout and our parameter tree: order, shapes, and the way there and back."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file
from states import HEADS, ONE_TIME, SIZES, assert_same, random_state

import flm_jax
from flm_jax import inference
from flm_jax.errors import UserError
from flm_jax.interop import hub_layout, layout, official


def test_parameter_order_is_the_official_one(shared):
    recorded = json.loads((shared / "golden/init/random_init_stats.json").read_text())
    c = recorded["config"]
    for kind, stats in recorded["stats"].items():
        weighting = any(name.startswith("learnable_loss_weighting") for name in stats["__order__"])
        sizes = layout.Sizes(
            c["vocab_size"],
            c["hidden_size"],
            c["cond_dim"],
            c["n_blocks"],
            4,
            kind == "fmlm",
            weighting,
        )
        found = {entry.name: list(entry.shape) for entry in layout.entries(sizes)}
        assert list(found) == stats["__order__"]
        assert all(stats[name]["shape"] == shape for name, shape in found.items())


@pytest.mark.parametrize(
    "vocab_size, two_times, weighting, count, tensors",
    [
        (30522, False, False, 139_292_986, 130),
        (50258, False, False, 169_627_218, 130),
        (30522, True, False, 139_342_394, 134),
        (50258, True, True, 169_676_626 + 66_049, 142),
    ],
)
def test_parameter_counts_of_the_published_models(vocab_size, two_times, weighting, count, tensors):
    shapes = [
        entry.shape
        for entry in layout.entries(layout.Sizes(vocab_size, 768, 128, 12, 4, two_times, weighting))
    ]
    assert len(shapes) == tensors
    assert sum(int(np.prod(shape)) for shape in shapes) == count


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin", "a pickle of PyTorch, which is not read here"),
        ("pytorch_model.bin.index.json", "the index of pickles"),
        ("model.safetensors.index.json", "the index of weights in several pieces"),
        ("flax_model.msgpack", "for Flax"),
        ("tf_model.h5", "for TensorFlow"),
    ],
)
def test_weights_of_other_kinds_are_named_with_the_remedy(tmp_path, name, what):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / name).write_bytes(b"PK\3\4 or other bytes")
    sentence = f"{name} is .*{what}.* take a version of the model with model.safetensors"
    for read in (flm_jax.load, official.read, inference.is_workdir):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert not inference.is_workdir(tmp_path)  # beside the right file others do not matter
    with pytest.raises(UserError, match="not a readable safetensors"):
        official.read(tmp_path)


@pytest.mark.parametrize("sizes", [SIZES, ONE_TIME])
def test_tree_has_the_documented_shapes_and_returns_bit_equal(sizes):
    state = random_state(sizes)
    params = hub_layout.to_params(state)
    v, d, c, n = 11, 8, 6, 2
    assert params["embed"]["table"].shape == (v, d)
    assert params["time_embed"]["in"]["kernel"].shape == (256, c)
    assert params["blocks"]["qkv"]["kernel"].shape == (n, d, 3 * d)
    assert params["blocks"]["mlp_in"]["bias"].shape == (n, 4 * d)
    assert params["blocks"]["modulation"]["kernel"].shape == (n, c, 6 * d)
    assert params["final"]["modulation"]["kernel"].shape == (c, 2 * d)
    assert params["head"]["kernel"].shape == (d, v)
    assert ("time_embed_to" in params) == sizes.two_times
    assert ("loss_weight" in params) == sizes.loss_weighting
    np.testing.assert_array_equal(
        params["blocks"]["mlp_out"]["kernel"][1], state["blocks.1.mlp.2.weight"].T
    )
    assert_same(hub_layout.from_params(params), state)


def test_written_folder_reads_back_bit_equal(tmp_path):
    state = random_state()
    params = hub_layout.to_params(state)
    folder = hub_layout.write(tmp_path / "deep" / "model", params, heads=HEADS, length=32)
    found = official.read(folder)
    assert_same(found.state, state)
    assert (found.sizes, found.heads, found.length) == (SIZES, HEADS, 32)
    assert found.weights == "stored"
    assert layout.INV_FREQ in load_file(folder / "model.safetensors")
    assert os.listdir(folder.parent) == ["model"]
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["n_heads"] == HEADS and config["algo"]["double_temb"]
    assert config["vocab_size"] == 11
    with pytest.raises(UserError, match="cannot write .*free space or choose a"):
        hub_layout.write(folder / "config.json/model", params, heads=HEADS)
    with pytest.raises(UserError, match="exists already"):
        hub_layout.write(folder, params, heads=HEADS)


def test_nothing_is_written_for_wrong_parameters(tmp_path):
    params = hub_layout.to_params(random_state())
    params["head"]["kernel"] = params["head"]["kernel"][:, :-1]
    with pytest.raises(UserError, match=r"head/kernel has shape \(8, 10\) where \(8, 11\)"):
        hub_layout.write(tmp_path / "model", params, heads=HEADS)
    del params["head"]["kernel"]
    with pytest.raises(UserError, match="has no head/kernel"):
        hub_layout.from_params(params)
    params["embed"]["table"] = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(UserError, match=r"embed/table has a strange shape \(2, 3, 4\)"):
        hub_layout.from_params(params)
    params = hub_layout.to_params(random_state()) | {"probe": {"kernel": np.zeros(3)}}
    with pytest.raises(UserError, match="probe/kernel has no place"):
        hub_layout.from_params(params)
    assert os.listdir(tmp_path) == []


def test_recorded_folder_is_written_bit_equal(shared, tmp_path):
    source = shared / "golden/ckpt/hub_fmlm_ema"
    found = official.read(source)
    hub_layout.write(
        tmp_path / "x", found.params(), heads=found.heads, length=found.length, config=found.config
    )
    ours = load_file(tmp_path / "x/model.safetensors")
    for name, array in load_file(source / "model.safetensors").items():
        np.testing.assert_array_equal(ours.pop(name), array)
    assert not ours
    config = json.loads((tmp_path / "x/config.json").read_text())
    official_config = json.loads((source / "config.json").read_text())
    assert config["model"] == official_config["model"]
    assert official_config["algo"].items() <= config["algo"].items()
