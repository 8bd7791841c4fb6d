"""GPT-2 in plain JAX, for scoring text: float32, one scan over the blocks, logits in chunks.

Loads a folder in the Hugging Face layout (config.json, model.safetensors or its shards, vocabulary
files), of any size from gpt2 to gpt2-xl and in any float type. Letters: B rows, L positions,
D width, H heads, K width of a head, V ids.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.errors import UserError
from flm_jax.flow.trees import Params
from flm_jax.host import folders, progress
from flm_jax.tokenizers.gpt2 import Gpt2

_PRECISION = jax.lax.Precision.HIGHEST  # accelerators would otherwise round to bf16 or TF32
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"  # beside several shards, instead of one file
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_CHUNK = 512  # tokens whose logits exist at once: 100 MB at V = 50257
# Our leaf -> (name inside a block, factors of the width D in its shape).
_BLOCK = {
    "norm_1/scale": ("ln_1.weight", (1,)),
    "norm_1/bias": ("ln_1.bias", (1,)),
    "qkv/kernel": ("attn.c_attn.weight", (1, 3)),
    "qkv/bias": ("attn.c_attn.bias", (3,)),
    "out/kernel": ("attn.c_proj.weight", (1, 1)),
    "out/bias": ("attn.c_proj.bias", (1,)),
    "norm_2/scale": ("ln_2.weight", (1,)),
    "norm_2/bias": ("ln_2.bias", (1,)),
    "mlp_in/kernel": ("mlp.c_fc.weight", (1, 4)),
    "mlp_in/bias": ("mlp.c_fc.bias", (4,)),
    "mlp_out/kernel": ("mlp.c_proj.weight", (4, 1)),
    "mlp_out/bias": ("mlp.c_proj.bias", (1,)),
}
# What this forward pass assumes of config.json, with the values that mean the assumption holds.
_ASSUMED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of a GPT-2; hashable, so usable as a static argument of jit."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    positions: int
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A loaded GPT-2: parameters on the device, tokenizer, end-of-text id, the folder's name."""

    config: Config
    params: Params
    tokenizer: Gpt2
    eos_id: int
    name: str

    def nlls(self, tokens_BL: np.ndarray, mask_BL: np.ndarray | None = None) -> np.ndarray:
        """-log p of tokens 2..L given those before: float32 (B, L-1).

        `mask_BL` is 0 where a token may not be attended to (padding). Raises UserError if L exceeds
        the model's context.
        """
        length = np.shape(tokens_BL)[1]
        if length > self.config.positions:
            raise UserError(
                f"{self.name} scores at most {self.config.positions} tokens at once, not {length}; "
                "lower the length"
            )
        mask_BL = np.ones_like(tokens_BL) if mask_BL is None else mask_BL
        return np.asarray(
            next_token_nlls(self.params, self.config, jnp.asarray(tokens_BL), jnp.asarray(mask_BL))
        )


def load(folder: str | os.PathLike) -> Scorer:
    """The GPT-2 in `folder`; raises UserError naming what is missing, damaged or unsupported."""
    folder = folders.expanded(folder)
    config, eos_id = _read_config(folder)
    params = _read_params(folder, config)
    tokenizer = Gpt2.read(str(folder), pad=False)
    if tokenizer.vocab_size > config.vocab_size or eos_id != tokenizer.eos_id:
        raise UserError(
            f"the tokenizer in {folder} ({tokenizer.vocab_size} tokens, end of text "
            f"{tokenizer.eos_id}) does not belong to its model ({config.vocab_size} tokens, end of "
            f"text {eos_id}); take all files from the same GPT-2"
        )
    return Scorer(config, jax.device_put(params), tokenizer, eos_id, folder.name)


