"""Reading official checkpoints: which weights, which sizes, a sentence for every misfit."""

import ml_dtypes
import numpy as np
import pytest
import torch_files as tf
from safetensors.numpy import load_file, save_file
from states import HEADS, ONE_TIME, SIZES, assert_same, random_state

from flm_jax.errors import UserError
from flm_jax.interop import layout, official


def prefixed(state, prefix="backbone."):
    return {prefix + name: array for name, array in state.items()}


def checkpoint(path, state, emas=(), prefix="backbone.", extra=None, **more):
    """A hand-written .ckpt: `emas` is a list of (decay, list of arrays); the first is the main."""
    named = {**prefixed(state, prefix), **(extra or {})}
    arrays = list(named.values()) + [array for _, averaged in emas for array in averaged]
    pieces = [tf.tensor(str(index), array) for index, array in enumerate(arrays)]
    tree = {"state_dict": dict(zip(named, pieces, strict=False)), **more}
    records, start = [], len(named)
    for decay, averaged in emas:
        shadow = pieces[start : start + len(averaged)]
        records.append({"decay": decay, "num_updates": 4, "shadow_params": shadow})
        start += len(averaged)
    if records:
        tree["ema"] = records[0]
    if len(records) > 1:
        tree["ema_list"] = {f"{r['decay']:.8f}": r for r in records}
    return tf.save(path, tree, {str(index): array for index, array in enumerate(arrays)})


def averaged_list(sizes=SIZES, seed=1):
    return list(random_state(sizes, seed, buffer=False).values())


@pytest.mark.parametrize("prefix", ["backbone.", "backbone._orig_mod.", "_orig_mod.backbone.", ""])
def test_prefixes(tmp_path, prefix):
    state = random_state()
    path = checkpoint(tmp_path / "a.ckpt", state, prefix=prefix)
    assert_same(official.read(path, "raw").state, state)


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_teacher_entries_are_ignored(tmp_path, prefix):
    state = random_state(ONE_TIME)
    extra = {"teacher_model.vocab_embed.embedding": np.ones((3, 3), np.float32)}
    path = checkpoint(tmp_path / "a.ckpt", state, prefix=prefix, extra=extra)
    found = official.read(path, "raw")
    assert_same(found.state, state)
    assert found.notices == ()


def test_a_file_of_two_times_that_names_no_method_says_how_it_is_read(tmp_path):
    """FMLM and FMLM+ have the same tensors."""
    path = checkpoint(tmp_path / "a.ckpt", random_state())
    (notice,) = official.read(path, "raw").notices
    assert "read as FMLM" in notice and "--clock=identity" in notice


def test_which_weights(tmp_path):
    state = random_state(ONE_TIME)
    names = [name for name in state if name != layout.INV_FREQ]
    first, second = averaged_list(ONE_TIME, 1), averaged_list(ONE_TIME, 2)
    path = checkpoint(tmp_path / "a.ckpt", state, [(0.9999, first), (0.3, second)])
    wanted = {
        None: ("ema:0.9999", first),
        "ema": ("ema:0.9999", first),
        "ema:0.9999": ("ema:0.9999", first),
        "ema:0.3": ("ema:0.3", second),
        "raw": ("raw", [state[name] for name in names]),
    }
    for choice, (label, arrays) in wanted.items():
        found = official.read(path, choice)
        assert found.weights == label
        assert_same(found.state, dict(zip(names, arrays, strict=True)))
    with pytest.raises(UserError, match="no EMA of decay 0.5; it has ema:0.9999, ema:0.3"):
        official.read(path, "ema:0.5")
    with pytest.raises(UserError, match="weights='best' is not known"):
        official.read(path, "best")


def test_missing_ema(tmp_path):
    state = random_state()
    path = checkpoint(tmp_path / "a.ckpt", state)
    found = official.read(path)
    assert found.weights == "raw"
    assert "has no EMA weights; the raw weights are used" in found.notices[0]
    with pytest.raises(UserError, match="has no EMA weights; use --weights=raw"):
        official.read(path, "ema")


