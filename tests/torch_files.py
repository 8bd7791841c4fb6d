"""Torch zip files written by hand for the tests: a tiny pickle assembler, no torch."""

import pickle
import struct
import zipfile

import numpy as np

STORAGE_TYPES = {"float32": "FloatStorage", "bfloat16": "BFloat16Storage", "int64": "LongStorage"}


class Raw(bytes):
    """Opcodes that leave exactly one value on the stack."""


def push(value) -> bytes:
    """Opcodes for plain values, Raw pieces and containers of both."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, dict):
        pairs = b"".join(push(key) + push(item) + b"s" for key, item in value.items())
        return b"}" + pairs
    if isinstance(value, list):
        return b"]" + b"".join(push(item) + b"a" for item in value)
    if isinstance(value, tuple):
        return b"(" + b"".join(push(item) for item in value) + b"t"
    body = pickle.dumps(value, protocol=2)
    return body[2:-1]


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *args) -> Raw:
    return Raw(name(module, attribute) + push(args) + b"R")


def reference(*parts) -> Raw:
    return Raw(push(tuple(parts)) + b"Q")


def tensor(key: str, array: np.ndarray, count=None, offset=0, shape=None, strides=None) -> Raw:
    """A tensor on storage `key`, by default a contiguous one of the array's shape."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(s) // array.itemsize for s in np.empty(shape, array.dtype).strides)
    storage_type = name("torch", STORAGE_TYPES[array.dtype.name])
    count = array.size if count is None else count
    storage = reference("storage", storage_type, key, "cpu", count)
    empty = call("collections", "OrderedDict")
    arguments = (storage, offset, shape, strides, False, empty)
    return call("torch._utils", "_rebuild_tensor_v2", *arguments)


def save(path, tree, storages=None, extra=None, compression=zipfile.ZIP_STORED):
    """Write `tree` (for `push`) and the storages' bytes as a torch zip file."""
    content = tree if isinstance(tree, bytes) and not isinstance(tree, Raw) else push(tree)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        for key, array in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(array).tobytes())
        for entry, data in (extra or {}).items():
            archive.writestr(f"archive/{entry}", data)
    return path


def save_state(path, state: dict, **more):
    """A checkpoint with a `state_dict` of contiguous tensors, plus other top-level values."""
    storages = {str(index): array for index, array in enumerate(state.values())}
    tensors = {n: tensor(str(i), a) for i, (n, a) in enumerate(state.items())}
    return save(path, {"state_dict": tensors, **more}, storages)


def short_string(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()