def features(params: Params, config: Config, tokens_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """The last layer's normalised features, float32 (B, L, D)."""
    length = tokens_BL.shape[1]
    h_BLD = params["tokens"][tokens_BL] + params["positions"][None, :length]
    causal_LL = jnp.tril(jnp.ones((length, length), bool))
    seen_BLL = causal_LL[None] & (mask_BL != 0)[:, None, :]

    def block(h_BLD, layer):
        x_BLD = _norm(h_BLD, layer["norm_1/scale"], layer["norm_1/bias"], config.epsilon)
        h_BLD = h_BLD + _attention(x_BLD, layer, config.heads, seen_BLL)
        x_BLD = _norm(h_BLD, layer["norm_2/scale"], layer["norm_2/bias"], config.epsilon)
        inner_BLF = jax.nn.gelu(_linear(x_BLD, layer, "mlp_in"), approximate=True)
        return h_BLD + _linear(inner_BLF, layer, "mlp_out"), None

    h_BLD, _ = jax.lax.scan(block, h_BLD, params["blocks"])
    return _norm(h_BLD, params["norm/scale"], params["norm/bias"], config.epsilon)


@functools.partial(jax.jit, static_argnames="config")
def log_probs(params: dict, config: Config, tokens_BL: jax.Array, mask_BL: jax.Array) -> jax.Array:
    """All next-token log-probabilities (B, L, V); for small vocabularies and tests."""
    h_BLD = features(params, config, tokens_BL, mask_BL)
    return jax.nn.log_softmax(_logits(params, h_BLD))


@functools.partial(jax.jit, static_argnames="config")
def next_token_nlls(
    params: dict, config: Config, tokens_BL: jax.Array, mask_BL: jax.Array
) -> jax.Array:
    """-log p of each token from the second on, float32 (B, L-1), `_CHUNK` tokens at a time."""
    batch, length = tokens_BL.shape
    h_BLD = features(params, config, tokens_BL, mask_BL)
    count = batch * (length - 1)
    chunks = -(-count // _CHUNK)
    padding = chunks * _CHUNK - count
    h_ND = jnp.pad(h_BLD[:, :-1].reshape(count, config.width), ((0, padding), (0, 0)))
    target_N = jnp.pad(tokens_BL[:, 1:].reshape(count), (0, padding))

    def chunk(args):
        h_CD, target_C = args
        logits_CV = _logits(params, h_CD)
        picked_C = jnp.take_along_axis(logits_CV, target_C[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits_CV, axis=-1) - picked_C

    chunked = h_ND.reshape(chunks, _CHUNK, config.width), target_N.reshape(chunks, _CHUNK)
    return jax.lax.map(chunk, chunked).reshape(-1)[:count].reshape(batch, length - 1)


def _attention(x_BLD: jax.Array, layer: dict, heads: int, seen_BLL: jax.Array) -> jax.Array:
    batch, length, width = x_BLD.shape
    qkv = _linear(x_BLD, layer, "qkv").reshape(batch, length, 3, heads, width // heads)
    q_BLHK, k_BLHK, v_BLHK = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores_BHLL = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK, precision=_PRECISION)
    scores_BHLL = scores_BHLL / np.sqrt(width // heads).astype(np.float32)
    lowest = jnp.finfo(scores_BHLL.dtype).min
    weights_BHLL = jax.nn.softmax(jnp.where(seen_BLL[:, None], scores_BHLL, lowest))
    mixed_BLHK = jnp.einsum("bhlm,bmhk->blhk", weights_BHLL, v_BLHK, precision=_PRECISION)
    return _linear(mixed_BLHK.reshape(batch, length, width), layer, "out")


def _linear(x: jax.Array, layer: dict, name: str) -> jax.Array:
    product = jnp.matmul(x, layer[f"{name}/kernel"], precision=_PRECISION)
    return product + layer[f"{name}/bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def _norm(x_BLD: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    centred_BLD = x_BLD - x_BLD.mean(-1, keepdims=True)
    variance_BL1 = jnp.square(centred_BLD).mean(-1, keepdims=True)
    return (
        centred_BLD * jax.lax.rsqrt(variance_BL1 + epsilon) * scale_D[None, None]
        + bias_D[None, None]
    )


def _logits(params: dict, h: jax.Array) -> jax.Array:
    head_VD = params.get("head", params["tokens"])  # the published models tie the two
    return jnp.einsum("...d,vd->...v", h, head_VD, precision=_PRECISION)


def _read_config(folder: pathlib.Path) -> tuple[Config, int]:
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        sizes = [raw[key] for key in ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")]
        if any(type(size) is not int or size < 1 for size in sizes):
            raise ValueError(f"impossible sizes {sizes}")
        epsilon = float(raw.get("layer_norm_epsilon", 1e-5))
    except OSError as error:
        raise UserError(
            f"the scorer folder {folder} has no readable config.json ({error.strerror or error}); "
            "give a folder with a GPT-2 in the Hugging Face layout"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a GPT-2 configuration ({error}); download it again"
        ) from None
    for key, values in _ASSUMED.items():
        if raw.get(key, values[0]) not in values:
            raise UserError(
                f"{path} has {key} = {raw[key]!r}, but only {values[0]!r} is supported; "
                "use gpt2, gpt2-medium, gpt2-large or gpt2-xl"
            )
    vocab_size, width, depth, heads, positions = sizes
    config = Config(vocab_size, width, depth, heads, positions, epsilon)
    if config.width % config.heads or raw.get("n_inner") not in (None, 4 * config.width):
        raise UserError(f"{path} has sizes that no GPT-2 has; use one of the published ones")
    return config, raw.get("eos_token_id", config.vocab_size - 1)


def _read_params(folder: pathlib.Path, config: Config) -> Params:
    from safetensors import SafetensorError, safe_open

    path = folder / _WEIGHTS
    with contextlib.ExitStack() as stack:
        try:
            where = {}  # name inside the transformer -> (open file, its name there, its path)
            for path in _shards(folder):
                file = stack.enter_context(safe_open(path, framework="np"))
                for name in file.keys():  # noqa: SIM118 - the file object is not a dictionary
                    where[name.removeprefix("transformer.")] = file, name, path

            def tensor(name: str, *shape: int) -> np.ndarray:
                if name not in where:
                    raise UserError(f"{folder} lacks the tensor {name}; download the GPT-2 again")
                file, stored, path = where[name]
                found = tuple(file.get_slice(stored).get_shape())
                if found != shape:
                    raise UserError(
                        f"{path}: {name} has shape {found} where config.json says {shape}; "
                        "take both files from the same GPT-2"
                    )
                array = file.get_tensor(stored)
                if array.dtype.name not in _FLOATS:
                    raise UserError(
                        f"{path}: {name} has the type {array.dtype.name}; quantised weights cannot "
                        "be read, take the published ones"
                    )
                return np.asarray(array, np.float32)

            return _assemble(tensor, "lm_head.weight" in where, config)
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} is missing or not a readable safetensors file ({error}); put the "
                f"{_WEIGHTS} of a GPT-2 there (a pytorch_model.bin is not read)"
            ) from None


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the weights: one, or those that an index names."""
    index = folder / _INDEX
    if (folder / _WEIGHTS).exists() or not index.exists():
        return [folder / _WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(pathlib.PurePath(name).name != name for name in names):
            raise ValueError("its weight_map names no files of this folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards ({error}); download it again") from None
    return [folder / name for name in names]


def _assemble(tensor: Callable[..., np.ndarray], has_head: bool, config: Config) -> Params:
    """Our parameter dict; blocks are stacked on axis 0 so that a scan can run over them."""
    width = config.width
    blocks: dict[str, np.ndarray] = {}
    for layer in progress.bar(range(config.depth), desc="reading GPT-2", delay=2):
        for leaf, (name, factors) in _BLOCK.items():
            shape = tuple(factor * width for factor in factors)
            if leaf not in blocks:
                blocks[leaf] = np.empty((config.depth, *shape), np.float32)
            blocks[leaf][layer] = tensor(f"h.{layer}.{name}", *shape)
    head = {"head": tensor("lm_head.weight", config.vocab_size, width)} if has_head else {}
    return head | {
        "tokens": tensor("wte.weight", config.vocab_size, width),
        "positions": tensor("wpe.weight", config.positions, width),
        "blocks": blocks,
        "norm/scale": tensor("ln_f.weight", width),
        "norm/bias": tensor("ln_f.bias", width),
    }