def test_ema_of_the_wrong_length_or_shape(tmp_path):
    state = random_state()
    path = checkpoint(tmp_path / "a.ckpt", state, [(0.9, averaged_list()[:-1])])
    with pytest.raises(UserError, match="the EMA has 41 tensors and the network 42"):
        official.read(path)
    odd = {"decay": 0.9, "num_updates": 4, "shadow_params": [1] * 42}
    path = checkpoint(tmp_path / "odd.ckpt", state, ema=odd)
    with pytest.raises(UserError, match="EMA of vocab_embed.embedding is not a tensor; use --weig"):
        official.read(path)
    path = checkpoint(tmp_path / "b.ckpt", state, [(0.9, averaged_list()[::-1])])
    with pytest.raises(UserError, match=r"vocab_embed.embedding has shape|dimensions are needed"):
        official.read(path)


def test_half_precision_is_widened_and_quantised_refused(tmp_path):
    state = random_state()
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in state.items()}
    found = official.read(tf.save_state(tmp_path / "a.ckpt", prefixed(half)), "raw")
    assert_same(found.state, {name: array.astype(np.float32) for name, array in half.items()})
    assert found.heads == HEADS
    state["head.bias"] = state.pop("output_layer.linear.bias")
    state["output_layer.linear.bias"] = state.pop("head.bias").astype(np.int64)
    with pytest.raises(UserError, match="output_layer.linear.bias has dtype int64"):
        official.read(tf.save_state(tmp_path / "b.ckpt", prefixed(state)), "raw")


def changed(state, old, new=None, shape=None):
    state = dict(state)
    array = state.pop(old)
    if new or shape:
        state[new or old] = array if shape is None else np.zeros(shape, np.float32)
    return state


@pytest.mark.parametrize(
    "old, new, shape, sentence",
    [
        ("blocks.1.attn_qkv.weight", None, None, r"lacks the tensor blocks.1.attn_qkv.weight"),
        ("blocks.1.attn_qkv.weight", "blocks.1.qkv.weight", None, "a tensor blocks.1.qkv.weight"),
        ("blocks.0.norm1.weight", None, (9,), r"shape \(9,\) where \(8,\)"),
        ("blocks.0.mlp.0.weight", None, (33, 8), r"shape \(33, 8\) where \(32, 8\)"),
        ("sigma_map.mlp.0.weight", None, (6, 128), r"shape \(6, 128\) where \(6, 256\)"),
        ("vocab_embed.embedding", None, None, "it has no tensor vocab_embed.embedding"),
        ("vocab_embed.embedding", None, (11,), "2 dimensions are needed"),
        ("rotary_emb.inv_freq", None, (3,), "does not fit width 8"),
        ("rotary_emb.inv_freq", None, (2,), "is not the rotary embedding of base 10000"),
    ],
)
def test_misfits_are_named(tmp_path, old, new, shape, sentence):
    state = changed(random_state(), old, new, shape)
    with pytest.raises(UserError, match=sentence):
        official.read(checkpoint(tmp_path / "a.ckpt", state), "raw")
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=sentence):
        official.read(tmp_path / "a.safetensors")


