"""The official network's tensors: names, order, shapes, and where each one lives in our tree.

The order of `entries` is the order in which the official code lists its trainable parameters, and
so the order of its EMA lists. Linear weights are (out, in) there and (in, out) here.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

import numpy as np

from flm_jax.errors import UserError
from flm_jax.models import attention

INV_FREQ = "rotary_emb.inv_freq"
TIME_FEATURES = 256
HEADS_OF_WIDTH = {256: 8, 768: 12, 1024: 16, 1600: 25}
_BLOCK = re.compile(r"blocks\.(\d{1,4})\.")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of the tensors tell: V, D, C, blocks, MLP width / D, optional parts."""

    vocab_size: int
    hidden_size: int
    cond_dim: int
    depth: int
    mlp_ratio: int
    two_times: bool
    loss_weighting: bool
    loss_hidden: int = 128


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor: `path` in our tree, stacked at index `layer` unless that is None."""

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    transpose: bool = False
    layer: int | None = None


def entries(sizes: Sizes) -> Iterator[Entry]:
    """Every trainable tensor of a network of these sizes, in the official parameter order."""
    v, d, c = sizes.vocab_size, sizes.hidden_size, sizes.cond_dim
    yield Entry("vocab_embed.embedding", (v, d), ("embed", "table"))
    yield from _time_embedder("sigma_map", c, ("time_embed",))
    if sizes.two_times:
        yield from _time_embedder("sigma_map_prime", c, ("time_embed_to",))
    if sizes.loss_weighting:
        head, hidden = "learnable_loss_weighting", sizes.loss_hidden
        yield from _time_embedder(f"{head}.s_embed", c, ("loss_weight", "time_embed"))
        yield from _linear(f"{head}.mlp.0", hidden, c, ("loss_weight", "hidden"))
        yield from _linear(f"{head}.mlp.2", 1, hidden, ("loss_weight", "out"))
    for layer in range(sizes.depth):
        yield from _block(layer, d, c, sizes.mlp_ratio * d)
    yield Entry("output_layer.norm_final.weight", (d,), ("final", "norm", "scale"))
    yield from _linear("output_layer.linear", v, d, ("head",))
    yield from _linear("output_layer.adaLN_modulation", 2 * d, c, ("final", "modulation"))


def _linear(name: str, out: int, width: int, path: tuple[str, ...], layer=None, bias=True):
    yield Entry(f"{name}.weight", (out, width), (*path, "kernel"), True, layer)
    if bias:
        yield Entry(f"{name}.bias", (out,), (*path, "bias"), False, layer)


def _time_embedder(name: str, cond_dim: int, path: tuple[str, ...]) -> Iterator[Entry]:
    yield from _linear(f"{name}.mlp.0", cond_dim, TIME_FEATURES, (*path, "in"))
    yield from _linear(f"{name}.mlp.2", cond_dim, cond_dim, (*path, "out"))


def _block(layer: int, d: int, c: int, mlp: int) -> Iterator[Entry]:
    def path(*names: str) -> tuple[str, ...]:
        return ("blocks", *names)

    name = f"blocks.{layer}"
    yield Entry(f"{name}.norm1.weight", (d,), path("norm_attention", "scale"), layer=layer)
    yield from _linear(f"{name}.attn_qkv", 3 * d, d, path("qkv"), layer, bias=False)
    yield from _linear(f"{name}.attn_out", d, d, path("attention_out"), layer, bias=False)
    yield Entry(f"{name}.norm2.weight", (d,), path("norm_mlp", "scale"), layer=layer)
    yield from _linear(f"{name}.mlp.0", mlp, d, path("mlp_in"), layer)
    yield from _linear(f"{name}.mlp.2", d, mlp, path("mlp_out"), layer)
    yield from _linear(f"{name}.adaLN_modulation", 6 * d, c, path("modulation"), layer)


def sizes_of(shapes: Mapping[str, tuple[int, ...]], source: object) -> Sizes:
    """The sizes that the tensors' shapes tell; UserError naming a tensor that is missing or odd."""

    def shape(name: str, dimensions: int = 2) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(_unknown_network(shapes, source, f"it has no tensor {name}"))
        if len(shapes[name]) != dimensions or 0 in shapes[name]:
            reason = f"{name} has shape {tuple(shapes[name])}, {dimensions} dimensions are needed"
            raise UserError(_unknown_network(shapes, source, reason))
        return tuple(shapes[name])

    vocab_size, hidden_size = shape("vocab_embed.embedding")
    layers = {int(match[1]) for name in shapes if (match := _BLOCK.match(name))}
    if layers != set(range(len(layers))):
        gap = next(layer for layer in range(len(layers)) if layer not in layers)
        raise UserError(_unknown_network(shapes, source, f"blocks.{gap} is missing"))
    loss_weighting = any(name.startswith("learnable_loss_weighting.") for name in shapes)
    loss_hidden = shape("learnable_loss_weighting.mlp.0.weight")[0] if loss_weighting else 128
    return Sizes(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        cond_dim=shape("sigma_map.mlp.2.weight")[0],
        depth=len(layers),
        mlp_ratio=max(1, shape("blocks.0.mlp.0.weight")[0] // hidden_size),
        two_times=any(name.startswith("sigma_map_prime.") for name in shapes),
        loss_weighting=loss_weighting,
        loss_hidden=loss_hidden,
    )


def _unknown_network(shapes: Mapping, source: object, reason: str) -> str:
    some = ", ".join(list(shapes)[:3]) or "no tensors at all"
    return (
        f"{source} is not an official flow language model: {reason} (it has {some}, ...); "
        "give a checkpoint of the official FLM or FMLM code"
    )


def check(shapes: Mapping[str, tuple[int, ...]], sizes: Sizes, source: object) -> None:
    """UserError naming the first missing, unknown or wrongly shaped tensor, with both shapes."""
    wanted = {entry.name: entry.shape for entry in entries(sizes)}
    missing = [name for name in wanted if name not in shapes]
    extra = [name for name in shapes if name not in wanted and name != INV_FREQ]
    if missing and extra:
        raise UserError(
            f"{source} has a tensor {extra[0]} that the official network does not have, and lacks "
            f"{missing[0]} {wanted[missing[0]]}; rename it if it is the same tensor"
        )
    if missing:
        raise UserError(
            f"{source} lacks the tensor {missing[0]} {wanted[missing[0]]}; use the whole file"
        )
    if extra:
        raise UserError(
            f"{source} has a tensor {extra[0]} {tuple(shapes[extra[0]])} that the official network "
            "does not have; it comes from another model or a changed network"
        )
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            raise UserError(
                f"{source}: the tensor {name} has shape {tuple(shapes[name])} where "
                f"{shape} follows from the other tensors; the file is not what it says"
            )


def inv_freq(hidden_size: int, heads: int) -> np.ndarray:
    """The rotary buffer that official files carry: float32 of half the head size."""
    return attention.rotary_frequencies(hidden_size // heads)


def heads_of(hidden_size: int, buffer: np.ndarray | None, configured: object, source: object):
    """The number of heads: from the rotary buffer, else the config, else the known widths.

    `configured` is whatever a config file said (any type). Raises UserError if nothing tells, or if
    the buffer is not a rotary embedding with base 10000.
    """
    if buffer is not None:
        heads, rest = divmod(hidden_size, 2 * buffer.size) if buffer.size else (0, 1)
        if rest or buffer.ndim != 1:
            raise UserError(
                f"{source}: {INV_FREQ} of shape {buffer.shape} does not fit width {hidden_size}"
            )
        if not np.allclose(buffer.astype(np.float64), inv_freq(hidden_size, heads), rtol=1e-2):
            raise UserError(
                f"{source}: {INV_FREQ} is not the rotary embedding of base "
                f"{attention.ROTARY_BASE:g} that this network uses; the file comes from a changed "
                "network"
            )
        return heads
    heads = configured if configured is not None else HEADS_OF_WIDTH.get(hidden_size)
    if heads is None:
        raise UserError(
            f"{source} does not tell the number of attention heads of width {hidden_size}; "
            "give it as heads=N"
        )
    if type(heads) is not int or heads < 1 or hidden_size % (2 * heads):
        raise UserError(
            f"{source}: {heads!r} attention heads do not divide width {hidden_size} into even "
            "parts; give the right number as heads=N"
        )
    return heads
