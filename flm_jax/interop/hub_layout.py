"""Official state dicts to our parameter tree and back, and the official folder layout on disk.

A state is a flat dict of numpy arrays under the official names; our tree stacks the blocks' tensors
on axis 0 and keeps linear kernels as (in, out).
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from flm_jax.errors import UserError
from flm_jax.flow.trees import Params
from flm_jax.host import files
from flm_jax.interop import layout

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
# How else hubs store weights; a file in pieces has an index.
_OTHER_WEIGHTS = {
    "pytorch_model.bin": "a pickle of PyTorch",
    "pytorch_model.bin.index.json": "the index of pickles of PyTorch",
    f"{WEIGHTS_FILE}.index.json": "the index of weights in several pieces",
    "flax_model.msgpack": "a file of weights for Flax",
    "tf_model.h5": "a file of weights for TensorFlow",
}


def refuse_other_weights(folder: pathlib.Path) -> None:
    """Raises UserError if a folder of a hub has no weights but such as are not read here."""
    if not folder.is_dir() or (folder / WEIGHTS_FILE).exists():
        return
    for name, what in _OTHER_WEIGHTS.items():
        if (folder / name).is_file():
            raise UserError(
                f"{folder / name} is {what}, which is not read here; take a version of the model "
                f"with {WEIGHTS_FILE}, or make it where PyTorch is: "
                f"safetensors.torch.save_file(STATE_DICT, {WEIGHTS_FILE!r}), with the official "
                "names of the tensors"
            )


def to_params(state: Mapping[str, np.ndarray]) -> Params:
    """Our parameter tree (float32 numpy) of an official `state`; a rotary buffer is omitted.

    Raises UserError if a tensor is missing, unknown or of the wrong shape.
    """
    shapes = {name: array.shape for name, array in state.items()}
    sizes = layout.sizes_of(shapes, "the state")
    layout.check(shapes, sizes, "the state")
    return tree_of(layout.entries(sizes), sizes.depth, state)


def tree_of(
    entries: Iterable[layout.Entry], depth: int, state: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The part of our tree (float32) that some entries are, of a network with ``depth`` blocks."""
    params: dict[str, Any] = {}
    stacks: dict[tuple[str, ...], np.ndarray] = {}
    for entry in entries:
        array = np.asarray(state[entry.name], np.float32)
        array = array.T if entry.transpose else array
        if entry.layer is None:
            _set(params, entry.path, np.ascontiguousarray(array))
        else:
            if entry.path not in stacks:
                stacks[entry.path] = np.empty((depth, *array.shape), np.float32)
                _set(params, entry.path, stacks[entry.path])
            stacks[entry.path][entry.layer] = array
    return params


def from_params(params: Params) -> dict[str, np.ndarray]:
    """The official state (float32, parameter order, no buffer) of our tree; inverse of to_params.

    Raises UserError naming a leaf that is missing, unknown or of the wrong shape.
    """
    leaves = dict(_leaves(params))
    sizes = _sizes_of_tree(leaves)
    state = {}
    for entry in layout.entries(sizes):
        array = _leaf(leaves, entry.path)
        expected = entry.shape[::-1] if entry.transpose else entry.shape
        expected = expected if entry.layer is None else (sizes.depth, *expected)
        if array.shape != expected:
            raise UserError(
                f"the parameter {'/'.join(entry.path)} has shape {array.shape} where {expected} "
                "follows from the other parameters; pass the parameters of one whole network"
            )
        array = array if entry.layer is None else array[entry.layer]
        state[entry.name] = np.ascontiguousarray(array.T if entry.transpose else array, np.float32)
    used = {entry.path for entry in layout.entries(sizes)}
    unknown = [path for path in leaves if path not in used]
    if unknown:
        raise UserError(
            f"the parameter {'/'.join(unknown[0])} has no place in the official layout; "
            "only the official network can be exported"
        )
    return state


def write(
    folder: str | os.PathLike,
    params: Params,
    *,
    heads: int,
    length: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Write our `params` as `folder`/model.safetensors (float32) and config.json, whole or not.

    `config` is an official config (say from an import) whose "algo" and "model" settings are
    carried on, with the sizes of `params`. Raises UserError if the folder exists and is not empty.
    """

    folder = pathlib.Path(folder)
    state = from_params(params)  # what is wrong with them is told before anything is written
    files.check_new(folder)
    with files.appearing(folder) as made:
        put(made, state, heads=heads, length=length, config=config)
    return folder


def put(
    folder: pathlib.Path,
    state: dict[str, np.ndarray],
    *,
    heads: int,
    length: int | None,
    config: Mapping[str, Any] | None,
) -> None:
    """Both files, of what `from_params` gives, in a folder that is there; raises OSError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    sizes = layout.sizes_of({name: array.shape for name, array in state.items()}, "the parameters")
    heads = layout.heads_of(sizes.hidden_size, None, heads, "the model")
    buffer = {layout.INV_FREQ: layout.inv_freq(sizes.hidden_size, heads)}
    text = json.dumps(_config(sizes, heads, length, config), indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    try:
        save_file(state | buffer, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from None
    shutil.copymode(folder / CONFIG_FILE, folder / WEIGHTS_FILE)  # save_file makes it private


def _config(
    sizes: layout.Sizes, heads: int, length: int | None, config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The official config.json: nested sections as the official network class reads them."""
    given = config or {}
    algo = {
        "name": "fmlm" if sizes.two_times else "flm",
        "backbone": "dit",
        "parameterization": "mean",
        "time_conditioning": True,
        "causal_attention": False,
        **given.get("algo", {}),
        "double_temb": sizes.two_times,
        "learnable_loss_weighting": sizes.loss_weighting,
    }
    model = {
        "type": "ddit",
        "dropout": 0.1,
        "scale_by_sigma": True,
        "tie_word_embeddings": False,
        **given.get("model", {}),
        "hidden_size": sizes.hidden_size,
        "cond_dim": sizes.cond_dim,
        "n_blocks": sizes.depth,
        "n_heads": heads,
    }
    if length is not None:
        model["length"] = length
    return {"algo": algo, "model": model, "vocab_size": sizes.vocab_size}


def _sizes_of_tree(leaves: Mapping[tuple[str, ...], np.ndarray]) -> layout.Sizes:
    def shape(*path: str) -> tuple[int, ...]:
        array = _leaf(leaves, path)
        if array.ndim != (3 if path[0] == "blocks" else 2):
            raise UserError(f"the parameter {'/'.join(path)} has a strange shape {array.shape}")
        return array.shape

    vocab_size, hidden_size = shape("embed", "table")
    depth, _, mlp = shape("blocks", "mlp_in", "kernel")
    loss_weighting = any(path[0] == "loss_weight" for path in leaves)
    return layout.Sizes(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        cond_dim=shape("time_embed", "out", "kernel")[1],
        depth=depth,
        mlp_ratio=mlp // hidden_size,
        two_times=any(path[0] == "time_embed_to" for path in leaves),
        loss_weighting=loss_weighting,
        loss_hidden=shape("loss_weight", "hidden", "kernel")[1] if loss_weighting else 128,
    )


def _leaf(leaves: Mapping[tuple[str, ...], np.ndarray], path: tuple[str, ...]) -> np.ndarray:
    if path not in leaves:
        raise UserError(
            f"the parameter tree has no {'/'.join(path)}; pass the parameters of one whole network"
        )
    return leaves[path]


def _leaves(tree: Params, path: tuple[str, ...] = ()):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), np.asarray(value)


def _set(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value
