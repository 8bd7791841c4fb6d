"""A decoder-only transformer in the layouts of GPT-2 and Llama: to score text and to draw it.

Not trained here: pretrained weights come through `interop`. Which layout it is follows from the
parameters and a few sizes (`Shape`). Products in float32 at the highest precision.

    embed.table (V, D)      head.kernel (D, V), head.bias (V,)      positions (P, D; learned ones)
    blocks, stacked along a leading layer axis:
        norm_1, norm_2      scale (D,), and bias (D,) of a layer norm
        qkv, out            kernel, and bias where the layout has them
        mlp_in, mlp_out     and mlp_gate where the MLP is gated (SwiGLU)
    norm                    the last norm

Letters besides those of `flm_jax`: G heads of keys and values, each shared by H / G queries.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.flow.head import on_last_axis
from flm_jax.flow.net import Cache, CausalNet
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.trees import Params

_PRECISION = jax.lax.Precision.HIGHEST  # accelerators would otherwise round to bf16 or TF32
Layer = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the parameters do not tell. Hashable, so usable as a static argument of jit.

    Attributes:
      heads, shared_heads: of queries; of keys and values.
      epsilon: of the norms.
      centred: layer norms (GPT-2), else root-mean-square norms (Llama).
      rotary_base: of rotary positions on adjacent pairs; 0 = learned positions.
    """

    heads: int
    shared_heads: int
    epsilon: float
    centred: bool
    rotary_base: float = 0.0


@dataclasses.dataclass(frozen=True)
class Decoder(CausalNet):
    """The network with its parameters; see `decoder`."""

    shape: Shape = dataclasses.field(kw_only=True)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Keys and values (B, G, M, K) of each layer: apart, so that they are written in place."""
        depth, width = self.params["blocks"]["norm_1"]["scale"].shape
        size = batch, self.shape.shared_heads, length, width // self.shape.heads
        return tuple((jnp.zeros(size), jnp.zeros(size)) for _ in range(depth))

    def advance(
        self, h_B1D: jax.Array, position: jax.Array, cache: Cache
    ) -> tuple[Posterior, Cache]:
        h_B1D, filled = _placed(self.params, h_B1D, position[None]), []
        for layer, (k_BGMK, v_BGMK) in enumerate(cache):
            part = jax.tree.map(lambda stacked, layer=layer: stacked[layer], self.params["blocks"])
            q, k, v = _heads(self.shape, part, h_B1D, position[None])
            k_BGMK, v_BGMK = (
                jax.lax.dynamic_update_slice_in_dim(old, new, position, axis=2)
                for old, new in ((k_BGMK, k), (v_BGMK, v))
            )
            filled.append((k_BGMK, v_BGMK))
            visible_11M = (jnp.arange(k_BGMK.shape[2]) <= position)[None, None]
            mixed = _attention(q, k_BGMK, v_BGMK, visible_11M)
            h_B1D = _rest(self.shape, part, h_B1D, mixed)
        h_B1D = _norm(self.shape, self.params["norm"], h_B1D)
        return Posterior(h_B1D, self.head), tuple(filled)


def decoder(params: Params, shape: Shape, head_chunk: int = 1024) -> Decoder:
    """The network; its posteriors have neither soft cap nor temperature."""

    def backbone(params, h_BLD, tau_s=None, tau_t=None, key=None):
        del tau_s, tau_t, key  # causal networks see no time, and nothing is dropped
        return features(params, shape, h_BLD), None

    return Decoder(backbone, params, logit_cap=0.0, head_chunk=head_chunk, shape=shape)


def features(
    params: Params, shape: Shape, h_BLD: jax.Array, mask_BL: jax.Array | None = None
) -> jax.Array:
    """The last layer's normalised features (B, L, D) of embedded tokens.

    ``mask_BL`` is 0 where a token may not be attended to (padding).
    """
    length = h_BLD.shape[1]
    visible = jnp.tril(jnp.ones((length, length), bool))[None]
    if mask_BL is not None:
        visible = visible & (mask_BL != 0)[:, None, :]
    position_L = jnp.arange(length)
    h_BLD = _placed(params, h_BLD, position_L)

    def block(h_BLD, layer):
        mixed = _attention(*_heads(shape, layer, h_BLD, position_L), visible)
        return _rest(shape, layer, h_BLD, mixed), None

    return _norm(shape, params["norm"], jax.lax.scan(block, h_BLD, params["blocks"])[0])


def _placed(params: Params, h_BLD: jax.Array, position_L: jax.Array) -> jax.Array:
    return h_BLD + params["positions"][position_L][None] if "positions" in params else h_BLD


def _heads(
    shape: Shape, layer: Layer, h_BLD: jax.Array, position_L: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries (B, G, H / G, L, K), keys and values (B, G, L, K) at these positions."""
    batch, length, width = h_BLD.shape
    heads, shared, k_width = shape.heads, shape.shared_heads, width // shape.heads
    qkv = _linear(layer["qkv"], _norm(shape, layer["norm_1"], h_BLD))
    q, k, v = jnp.split(qkv, [heads * k_width, (heads + shared) * k_width], axis=-1)
    q = q.reshape(batch, length, shared, heads // shared, k_width).transpose(0, 2, 3, 1, 4)
    k, v = (x.reshape(batch, length, shared, k_width).swapaxes(1, 2) for x in (k, v))
    if shape.rotary_base:
        q, k = (_rotated(x, position_L, shape.rotary_base) for x in (q, k))
    return q, k, v


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """What the queries read, (B, L, D); ``visible`` (1 or B, L, M) says which keys each sees."""
    scores = jnp.einsum("bgrlk,bgmk->bgrlm", q, k, precision=_PRECISION) * q.shape[-1] ** -0.5
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(scores.dtype).min)
    mixed = jnp.einsum("bgrlm,bgmk->blgrk", jax.nn.softmax(scores), v, precision=_PRECISION)
    return mixed.reshape(*mixed.shape[:2], -1)


def _rest(shape: Shape, layer: Layer, h_BLD: jax.Array, mixed_BLD: jax.Array) -> jax.Array:
    """The layer behind its attention: output projection and MLP."""
    h_BLD = h_BLD + _linear(layer["out"], mixed_BLD)
    x_BLD = _norm(shape, layer["norm_2"], h_BLD)
    inner = _linear(layer["mlp_in"], x_BLD)
    if "mlp_gate" in layer:
        inner = jax.nn.silu(_linear(layer["mlp_gate"], x_BLD)) * inner
    else:
        inner = jax.nn.gelu(inner, approximate=True)
    return h_BLD + _linear(layer["mlp_out"], inner)


def _linear(part: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    product = jnp.matmul(x, part["kernel"], precision=_PRECISION)
    return product + on_last_axis(part["bias"], x.ndim) if "bias" in part else product


def _norm(shape: Shape, part: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    if shape.centred:
        x = x - x.mean(-1, keepdims=True)
    variance = jnp.square(x).mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + shape.epsilon) * on_last_axis(part["scale"], x.ndim)
    return x + on_last_axis(part["bias"], x.ndim) if "bias" in part else x


def _rotated(x: jax.Array, position_L: jax.Array, base: float) -> jax.Array:
    """Rotary positions on adjacent pairs (2i, 2i + 1) of x (..., L, K)."""
    width = x.shape[-1]
    frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = position_L[:, None] * frequency[None]
    shape = (1,) * (x.ndim - 2) + angle.shape
    cos, sin = jnp.cos(angle).reshape(shape), jnp.sin(angle).reshape(shape)
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)
