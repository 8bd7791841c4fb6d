"""The reader of PyTorch files: right numbers from honest files, nothing run by hostile ones."""

import copyreg
import os
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_files as tf

from flm_jax.errors import UserError
from flm_jax.interop import pickle_machine, torch_checkpoint
from flm_jax.interop.pickle_values import Foreign, PickleError

VALUES = np.arange(24, dtype=np.float32)


def load_one(path, piece, storages=None, **options):
    return torch_checkpoint.load(tf.save(path, {"x": piece}, storages, **options))["x"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64"])
def test_contiguous_tensor_comes_back(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    got = load_one(tmp_path / "a.ckpt", tf.tensor("0", array), {"0": array}).numpy()
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_strides_offset_and_shared_storage(tmp_path):
    window = tf.tensor("0", VALUES, offset=2, shape=(3, 4), strides=(1, 5))
    tree = {"transposed": window, "all": tf.tensor("0", VALUES)}
    loaded = torch_checkpoint.load(tf.save(tmp_path / "a.ckpt", tree, {"0": VALUES}))
    expected = np.array([[2 + i + 5 * j for j in range(4)] for i in range(3)], np.float32)
    np.testing.assert_array_equal(loaded["transposed"].numpy(), expected)
    assert np.shares_memory(loaded["transposed"].numpy(), loaded["all"].numpy())


def test_scalar_and_empty_tensors(tmp_path):
    tree = {
        "scalar": tf.tensor("0", VALUES, offset=7, shape=(), strides=()),
        "empty": tf.tensor("0", VALUES, shape=(0, 5), strides=(5, 1)),
    }
    loaded = torch_checkpoint.load(tf.save(tmp_path / "a.ckpt", tree, {"0": VALUES}))
    assert loaded["scalar"].numpy() == 7.0 and loaded["scalar"].shape == ()
    assert loaded["empty"].numpy().shape == (0, 5)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_big_endian_file(tmp_path, dtype):
    array = np.array([1.5, -2.25, 3.0], dtype)
    swapped = array.view(f"u{array.itemsize}").byteswap()
    piece = tf.tensor("0", array)
    got = load_one(tmp_path / "a.ckpt", piece, {"0": swapped}, extra={"byteorder": b"big"})
    np.testing.assert_array_equal(got.numpy(), array)


def test_parameter_untyped_tensor_size_and_numpy_scalar(tmp_path):
    untyped = tf.reference("storage", tf.name("torch.storage", "UntypedStorage"), "0", "cpu", 96)
    hooks = tf.call("collections", "OrderedDict")
    dtype = tf.Raw(
        tf.call("numpy", "dtype", "f8", False, True)
        + tf.push((3, "<", None, None, None, -1, -1, 0))
        + b"b"
    )
    content = tf.call("_codecs", "encode", np.float64(2.5).tobytes().decode("latin1"), "latin1")
    tree = {
        "parameter": tf.call(
            "torch._utils", "_rebuild_parameter", tf.tensor("0", VALUES), True, hooks
        ),
        "v3": tf.call(
            *("torch._utils", "_rebuild_tensor_v3", untyped, 0, (24,), (1,), False, hooks),
            tf.name("torch", "float32"),
        ),
        "size": tf.call("torch", "Size", [2, 3]),
        "score": tf.call("numpy.core.multiarray", "scalar", dtype, content),
    }
    loaded = torch_checkpoint.load(tf.save(tmp_path / "a.ckpt", tree, {"0": VALUES}))
    np.testing.assert_array_equal(loaded["parameter"].numpy(), VALUES)
    np.testing.assert_array_equal(loaded["v3"].numpy(), VALUES)
    assert loaded["size"] == (2, 3)
    assert loaded["score"] == 2.5


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol(protocol):
    value = {
        "a": [1, -5, 2**70, 0.5, True, None, "ä\n'", b"\x00\xff", (), (1,), (1, 2), (1, 2, 3, 4)],
        "nested": {("x", 1): [[]] * 3},
        "sets": [{1, 2}, frozenset({3}), bytearray(b"ab")],
    }
    assert pickle_machine.run(pickle.dumps(value, protocol), {}) == value


class Payload:
    """Pickles into a call of os.system."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def attacks(command: str) -> dict[str, bytes]:
    """One pickle per way of reaching a callable; each would run `command` under pickle.loads."""
    text = tf.short_string(command)
    system = b"cos\nsystem\n"
    arguments = text + b"\x85"
    evaluate = f"__import__('os').system({command!r})"
    return {
        "reduce protocol 2": pickle.dumps(Payload(command), 2),
        "reduce protocol 4": pickle.dumps(Payload(command), 4),
        "inst": b"(" + text + b"ios\nsystem\n.",
        "obj": b"(" + system + text + b"o.",
        "newobj": b"\x80\x02" + system + arguments + b"\x81.",
        "newobj_ex": b"\x80\x04" + system + arguments + b"}\x92.",
        "eval": b"\x80\x02" + tf.call("builtins", "eval", evaluate) + b".",
        "build": b"\x80\x02" + tf.call("types", "SimpleNamespace") + tf.push({"a": 1}) + b"b.",
        "getattr": b"\x80\x02"
        + tf.call("builtins", "getattr", tf.name("os", "path"), "join")
        + arguments
        + b"R.",
        "callback in a dict": b"\x80\x02"
        + tf.call("collections", "defaultdict", tf.Raw(system))
        + b".",
        "extension": b"\x80\x02\x82\xf5" + arguments + b"R.",
    }


@pytest.mark.parametrize("attack", attacks(""))
def test_no_way_of_calling_runs_anything(tmp_path, attack, monkeypatch):
    marker = tmp_path / "ran"
    data = attacks(f"touch {marker}")[attack]
    copyreg.add_extension("os", "system", 0xF5)
    monkeypatch.setitem(copyreg._extension_cache, 0xF5, os.system)
    monkeypatch.setattr(os, "system", lambda command: marker.write_text(command))
    try:
        result = pickle_machine.run(data, {})
    finally:
        copyreg.remove_extension("os", "system", 0xF5)
    assert not marker.exists()
    assert isinstance(result, Foreign | dict)


def test_the_attacks_are_real(tmp_path):
    marker = tmp_path / "ran"
    pickle.loads(attacks(f"touch {marker}")["reduce protocol 4"])
    assert marker.exists()


def test_nothing_is_imported():
    sys.modules.pop("antigravity", None)
    pickle_machine.run(b"\x80\x02cantigravity\nfly\n.", {})
    pickle_machine.run(b"\x80\x04\x8c\x0bantigravity\x8c\x03fly\x93.", {})
    assert "antigravity" not in sys.modules


def test_code_inside_a_storage_reference_is_refused(tmp_path):
    inner = tf.call("os", "system", f"touch {tmp_path / 'ran'}")
    piece = tf.reference("storage", inner, "0", "cpu", 1)
    with pytest.raises(UserError, match="not a tensor storage"):
        load_one(tmp_path / "a.ckpt", piece)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02(.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"\x80\x02}((((tttttK\x01s.",
        b"\x80\x02})" + b"2\x86" * 20 + b"K\x01s.",  # a key that takes 2^20 steps to hash
        b"\x80\x02h\x07.",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # claims 2^63 bytes
        b"\x80\x02X\xff\xff\xff\x7fab.",
        b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",  # would allocate 2 GiB
        b"I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02K\x01Q.",
        b"P0\n.",
    ],
)
def test_damaged_pickles_are_refused(data):
    with pytest.raises(PickleError):
        pickle_machine.run(data, {})


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"\x80\x02}", "damaged near byte 2: pickle exhausted before seeing STOP"),
        (b"\x80\x02(\x85.", r"a value is missing \(byte 3\)"),
        (b"\x80\x02(q\x00.", "a value is missing"),
        (b"\x80\x02}(K\x01u.", "a dictionary key without a value"),
        (b"\x80\x02]K\x01K\x02s.", "items are set on something that is not a dictionary"),
        (b"\x80\x02}K\x01a.", "values are appended to something that is not a list"),
        (b"\x80\x02K\x01)R.", "a call of something that is not a function"),
        (b"\x80\x04K\x01K\x02\x93.", "a global whose name is not text"),
        (tf.call("builtins", "list", 1) + b".", "a container is filled from something that is no"),
        (tf.call("_codecs", "encode", "a", "utf-16") + b".", "an unusual text encoding"),
    ],
)
def test_what_is_wrong_with_a_pickle_is_said(data, sentence):
    with pytest.raises(PickleError, match=sentence):
        pickle_machine.run(data, {})


def test_copying_in_a_loop_is_stopped():
    numbers = b"](" + b"K\x00" * 100_000 + b"eq\x00"
    copies = b"cbuiltins\nlist\nq\x01" + b"h\x01h\x00\x85R0" * 1000
    with pytest.raises(PickleError, match="far more data"):
        pickle_machine.run(b"\x80\x02" + numbers + copies + b".", {})


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"count": 10**12}, "should have 4000000000000 bytes and has 96"),
        ({"shape": (25,), "strides": (1,)}, "does not fit into its storage"),
        ({"offset": 24, "shape": (1,), "strides": (1,)}, "does not fit"),
        ({"shape": (10**12,), "strides": (0,)}, "does not fit"),
        ({"shape": (2, 12), "strides": (13, 1)}, "does not fit"),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, options, sentence):
    tensor = load_one(tmp_path / "a.ckpt", tf.tensor("0", VALUES, **options), {"0": VALUES})
    with pytest.raises(UserError, match=sentence):
        tensor.numpy()


@pytest.mark.parametrize("options", [{"offset": -1}, {"shape": (-1,), "strides": (1,)}])
def test_negative_geometry_is_refused(tmp_path, options):
    with pytest.raises(UserError, match="impossible number"):
        load_one(tmp_path / "a.ckpt", tf.tensor("0", VALUES, **options), {"0": VALUES})


BARE = tf.reference("storage", tf.name("torch", "FloatStorage"), "0", "cpu", 24)


@pytest.mark.parametrize(
    "piece, sentence",
    [
        (tf.call("torch", "Size", 5), "a tensor shape that is not a short list"),
        (tf.call("torch", "Size", [1] * 99), "a tensor shape that is not a short list"),
        (tf.call("torch._utils", "_rebuild_tensor", 1, 0, (2,), (1,)), "without a storage"),
        (
            tf.call("torch._utils", "_rebuild_tensor_v3", BARE, 0, (2,), (1,), False, {}, "f8"),
            "a tensor without a storage or of an unknown dtype",
        ),
        (tf.tensor("0", VALUES, shape=(2, 3), strides=(1,)), "shape and strides differ in length"),
        (tf.tensor("0", VALUES, shape=(2**20, 2**30), strides=(0, 0)), "of impossible size"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_said(tmp_path, piece, sentence):
    with pytest.raises(UserError, match=f"no.* readable PyTorch checkpoint: .*{sentence}.*again"):
        load_one(tmp_path / "a.ckpt", piece, {"0": VALUES})


def test_a_spoilt_header_of_a_data_entry(tmp_path):
    path = tf.save(tmp_path / "a.ckpt", {"x": tf.tensor("0", VALUES)}, {"0": VALUES})
    content = path.read_bytes()
    start = content.rindex(b"PK\x03\x04", 0, content.index(VALUES.tobytes()))
    path.write_bytes(content[:start] + b"QK" + content[start + 2 :])
    with pytest.raises(UserError, match="is damaged at archive/data/0; download it again"):
        torch_checkpoint.load(path)["x"].numpy()


def test_missing_data_entry(tmp_path):
    tensor = load_one(tmp_path / "a.ckpt", tf.tensor("5", VALUES), {"0": VALUES})
    with pytest.raises(UserError, match="data/5 is missing"):
        tensor.numpy()


def test_flipped_bit_is_noticed(tmp_path):
    path = tf.save(tmp_path / "a.ckpt", {"x": tf.tensor("0", VALUES)}, {"0": VALUES})
    content = bytearray(path.read_bytes())
    content[content.index(VALUES.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="checksum of archive/data/0"):
        torch_checkpoint.load(path)["x"].numpy()


def test_files_that_are_no_checkpoint(tmp_path):
    whole = tf.save(tmp_path / "a.ckpt", {"x": tf.tensor("0", VALUES)}, {"0": VALUES}).read_bytes()
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    tf.save(tmp_path / "deflated.ckpt", {"x": 1}, compression=zipfile.ZIP_DEFLATED)
    legacy = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    files = {
        "truncated.ckpt": (whole[: len(whole) // 2], "truncated or damaged"),
        "text.ckpt": (b"not a checkpoint at all", "not a PyTorch checkpoint"),
        "empty.ckpt": (b"", "not a PyTorch checkpoint"),
        "legacy.ckpt": (legacy, "PyTorch before 1.6"),
        "other.ckpt": (None, "a zip file but no PyTorch checkpoint"),
        "deflated.ckpt": (None, "compressed or encrypted"),
        "absent.ckpt": (None, "cannot read the checkpoint"),
    }
    for name, (content, sentence) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            torch_checkpoint.load(tmp_path / name)


@pytest.mark.parametrize("position", range(0, 60))
def test_damaged_bytes_never_raise_anything_else(tmp_path, position):
    piece = tf.tensor("0", VALUES, shape=(4, 6))
    content = bytearray(tf.push({"x": piece}))
    content[position * len(content) // 60] ^= 0x5A
    path = tf.save(tmp_path / "a.ckpt", bytes(content), {"0": VALUES})
    try:
        tree = torch_checkpoint.load(path)
        for value in tree.values() if isinstance(tree, dict) else []:
            if isinstance(value, torch_checkpoint.Tensor):
                value.numpy()
    except UserError as error:
        assert str(path) in str(error)
