"""Small Llama models in one file, as llama2.c writes them: seven sizes, then float32 arrays.

    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len      int32, little endian
    token embedding [V, D]; norms [N, D]; wq, wk, wv, wo; norms [N, D]; w1, w2, w3; last norm [D];
    two tables of rotary positions (not read); an output head [V, D] if vocab_size is negative

Matrices are [out, in], one layer after the other. Beside such a file lies its vocabulary
(`tokenizers.llama_file`).
"""

import pathlib
from typing import Any

import numpy as np

from flm_jax.errors import UserError
from flm_jax.models.decoder import Shape

_SIZES = 7
_EPSILON, _ROTARY_BASE = 1e-5, 10_000.0  # what the format does not tell; fixed in its code
_LARGEST = 1 << 20  # of any size: beyond it the file is no such model


def is_llama_file(path: pathlib.Path) -> bool:
    """Whether a file begins with possible sizes and has the length that they ask for."""
    try:
        sizes = _sizes(path)
    except (OSError, ValueError):
        return False
    return path.stat().st_size == 4 * (_SIZES + _count(sizes))


def read(path: pathlib.Path) -> tuple[dict[str, Any], Shape, int]:
    """(parameters of `models.decoder`, shape, longest sequence) of a file.

    Raises UserError if it cannot be read or is not such a model.
    """
    try:
        sizes = _sizes(path)
        numbers = np.fromfile(path, "<f4", offset=4 * _SIZES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a Llama model in the layout of llama2.c ({error}); give such a file, "
            "a GPT-2 folder, or a workdir of an autoregressive run"
        ) from None
    if len(numbers) != _count(sizes):
        raise UserError(
            f"{path} holds {len(numbers):,} numbers, but its sizes ask for {_count(sizes):,}; "
            "download it again"
        )
    width, hidden, depth, heads, shared, vocab, length = sizes
    k_width, place = width // heads, 0

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        size = int(np.prod(shape))
        place += size
        return numbers[place - size : place].reshape(shape)

    def kernels(out: int, into: int) -> np.ndarray:
        return take(depth, out, into).transpose(0, 2, 1)

    table_VD = take(abs(vocab), width)
    norm_1 = take(depth, width)
    qkv = np.concatenate(
        [kernels(heads * k_width, width), *(kernels(shared * k_width, width) for _ in "kv")], -1
    )
    out, norm_2 = kernels(width, width), take(depth, width)
    gate, mlp_out, mlp_in = kernels(hidden, width), kernels(width, hidden), kernels(hidden, width)
    norm = take(width)
    take(2, length, k_width // 2)
    head_VD = table_VD if vocab > 0 else take(-vocab, width)
    params = {
        "embed": {"table": table_VD},
        "blocks": {
            "norm_1": {"scale": norm_1},
            "qkv": {"kernel": qkv},
            "out": {"kernel": out},
            "norm_2": {"scale": norm_2},
            "mlp_gate": {"kernel": gate},
            "mlp_in": {"kernel": mlp_in},
            "mlp_out": {"kernel": mlp_out},
        },
        "norm": {"scale": norm},
        "head": {"kernel": head_VD.T, "bias": np.zeros(abs(vocab), np.float32)},
    }
    return params, Shape(heads, shared, _EPSILON, False, _ROTARY_BASE), length


def _sizes(path: pathlib.Path) -> list[int]:
    sizes = np.fromfile(path, "<i4", count=_SIZES).tolist()
    if len(sizes) < _SIZES or not all(0 < abs(size) <= _LARGEST for size in sizes):
        raise ValueError(f"its first numbers are {sizes}, not sizes")
    width, _, _, heads, shared, _, _ = sizes
    if min(sizes[:5] + sizes[6:]) < 1 or width % heads or heads % shared or width // heads % 2:
        raise ValueError(f"its sizes are {sizes}, which do not fit each other")
    return sizes


def _count(sizes: list[int]) -> int:
    """Numbers behind the sizes."""
    width, hidden, depth, heads, shared, vocab, length = sizes
    k_width = width // heads
    layer = 2 * width + 2 * width * width + 2 * shared * k_width * width + 3 * width * hidden
    tables = (2 if vocab < 0 else 1) * abs(vocab) * width
    return tables + depth * layer + width + length * k_width