def test_extra_tensors_and_absurd_blocks(tmp_path):
    extra = {"backbone.adapter.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(UserError, match=r"a tensor adapter.weight \(2, 2\)"):
        official.read(checkpoint(tmp_path / "a.ckpt", random_state(), extra=extra), "raw")
    extra = {"backbone.blocks.999.norm1.weight": np.ones(8, np.float32)}
    with pytest.raises(UserError, match="blocks.2 is missing"):
        official.read(checkpoint(tmp_path / "b.ckpt", random_state(), extra=extra), "raw")


def test_heads_without_the_buffer(tmp_path):
    state = random_state(buffer=False)
    path = checkpoint(tmp_path / "a.ckpt", state)
    with pytest.raises(UserError, match="heads of width 8; give it as heads=N"):
        official.read(path)
    assert official.read(path, heads=4).heads == 4
    with pytest.raises(UserError, match="3 attention heads do not divide width 8"):
        official.read(path, heads=3)
    leaf = tf.Raw(
        tf.call("omegaconf.nodes", "AnyNode") + tf.push({"_val": 2, "_parent": None}) + b"b"
    )
    section = tf.Raw(
        tf.call("omegaconf.dictconfig", "DictConfig")
        + tf.push({"_content": {"n_heads": leaf, "length": 128}, "_parent": None})
        + b"b"
    )
    hyper = {"config": {"model": section}, "tokenizer": tf.call("os", "system", "false")}
    found = official.read(checkpoint(tmp_path / "b.ckpt", state, hyper_parameters=hyper))
    assert (found.heads, found.length) == (2, 128)
    assert layout.heads_of(768, None, None, "a file") == 12


def test_text_setup():
    def setup(vocab_size, length=None):
        sizes = layout.Sizes(vocab_size, 768, 128, 12, 4, False, False)
        known = official.text_defaults(vocab_size)
        return official.Official("x", {}, sizes, 12, "raw", known[0], length or known[1], {}, ())

    assert setup(30522).text_setup() == ({"name": "bert-base-uncased", "options": {}}, 128)
    assert setup(50258).text_setup() == ({"name": "gpt2", "options": {"pad": True}}, 1024)
    assert setup(50257).text_setup(length=64) == ({"name": "gpt2", "options": {"pad": False}}, 64)
    assert setup(27).text_setup("characters", 9) == ({"name": "characters", "options": {}}, 9)
    with pytest.raises(UserError, match="vocabulary of 27 tokens"):
        setup(27).text_setup()
    with pytest.raises(UserError, match="block length"):
        setup(27).text_setup("characters")


def test_unreadable_sources(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "empty").mkdir()
    save_file(random_state(), tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    tf.save(tmp_path / "list.ckpt", [1, 2])
    tf.save(tmp_path / "none.ckpt", {"state_dict": {}})
    tf.save(tmp_path / "odd.ckpt", {"state_dict": [1, 2]})
    twice = prefixed(random_state()) | prefixed(random_state(), "backbone._orig_mod.")
    tf.save_state(tmp_path / "twice.ckpt", twice)
    for name, sentence in {
        "bad.safetensors": "not a readable safetensors",
        "cut.safetensors": "not a readable safetensors",
        "empty": "has no model.safetensors",
        "absent.ckpt": "no file or folder",
        "list.ckpt": "holds no dictionary",
        "none.ckpt": "has no weights",
        "twice.ckpt": "has the tensor vocab_embed.embedding twice; it is not an official",
        "odd.ckpt": "odd.ckpt has no state_dict; give a checkpoint of the official training",
    }.items():
        with pytest.raises(UserError, match=sentence):
            official.read(tmp_path / name)
    with pytest.raises(UserError, match="one set of weights"):
        official.read(tmp_path / "good.safetensors", "ema")
    for text, sentence in (("{", "is not readable JSON .*again"), ("[1]", "holds no JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"config\.json {sentence}"):
            official.read(tmp_path / "good.safetensors")


def test_recorded_checkpoints(shared):
    folder = shared / "golden/ckpt"
    raw = load_file(folder / "hub_fmlm_raw/model.safetensors")
    ema = load_file(folder / "hub_fmlm_ema/model.safetensors")
    for name in ("fmlm.ckpt", "fmlm_orig_mod.ckpt"):
        for weights, expected in ((None, ema), ("ema:0.9999", ema), ("raw", raw)):
            found = official.read(folder / name, weights)
            assert found.sizes.two_times and found.heads == 2 and found.length == 6
            assert set(found.state) | {layout.INV_FREQ} == set(expected)
            for key, array in found.state.items():
                np.testing.assert_array_equal(array, expected[key])
    trained = np.load(shared / "golden/train/adamw_warmup_5steps.npz")
    for weights, prefix in ((None, "out/final_ema/"), ("raw", "out/final_param/")):
        for name, array in official.read(folder / "flm.ckpt", weights).state.items():
            np.testing.assert_array_equal(array, trained[prefix + name])
    several = folder / "flm_feb_two_emas.ckpt"
    slow, fast = (official.read(several, w).state for w in ("ema:0.9999", "ema:0.3"))
    assert any((slow[name] != fast[name]).any() for name in slow)
    assert official.read(folder / "flm_no_ema.ckpt").weights == "raw"
