"""GPT-2 for scoring text: its files, and the likelihoods of `models.decoder`, in float32.

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
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.trees import Params
from flm_jax.host import folders, progress
from flm_jax.models import decoder
from flm_jax.tokenizers.gpt2 import Gpt2

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

    @property
    def shape(self) -> decoder.Shape:
        return decoder.Shape(self.heads, self.heads, self.epsilon, centred=True)


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


@functools.partial(jax.jit, static_argnames="config")
def log_probs(
    params: Params, config: Config, tokens_BL: jax.Array, mask_BL: jax.Array
) -> jax.Array:
    """All next-token log-probabilities (B, L, V); for small vocabularies and tests."""
    return jnp.log(_posterior(params, config, tokens_BL, mask_BL).dense())


@functools.partial(jax.jit, static_argnames="config")
def next_token_nlls(
    params: Params, config: Config, tokens_BL: jax.Array, mask_BL: jax.Array
) -> jax.Array:
    """-log p of each token from the second on, float32 (B, L-1), `_CHUNK` tokens at a time."""
    posterior = _posterior(params, config, tokens_BL[:, :-1], mask_BL[:, :-1])
    return -posterior.log_prob(tokens_BL[:, 1:])


def _posterior(
    params: Params, config: Config, tokens_BL: jax.Array, mask_BL: jax.Array
) -> Posterior:
    net = decoder.decoder(params, config.shape, _CHUNK)
    h_BLD = decoder.features(params, config.shape, net.table[tokens_BL], mask_BL)
    return Posterior(h_BLD, net.head)


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
    blocks: dict[str, dict[str, np.ndarray]] = {}
    for layer in progress.bar(range(config.depth), desc="reading GPT-2", delay=2):
        for leaf, (name, factors) in _BLOCK.items():
            shape = tuple(factor * width for factor in factors)
            part, _, kind = leaf.partition("/")
            stacked = blocks.setdefault(part, {})
            if kind not in stacked:
                stacked[kind] = np.empty((config.depth, *shape), np.float32)
            stacked[kind][layer] = tensor(f"h.{layer}.{name}", *shape)
    table_VD = tensor("wte.weight", config.vocab_size, width)
    # The published models tie the two.
    head_VD = tensor("lm_head.weight", config.vocab_size, width) if has_head else table_VD
    return {
        "embed": {"table": table_VD},
        "positions": tensor("wpe.weight", config.positions, width),
        "blocks": blocks,
        "norm": {"scale": tensor("ln_f.weight", width), "bias": tensor("ln_f.bias", width)},
        "head": {"kernel": head_VD.T, "bias": np.zeros(config.vocab_size, np.float32)},
    }
