"""Read an official checkpoint: Lightning .ckpt, .safetensors, or a folder with config.json."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from flm_jax.errors import UserError
from flm_jax.flow.trees import Params
from flm_jax.host import progress
from flm_jax.interop import hub_layout, layout, torch_checkpoint
from flm_jax.interop.pickle_values import Foreign, Value

_GPT2_WITHOUT_PAD = 50257
# Vocabulary size -> tokenizer and block length of the published models.
_TEXT_SETUPS = {
    30522: ("bert-base-uncased", 128),
    _GPT2_WITHOUT_PAD: ("gpt2", 1024),
    50258: ("gpt2", 1024),
}
# Names of methods in the configuration: any-order flow maps; masked diffusion models, which have
# one token more than their tokenizer; uniform diffusion models (Duo, and Duo distilled by DCD).
ANY_ORDER, MASKED = "fmlm_plus", "mdlm"
UNIFORM = ("duo", "duo_base", "distillation")
_CONFIG_VALUES, _CONFIG_DEPTH = 20_000, 20
_FLOATS = {"float64", "float32", "float16", "bfloat16"}


class _Tensor(Protocol):
    """A tensor of either kind of file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> np.ndarray: ...


class _Found(NamedTuple):
    """What a file holds; `tensors` under plain names, the rest as in `Official`."""

    tensors: Mapping[str, _Tensor]
    config: dict[str, Any]
    weights: str
    notices: list[str]


@dataclasses.dataclass(frozen=True)
class Official:
    """An official network in numpy.

    `state` holds float32 arrays under the official names in parameter order, without the rotary
    buffer; `weights` says which copy was taken ("raw", "ema:0.9999" or "stored"); `tokenizer` and
    `length` are None where neither the file nor the vocabulary size tells; `config` is the official
    configuration as plain data ({} if the file has none); `notices` are sentences for the user.
    """

    path: pathlib.Path
    state: dict[str, np.ndarray]
    sizes: layout.Sizes
    heads: int
    weights: str
    tokenizer: str | None
    length: int | None
    config: dict[str, Any]
    notices: tuple[str, ...]

    @property
    def method(self) -> str:
        """The official name of what it was trained by, "" if the file does not tell."""
        return _method(self.config)

    @property
    def masked(self) -> bool:
        """Whether it is a masked diffusion model, whose last token is the mask."""
        return self.method == MASKED

    @property
    def uniform(self) -> bool:
        """Whether it is a uniform diffusion model."""
        return self.method in UNIFORM

    @property
    def vocab_size(self) -> int:
        """Tokens of its tokenizer."""
        return self.sizes.vocab_size - self.masked

    def option(self, section: str, name: str) -> Any:
        """A value of its configuration; None if there is none."""
        part = self.config.get(section)
        return part.get(name) if isinstance(part, dict) else None

    def params(self) -> Params:
        """Our parameter tree."""
        return hub_layout.to_params(self.state)

    def text_setup(
        self, tokenizer: str | None = None, length: int | None = None
    ) -> tuple[dict[str, Any], int]:
        """(tokenizer section {"name", "options"}, block length), what is given comes first.

        Raises UserError if one of the two stays unknown.
        """
        tokenizer, length = tokenizer or self.tokenizer, length or self.length
        if tokenizer is None:
            raise UserError(
                f"{self.path} has a vocabulary of {self.vocab_size} tokens, which tells no "
                "tokenizer; name it with tokenizer="
            )
        if length is None:
            raise UserError(f"{self.path} does not tell its block length; give it with length=")
        options = {"pad": self.vocab_size > _GPT2_WITHOUT_PAD} if tokenizer == "gpt2" else {}
        return {"name": tokenizer, "options": options}, length


def text_defaults(vocab_size: int) -> tuple[str | None, int | None]:
    """(tokenizer, block length) of the published models with this vocabulary, or (None, None)."""
    return _TEXT_SETUPS.get(vocab_size, (None, None))


