"""Read a PyTorch checkpoint (the zip format of torch >= 1.6) without PyTorch and without trust.

`load(path)` returns the pickled tree with a `Tensor` where PyTorch would build a tensor and a
`pickle_values.Foreign` where it would import a class. A Tensor is a description; its numbers stay
in the memory-mapped file until `.numpy()` is called, which checks every size against the file.
"""

import dataclasses
import math
import mmap
import pathlib
import zipfile
import zlib
from collections.abc import Callable

import ml_dtypes
import numpy as np

from flm_jax.errors import UserError
from flm_jax.interop import pickle_machine
from flm_jax.interop.pickle_values import Foreign, PickleError, Value

_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = b"PK\x03\x04"
_MAX_DIMENSIONS = 64

_DTYPES = {
    name: np.dtype(name)
    for name in "float64 float32 float16 complex64 complex128 int64 int32 int16 int8 uint8 "
    "uint16 uint32 uint64 bool".split()
} | {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A flat array in the file: `count` elements of `dtype` under the archive name `key`."""

    archive: "_Archive"
    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A strided window on a storage; `shape`, `strides` and `offset` count elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __repr__(self) -> str:
        return f"<tensor {self.dtype} {self.shape}>"

    def numpy(self) -> np.ndarray:
        """The values, as a read-only window on the mapped file where the byte order allows.

        Raises UserError if the storage is missing, damaged or too small for this tensor.
        """
        archive, key = self.storage.archive, self.storage.key
        content = archive.storage(key, self.storage.count * self.storage.dtype.itemsize)
        available = len(content) // self.dtype.itemsize
        last = self.offset + sum(
            (size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)
        )
        count = math.prod(self.shape)
        if count and (last >= available or count > available):
            raise UserError(
                f"{archive.path} is damaged: a tensor of shape {self.shape} does not fit into its "
                f"storage {key!r} of {available} elements; download the file again"
            )
        if not count:
            return np.zeros(self.shape, self.dtype)
        flat = np.frombuffer(content, np.dtype(f"V{self.dtype.itemsize}"), available)
        if archive.big_endian and self.dtype.itemsize > 1:
            flat = _swapped(flat, self.dtype)
        else:
            flat = flat.view(self.dtype)
        byte_strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            flat[self.offset :], self.shape, byte_strides, writeable=False
        )


def load(path: str | pathlib.Path) -> Value:
    """The tree stored in the checkpoint at `path`; nothing of the file is executed.

    Raises UserError if `path` is not a PyTorch zip checkpoint or is damaged.
    """
    path = pathlib.Path(path)
    archive = _Archive(path)
    try:
        return pickle_machine.run(archive.pickle(), _known(), archive.persistent)
    except PickleError as error:
        raise UserError(
            f"{path} does not hold a readable PyTorch checkpoint: {error}; download it again or "
            "save it again with torch.save"
        ) from None


class _Archive:
    """The zip container: where each storage lies in the mapped file."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.map = _map_file(path)
        self.checked: dict[str, memoryview] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise self._no_checkpoint(error) from None
        pickles = [n for n in self.entries if n.count("/") == 1 and n.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(
                f"{path} is a zip file but no PyTorch checkpoint (it has {len(pickles)} entries "
                "named data.pkl, one is needed); give the .ckpt file itself"
            )
        self.folder = pickles[0].removesuffix("data.pkl")
        order = self.folder + "byteorder"
        self.big_endian = order in self.entries and bytes(self.read(order)).strip() == b"big"

    def _no_checkpoint(self, error: Exception) -> UserError:
        head = bytes(self.map[:16])
        if head.startswith(_LEGACY_MAGIC):
            return UserError(
                f"{self.path} uses the format of PyTorch before 1.6, which cannot be read safely; "
                "load it with torch.load and save it again with torch.save"
            )
        if head.startswith(_LOCAL_HEADER):
            return UserError(
                f"{self.path} is a truncated or damaged checkpoint ({error}); download it again"
            )
        return UserError(
            f"{self.path} is not a PyTorch checkpoint ({error}); give a .ckpt file, a .safetensors "
            "file or a folder with model.safetensors"
        )

    def read(self, name: str) -> memoryview:
        """The bytes of one entry (a window on the mapped file), checked against size and CRC."""
        if name in self.checked:
            return self.checked[name]
        entry = self.entries.get(name)
        if entry is None:
            raise UserError(f"{self.path} is damaged: {name} is missing; download it again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1:
            raise UserError(
                f"{self.path} is compressed or encrypted inside ({name}), which PyTorch never "
                "does; save it again with torch.save"
            )
        header = bytes(self.map[entry.header_offset : entry.header_offset + 30])
        start = entry.header_offset + 30
        if len(header) == 30:
            lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:], "little")
            start += sum(lengths)
        content = memoryview(self.map)[start : start + entry.file_size]
        if not header.startswith(_LOCAL_HEADER) or len(content) != entry.file_size:
            raise UserError(f"{self.path} is damaged at {name}; download it again")
        if zlib.crc32(content) != entry.CRC:
            raise UserError(
                f"{self.path} is damaged: the checksum of {name} is wrong; download it again"
            )
        self.checked[name] = content
        return content

    def pickle(self) -> bytes:
        return bytes(self.read(self.folder + "data.pkl"))

    def storage(self, key: str, size: int) -> memoryview:
        """The bytes of storage `key`, which the pickle declares to be `size` bytes long."""
        name = f"{self.folder}data/{key}"
        entry = self.entries.get(name)
        if entry is not None and entry.file_size != size:
            raise UserError(
                f"{self.path} is damaged: {name} should have {size} bytes and has "
                f"{entry.file_size}; download it again"
            )
        return self.read(name)

    def persistent(self, reference: Value) -> Storage:
        """The storage a persistent id ("storage", class, key, device, element count) names."""
        match reference:
            case ("storage", Foreign(name=class_name), str(key), _, int(count)) if count >= 0:
                storage_type = class_name.rpartition(".")[2]
                if storage_type in _STORAGES:
                    return Storage(self, key, _DTYPES[_STORAGES[storage_type]], count)
        raise PickleError("a reference that is not a tensor storage")


def _map_file(path: pathlib.Path) -> mmap.mmap | bytes:
    try:
        with open(path, "rb") as file:
            if path.stat().st_size == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(
            f"cannot read the checkpoint {path} ({error.strerror}); give the path of a .ckpt file"
        ) from None


def _swapped(flat: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Big-endian raw elements as native values (a complex number swaps each half)."""
    parts = 2 if dtype.kind == "c" else 1
    word = np.dtype(f">u{dtype.itemsize // parts}")
    return flat.view(word).astype(word.newbyteorder("=")).view(dtype)


def _known() -> dict[str, Callable[..., Value]]:
    """Our functions for the globals that tensors and numpy scalars are made of."""
    found: dict[str, Callable[..., Value]] = {
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
        "torch._utils._rebuild_parameter": _first_argument,
        "torch._utils._rebuild_parameter_with_state": _first_argument,
        "torch.Size": lambda sizes=(): tuple(_counts(sizes)),
    }
    for package in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found[f"{package}.scalar"] = _numpy_scalar
    return found


def _counts(values: Value) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > _MAX_DIMENSIONS:
        raise PickleError("a tensor shape that is not a short list")
    if any(type(value) is not int or not 0 <= value < 2**62 for value in values):
        raise PickleError("a tensor shape with an impossible number")
    return tuple(values)


def _tensor(storage: Value, offset: int, shape: Value, strides: Value, *_unused: Value) -> Tensor:
    if not isinstance(storage, Storage):
        raise PickleError("a tensor without a storage")
    return _window(storage, storage.dtype, offset, shape, strides)


def _tensor_with_dtype(
    storage: Value,
    offset: Value,
    shape: Value,
    strides: Value,
    _gradient: Value,
    _hooks: Value,
    dtype: Value,
    *_unused: Value,
) -> Tensor:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Foreign) else None
    if not isinstance(storage, Storage) or name not in _DTYPES:
        raise PickleError("a tensor without a storage or of an unknown dtype")
    return _window(storage, _DTYPES[name], offset, shape, strides)


def _window(
    storage: Storage, dtype: np.dtype, offset: Value, shape: Value, strides: Value
) -> Tensor:
    (offset,) = _counts((offset,))
    shape, strides = _counts(shape), _counts(strides)
    if len(shape) != len(strides):
        raise PickleError("a tensor whose shape and strides differ in length")
    if math.prod(max(size, 1) for size in shape) >= 2**48:
        raise PickleError("a tensor of impossible size")
    return Tensor(storage, dtype, offset, shape, strides)


def _first_argument(value: Value, *_unused: Value) -> Value:
    return value


def _numpy_scalar(dtype: Value, content: Value = None) -> Value:
    """A numpy number as a Python number; anything but a plain number stays a placeholder."""
    code = dtype.args[0] if isinstance(dtype, Foreign) and dtype.args else None
    if isinstance(content, bytes) and isinstance(code, str) and code[:1] in "fiubc":
        big = isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">"
        plain = np.dtype(code).newbyteorder(">" if big else "<")
        if plain.kind in "fiubc" and plain.itemsize == len(content):
            return np.frombuffer(content, plain)[0].item()
    return Foreign("numpy.scalar", (dtype, content))