def read(path: str | os.PathLike, weights: str | None = None, heads: int | None = None) -> Official:
    """The official checkpoint at `path`, checked tensor by tensor.

    `weights`: None takes the EMA copy, or the raw weights (with a notice) if there is none; "raw",
    "ema" and "ema:DECAY" insist. `heads` overrides what the file tells. Nothing of the file is ever
    executed. Raises UserError for anything that is not a whole official network.
    """
    path = pathlib.Path(path)
    kind, decay = _parse_weights(weights)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}; check the path of the checkpoint")
    hub_layout.refuse_other_weights(path)
    if path.is_dir() or path.suffix == ".safetensors":
        found = _read_safetensors(path, weights)
    else:
        found = _read_lightning(path, kind, decay)
    tensors, config, label = dict(found.tensors), found.config, found.weights
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    sizes = layout.sizes_of(shapes, path)
    layout.check(shapes, sizes, path)
    buffer = tensors.pop(layout.INV_FREQ, None)
    model = config.get("model")
    model = model if isinstance(model, dict) else {}
    if heads is None:
        buffer = None if buffer is None else buffer.numpy()
        heads = layout.heads_of(sizes.hidden_size, buffer, model.get("n_heads"), path)
    else:
        heads = layout.heads_of(sizes.hidden_size, None, heads, path)
    method = _method(config)
    if sizes.two_times and not method:
        found.notices.append(
            f"{path} does not tell its method and is read as FMLM, with the clock of the decoding "
            "accuracy; if it is FMLM+, whose tensors are the same, give --clock=identity"
        )
    tokenizer, length = text_defaults(sizes.vocab_size - (method == MASKED))
    if type(model.get("length")) is int and model["length"] > 0:
        length = model["length"]
    names = [entry.name for entry in layout.entries(sizes)]
    state = {
        name: _float32(name, tensors[name], path)
        for name in progress.bar(names, desc=f"reading {path.name}", delay=2)
    }
    return Official(
        path, state, sizes, heads, label, tokenizer, length, config, tuple(found.notices)
    )


def _method(config: Mapping[str, Any]) -> str:
    algo = config.get("algo")
    name = algo.get("name") if isinstance(algo, dict) else None
    return name if isinstance(name, str) else ""


def _parse_weights(weights: str | None) -> tuple[str | None, float | None]:
    if weights is None or weights in ("raw", "ema"):
        return weights, None
    kind, _, decay = str(weights).partition(":")
    try:
        if kind == "ema":
            return "ema", float(decay)
    except ValueError:
        pass
    raise UserError(f"weights={weights!r} is not known; use raw, ema or ema:DECAY (ema:0.9999)")


def _float32(name: str, tensor: "_Tensor", path: pathlib.Path) -> np.ndarray:
    array = tensor.numpy()
    if array.dtype.name not in _FLOATS:
        raise UserError(
            f"{path}: the tensor {name} has dtype {array.dtype.name}; weights in float32, "
            "float16 or bfloat16 can be read, quantised ones cannot"
        )
    array = np.array(array, np.float32, order="C")
    if not np.isfinite(array).all():
        raise UserError(
            f"{path}: the tensor {name} holds numbers that are not finite; its training diverged "
            "or the file is damaged, take another checkpoint"
        )
    return array


def _plain_name(name: str) -> str:
    """The name inside the network: compile and wrapper prefixes taken away."""
    return name.replace("_orig_mod.", "").removeprefix("backbone.")


def _read_lightning(path: pathlib.Path, kind: str | None, decay: float | None) -> "_Found":
    """(tensors by plain name, config, label, notices) of a .ckpt."""
    tree = torch_checkpoint.load(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no dictionary; give a Lightning checkpoint or a state dict")
    state = tree.get("state_dict", tree)
    hyper = tree.get("hyper_parameters")
    config = _plain(hyper.get("config")) if isinstance(hyper, dict) else None
    tensors, notices = _network_tensors(path, state)
    config = config if isinstance(config, dict) else {}
    if tree.get("ema_list"):
        notices.append(
            f"{path} holds a list of EMAs, as the code of February 2026 wrote it; most of "
            "that code had no cap on the logits, which --logit_cap=0 repeats (30 by default)"
        )
    if kind == "raw":
        return _Found(tensors, config, "raw", notices)
    emas = _emas(tree)
    if not emas and kind is None:
        notices.append(f"{path} has no EMA weights; the raw weights are used")
        return _Found(tensors, config, "raw", notices)
    ema, label = _choose_ema(path, emas, decay)
    sizes = layout.sizes_of({n: tuple(t.shape) for n, t in tensors.items()}, path)
    names = [entry.name for entry in layout.entries(sizes)]
    if not isinstance(ema, list) or len(ema) != len(names):
        count = len(ema) if isinstance(ema, list) else "no list of"
        raise UserError(
            f"{path}: the EMA has {count} tensors and the network {len(names)}; use --weights=raw"
        )
    stored = [name for name in tensors if name != layout.INV_FREQ]
    if stored != names and set(stored) == set(names):
        notices.append(
            f"{path} lists its tensors in an unusual order; the EMA was read in the official order"
        )
    averaged = dict(zip(names, ema, strict=True))
    for name, tensor in averaged.items():
        if not isinstance(tensor, torch_checkpoint.Tensor):
            raise UserError(f"{path}: the EMA of {name} is not a tensor; use --weights=raw")
    if layout.INV_FREQ in tensors:
        averaged[layout.INV_FREQ] = tensors[layout.INV_FREQ]
    layout.check({n: tuple(t.shape) for n, t in tensors.items()}, sizes, path)
    return _Found(averaged, config, label, notices)


def _network_tensors(
    path: pathlib.Path, state: Value
) -> tuple[dict[str, torch_checkpoint.Tensor], list[str]]:
    """The network's own tensors under plain names; frozen teachers are omitted."""
    if not isinstance(state, dict):
        raise UserError(f"{path} has no state_dict; give a checkpoint of the official training")
    is_tensor = {n: isinstance(t, torch_checkpoint.Tensor) for n, t in state.items()}
    prefixed = any("backbone." in str(name) for name in state)
    tensors, ignored = {}, []
    for name, tensor in state.items():
        plain = _plain_name(str(name))
        outside = prefixed and "backbone." not in str(name)
        if not is_tensor[name] or plain.startswith("teacher") or outside:
            ignored.append(str(name))
        elif plain in tensors:
            raise UserError(
                f"{path} has the tensor {plain} twice; it is not an official checkpoint"
            )
        else:
            tensors[plain] = tensor
    if not tensors:
        raise UserError(f"{path} has no weights; give a checkpoint of the official training")
    others = [name for name in ignored if not name.startswith("teacher")]
    notices = [f"{path}: {len(others)} entries such as {others[0]} are ignored"] if others else []
    return tensors, notices


def _emas(tree: Mapping[str, Value]) -> dict[float | None, Value]:
    """Decay -> list of the tensors of an EMA; the first is the default."""
    records = [tree.get("ema")]
    several = tree.get("ema_list")
    if isinstance(several, dict):
        records += several.values()
    elif isinstance(several, list):
        records += several
    found: dict[float | None, Value] = {}
    for record in records:
        if isinstance(record, dict) and "shadow_params" in record:
            decay = record.get("decay")
            decay = float(decay) if isinstance(decay, float) or decay in (0, 1) else None
            found.setdefault(decay, record["shadow_params"])
    return found


def _choose_ema(
    path: pathlib.Path, emas: Mapping[float | None, Value], decay: float | None
) -> tuple[Value, str]:
    if not emas:
        raise UserError(f"{path} has no EMA weights; use --weights=raw")
    if decay is None:
        chosen = next(iter(emas))
    else:
        near = [d for d in emas if d is not None and abs(d - decay) < 1e-9]
        if not near:
            have = ", ".join(f"ema:{d:g}" for d in emas if d is not None) or "ema"
            raise UserError(f"{path} has no EMA of decay {decay:g}; it has {have}")
        chosen = near[0]
    return emas[chosen], "ema" if chosen is None else f"ema:{chosen:g}"


@dataclasses.dataclass(frozen=True)
class _SafeTensor:
    """One tensor of an open safetensors file, read on demand."""

    file: Any  # of safetensors.safe_open
    name: str
    shape: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        return self.file.get_tensor(self.name)


def _read_safetensors(path: pathlib.Path, weights: str | None) -> "_Found":
    """(tensors by plain name, config, label, notices) of a file or folder."""
    from safetensors import SafetensorError, safe_open

    folder, file = (path, path / hub_layout.WEIGHTS_FILE) if path.is_dir() else (path.parent, path)
    if not file.is_file():
        raise UserError(f"{folder} has no {hub_layout.WEIGHTS_FILE}; give a folder that has one")
    if weights is not None:
        raise UserError(
            f"{file} holds one set of weights and does not say which, so weights={weights!r} "
            "cannot be chosen; omit --weights"
        )
    try:
        opened = safe_open(file, framework="np")
        tensors = {}
        for name in opened.keys():  # noqa: SIM118 - the file object is not a dictionary
            shape = tuple(opened.get_slice(name).get_shape())
            plain = _plain_name(name)
            if not plain.startswith("teacher"):
                tensors[plain] = _SafeTensor(opened, name, shape)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file} is not a readable safetensors file ({error}); download it again"
        ) from None
    return _Found(tensors, _read_config(folder / hub_layout.CONFIG_FILE), "stored", [])


def _read_config(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({error}); download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} holds no JSON object; download it again")
    return config


def _plain(value: Value) -> Value:
    """Plain data of a pickled configuration: containers and leaves of omegaconf unwrapped.

    What is nested too deep or unfolds to too much (a hostile file may share parts) becomes None.
    """
    budget = _CONFIG_VALUES

    def walk(value: Value, depth: int) -> Value:
        nonlocal budget
        budget -= 1
        if depth > _CONFIG_DEPTH or budget < 0:
            return None
        if isinstance(value, Foreign):
            state = value.state if isinstance(value.state, dict) else {}
            return walk(state.get("_content", state.get("_val")), depth + 1)
        if isinstance(value, dict):
            return {str(key): walk(part, depth + 1) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [walk(part, depth + 1) for part in value]
        return value if isinstance(value, str | int | float | bool) else None

    return walk(value, 0)
