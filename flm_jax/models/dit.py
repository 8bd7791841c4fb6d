"""The diffusion transformer (DiT) of the official code, as pure functions.

h (B, L, D) and one or two times -> features (B, L, D) for the vocabulary head. Norms, time
embedding, softmax and sums of the residual stream are at least float32, and so is the stream itself
from block to block unless ``stream_dtype`` is bfloat16; products in the blocks read ``dtype``.

Parameters are one nested dict; the blocks are stacked along a leading layer axis:

    embed.table (V, D)      time_embed, time_embed_to (second time)      loss_weight (optional)
    estimate (self-conditioning; optional)
    blocks.{norm_attention, qkv, attention_out, norm_mlp, mlp_in, mlp_out, modulation}
    blocks.{q_norm, k_norm (``qk_norm``), mlp_gate (``mlp`` swiglu)} (optional)
    final.{norm, modulation}      head.{kernel (D, V; not if tied), bias (V,)}
    positions (P, D; optional)

At the official initialisation every gate is zero (blocks are the identity) and so are the logits:
the cross-entropy starts at ln V.

``causal`` gives the autoregressive baseline on the same blocks: a position attends to itself and
earlier ones, nothing is conditioned on time (no time_embed, no modulation) and scores have no cap.
"""

import contextlib
import dataclasses
import functools
import math
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flm_jax.errors import UserError
from flm_jax.flow import chunks
from flm_jax.flow.head import matmul_dtype
from flm_jax.flow.net import Cache, CausalNet, Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.trees import Params, Tree
from flm_jax.models.attention import attend, attend_once, rotary_tables, rotate
from flm_jax.models.conditioning import Conditioning, take, with_given
from flm_jax.models.layers import Linear, LossWeight, Norm, TimeEmbedding, modulate, uniform
from flm_jax.models.products import device_kind
from flm_jax.models.settings import Settings
from flm_jax.models.splash import Share
from flm_jax.models.text_dropout import STREAM, by_text

# Logits of an automatic chunk, MiB: on CPU near what the caches hold, else large enough to keep a
# GPU's or TPU's matrix units busy and small against its memory.
CHUNK_MEGABYTES = {"cpu": 24, "accelerator": 512}


# What all blocks together may keep for the backward pass, MiB: everything, or else the results of
# products. An accelerator computes both again: its memory decides how large a batch can be.
KEPT_MEGABYTES = {
    "none": {"cpu": 512, "accelerator": 0},
    "products": {"cpu": 128, "accelerator": 0},
}
GELU, SWIGLU = "gelu", "swiglu"  # forms of the MLP
SAVED_WIDTHS = 22.0  # arrays (B, L, D) that a block keeps if it keeps everything,
SAVED_SCORES = 4.0  # and arrays (B, H, L, L)
# What is kept of a block that is computed again; products with batch axes are those of attention.
POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def attention_dtype(dtype: DTypeLike, *operands: DTypeLike) -> DTypeLike:
    """What attention's products read where the others read ``dtype``: on a CPU float32.

    There bfloat16 gains less in them than rounding for it costs.
    """
    return matmul_dtype(jnp.float32 if device_kind() == "cpu" else dtype, *operands)


class Gather(Protocol):
    """See `host.sharding.Gather`."""

    def __call__(self, params: Params, stacked: int = 1) -> Params: ...


def mlp_width(mlp: str, mlp_ratio: int, width: int) -> int:
    """Width inside of an MLP; of "swiglu", which has three matrices, two thirds of that of "gelu".

    To the nearest multiple of 8, so that both have about as many parameters.
    """
    if mlp == GELU:
        return mlp_ratio * width
    return max(8, 8 * round(mlp_ratio * width / 12))


def kept_ratio(mlp: str, mlp_ratio: int) -> float:
    """Width of the products that go into an MLP's nonlinearity / model width."""
    return mlp_ratio if mlp == GELU else 4 * mlp_ratio / 3


class Block(nn.Module):
    """Attention and MLP, each modulated and gated by the time conditioning, if there is any.

    With a cache (keys (B, H, K, M) and values (B, H, M, K) of M positions) h is one position
    (B, 1, D), the index ``position`` says which one, and the cache comes back with it filled.
    """

    heads: int
    mlp_ratio: int
    dropout: float
    attention_cap: float
    dtype: DTypeLike
    deterministic: bool
    causal: bool = False
    attention: str = "auto"
    rms: bool = False
    mlp: str = GELU
    qk_norm: bool = False
    share: Share | None = None

    @nn.compact
    def __call__(
        self,
        h_BLD: jax.Array,
        conditioning: Conditioning | None,
        rotary: tuple,
        position: jax.Array | None = None,
        cache: tuple | None = None,
    ) -> tuple:
        width = h_BLD.shape[-1]
        linear = functools.partial(Linear, dtype=self.dtype)
        norm = functools.partial(Norm, self.rms)
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        shift_a = scale_a = shift_m = scale_m = 0.0
        gate_a = gate_m = 1.0
        if conditioning is not None:
            modulation = linear(6 * width, name="modulation", zero=True)(conditioning.vectors)
            shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = conditioning.split(modulation, 6)

        u = modulate(norm(name="norm_attention")(h_BLD), shift_a, scale_a)
        qkv = linear(3 * width, name="qkv", use_bias=False)(u)
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, self.heads, -1), 2, 0)
        if self.qk_norm:  # over a head's width; rotations keep it
            q, k = Norm(rms=True, name="q_norm")(q), Norm(rms=True, name="k_norm")(k)
        dtype = attention_dtype(self.dtype, qkv.dtype)
        q, k, v = (x.astype(dtype) for x in (rotate(q, *rotary), rotate(k, *rotary), v))
        if cache is not None and position is not None:
            mixed = attend_once(q, k, v, cache, position, self.attention_cap)
            k_BHK1, v_BH1K = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
            cache = (
                jax.lax.dynamic_update_slice_in_dim(cache[0], k_BHK1, position, axis=3),
                jax.lax.dynamic_update_slice_in_dim(cache[1], v_BH1K, position, axis=2),
            )
        else:
            forms = self.attention_cap, None, self.attention
            mixed = attend(q, k, v, *forms, causal=self.causal, share=self.share)
        mixed = linear(width, name="attention_out", use_bias=False)(mixed.reshape(h_BLD.shape))
        h_BLD = self.added(h_BLD, gate_a * drop(mixed))

        u = modulate(norm(name="norm_mlp")(h_BLD), shift_m, scale_m)
        # The backward pass keeps what goes into the gelu, not its tanh and its result: wide arrays
        # that cost next to nothing.
        inner = mlp_width(self.mlp, self.mlp_ratio, width)
        if self.mlp == GELU:
            gelu = jax.checkpoint(functools.partial(nn.gelu, approximate=True))
            hidden = gelu(linear(inner, name="mlp_in")(u))
        else:
            gated = jax.checkpoint(lambda gate, x: nn.silu(gate) * x)
            hidden = gated(linear(inner, name="mlp_gate")(u), linear(inner, name="mlp_in")(u))
        return self.added(h_BLD, gate_m * drop(linear(width, name="mlp_out")(hidden))), cache

    @staticmethod
    def added(h_BLD: jax.Array, change_BLD: jax.Array) -> jax.Array:
        """The stream after a branch, in its own type; only the sum is rounded to it."""
        wide = jnp.promote_types(h_BLD.dtype, jnp.float32)
        return (h_BLD.astype(wide) + change_BLD).astype(h_BLD.dtype)


class Final(nn.Module):
    """The last norm and modulation (if there is conditioning) before the vocabulary head."""

    dtype: DTypeLike
    rms: bool = False

    @nn.compact
    def __call__(self, h_BLD: jax.Array, conditioning: Conditioning | None) -> jax.Array:
        norm = Norm(self.rms, name="norm")
        if conditioning is None:
            return norm(h_BLD)
        modulation = Linear(2 * h_BLD.shape[-1], zero=True, dtype=self.dtype, name="modulation")
        shift, scale = conditioning.split(modulation(conditioning.vectors), 2)
        return modulate(norm(h_BLD), shift, scale)


class DiT(nn.Module):
    """The backbone: everything between the embedding table and the vocabulary head."""

    depth: int
    heads: int
    cond_dim: int
    mlp_ratio: int
    dropout: float
    attention_cap: float
    two_times: bool
    loss_weighting: bool
    dtype: DTypeLike
    remat: str
    scan_unroll: int

    causal: bool = False
    attention: str = "auto"
    learned_positions: int = 0
    self_conditioning: bool = False
    rms: bool = False
    mlp: str = GELU
    qk_norm: bool = False
    trained: bool = False
    gather: Gather | None = None
    share: Share | None = None
    stream_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        h_BLD: jax.Array,
        tau_s: jax.Array | None,
        tau_t: jax.Array | None = None,
        deterministic: bool = True,
        position: jax.Array | None = None,
        cache: tuple | None = None,
        given_BL: jax.Array | None = None,
        estimate_BLD: jax.Array | None = None,
    ) -> tuple:
        """(features (B, L, D), log weight or None, cache); see `flow.net.Net` for the arguments.

        With a ``cache`` of a causal network (`empty_cache`), h is the one ``position`` (B, 1, D).
        """
        conditioning = None
        if tau_s is not None and not self.causal:
            conditioning = self.condition(tau_s, tau_t, given_BL)
        wide = jnp.promote_types(h_BLD.dtype, jnp.float32)
        if conditioning is not None:  # the stream has one type from the first block to the last
            wide = jnp.promote_types(wide, conditioning.vectors.dtype)
        h_BLD = h_BLD.astype(wide)
        if estimate_BLD is not None:
            h_BLD = h_BLD + self.heard(estimate_BLD).astype(wide)
        length = h_BLD.shape[1] if cache is None else cache[0][0].shape[3]
        rotary = rotary_tables(length, h_BLD.shape[2] // self.heads, h_BLD.dtype)
        if position is not None:
            rotary = tuple(jax.lax.dynamic_slice_in_dim(table, position, 1) for table in rotary)
        if self.learned_positions:
            h_BLD = h_BLD + self.place(h_BLD.shape[1], h_BLD.shape[2], position)[None]
        if self.stream_dtype != jnp.float32:
            h_BLD = h_BLD.astype(self.stream_dtype)
        if cache is None:
            blocks = self.blocks(deterministic, h_BLD.shape)
            h_BLD, _ = blocks(h_BLD, conditioning, rotary, None, None)
        else:
            h_BLD, cache = self.one_by_one(h_BLD, rotary, position, cache)
        features_BLD = Final(self.dtype, self.rms, name="final")(h_BLD, conditioning)
        log_weight = None
        if self.loss_weighting and tau_s is not None:
            log_weight = LossWeight(self.cond_dim, name="loss_weight")(with_given(tau_s, given_BL))
            if given_BL is not None:
                log_weight = take(log_weight[:, None], given_BL)
        return features_BLD, log_weight, cache

    def heard(self, estimate_BLD: jax.Array) -> jax.Array:
        """What the network makes of an estimate of the clean sequence; nothing of zeros.

        A linear map, zero at first: it starts as the network without. ValueError without the map.
        """
        if not self.self_conditioning:
            raise ValueError("a network without self-conditioning was told an estimate")
        options = {"use_bias": False, "zero": True, "dtype": self.dtype}
        return Linear(estimate_BLD.shape[-1], name="estimate", **options)(estimate_BLD)

    def place(self, length: int, width: int, position: jax.Array | None) -> jax.Array:
        """Learned vectors (L, D) of the positions; of one ``position`` (1, D) if there is a cache.

        Rotary embeddings only tell how far tokens are from each other. In pure noise, from which
        one step writes everything, there is no token to be far from: the network cannot know which
        position is which. That is harmless in running text and fatal where texts have a form.
        Zero at first: a student starts as its teacher, with or without them.
        """
        shape = self.learned_positions, width
        table = self.param("positions", nn.initializers.zeros, shape, jnp.float32)
        if position is not None:
            return jax.lax.dynamic_slice_in_dim(table, position, 1)
        if length > self.learned_positions:
            raise UserError(
                f"a text of {length} tokens is longer than model.learned_positions="
                f"{self.learned_positions}; train with as many"
            )
        return table[:length]

    def condition(
        self, tau_s: jax.Array, tau_t: jax.Array | None, given_BL: jax.Array | None
    ) -> Conditioning:
        """What the times, (B,) or (B, L), say to every block."""
        embed = TimeEmbedding(self.cond_dim, name="time_embed")
        conditioning = embed(with_given(tau_s, given_BL))
        if tau_t is not None:  # a network without a second embedder uses the first one twice
            if self.two_times:
                embed = TimeEmbedding(self.cond_dim, name="time_embed_to")
            conditioning = conditioning + embed(with_given(tau_t, given_BL))
        conditioning = nn.silu(conditioning)
        if conditioning.ndim == 2:
            conditioning = conditioning[:, None, :]
        return Conditioning(conditioning, given_BL)

    def one_by_one(
        self, h_B1D: jax.Array, rotary: tuple, position: jax.Array | None, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        """All blocks at one position, with their caches.

        Blocks and caches stand apart: a scan would copy every cache whole for every position.
        """
        block, filled = Block(*self.of_block(True), parent=None), []
        for layer, own in enumerate(cache):
            stacked = self.variables["params"]["blocks"]
            params = jax.tree.map(lambda x, layer=layer: x[layer], stacked)
            if self.gather is not None:
                params = self.gather(params, stacked=self.depth)
            h_B1D, own = block.apply({"params": params}, h_B1D, None, rotary, position, own)
            filled.append(own)
        return h_B1D, tuple(filled)

    def of_block(self, deterministic: bool) -> tuple:
        """The arguments of a `Block`."""
        sizes = self.heads, self.mlp_ratio, self.dropout, self.attention_cap, self.dtype
        forms = self.rms, self.mlp, self.qk_norm, self.share
        return *sizes, deterministic, self.causal, self.attention, *forms

    def blocks(self, deterministic: bool, shape: tuple[int, ...]) -> nn.Module:
        """All blocks of a stream (B, L, D), a scan over their stacked parameters.

        In training, blocks that keep everything for their backward pass stand one after the other:
        a scan would copy all of it into stacked arrays and out again.
        """
        remat, unroll = remembered(
            shape,
            remat=self.remat,
            unroll=self.scan_unroll if self.trained else 1,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=kept_ratio(self.mlp, self.mlp_ratio),
            kind=device_kind(),
        )
        block = Block
        if self.gather is not None and not self.is_initializing():
            # Inside what is computed again, so that no block's parameters wait for its gradient.
            gather = functools.partial(self.gather, stacked=self.depth)
            block = nn.map_variables(Block, "params", gather)
        if remat != "none":
            block = nn.remat(block, prevent_cse=False, policy=POLICIES[remat])
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=self.depth,
            unroll=unroll,
        )(*self.of_block(deterministic), name="blocks")


def remembered(
    shape: tuple[int, ...],
    *,
    remat: str,
    unroll: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    kind: str,
) -> tuple[str, int]:
    """What the blocks of a stream (B, L, D) keep, and how many stand in an iteration of the scan.

    ``remat`` "auto" and ``unroll`` 0 mean: everything and all blocks, if there is room (`kept`),
    else results of products or nothing, and one. Other values mean themselves.
    """
    found = remat
    if remat == "auto":
        forms = ("none", "products") if unroll in (0, depth) else ("products",)
        sizes = {form: depth * kept(form, shape, heads, mlp_ratio) for form in forms}
        fitting = (f for f in forms if sizes[f] <= KEPT_MEGABYTES[f][kind] * 2**20)
        found = next(fitting, "full")
    if unroll == 0:
        unroll = depth if found == "none" and kind == "cpu" else 1
    return found, min(unroll, depth)


def kept(form: str, shape: tuple[int, ...], heads: int, mlp_ratio: float) -> float:
    """Bytes that a block of a stream (B, L, D) keeps for its backward pass, in float32.

    "products": what goes in and the results of all products but those of attention (6 B L D floats
    more where every position has its own times).
    """
    batch, length, width = shape
    if form == "products":
        return 4.0 * (6 + mlp_ratio) * batch * length * width
    return 4.0 * batch * length * (SAVED_WIDTHS * width + SAVED_SCORES * heads * length)


@dataclasses.dataclass(frozen=True)
class CachedNet(CausalNet):
    """A causal transformer; its cache holds keys and values of every block, each apart."""

    model: "Model" = dataclasses.field(kw_only=True)

    def empty_cache(self, batch: int, length: int) -> Cache:
        module, table = self.model.module, self.table
        width = table.shape[1] // module.heads
        dtype = attention_dtype(module.dtype, table.dtype)
        keys, values = (batch, module.heads, width, length), (batch, module.heads, length, width)
        return tuple(
            (jnp.zeros(keys, dtype), jnp.zeros(values, dtype)) for _ in range(module.depth)
        )

    def advance(
        self, h_B1D: jax.Array, position: jax.Array, cache: Cache
    ) -> tuple[Posterior, Cache]:
        features_B1D, _, cache = self.model.apply(
            self.params, h_B1D, None, position=position, cache=cache
        )
        return Posterior(features_B1D, self.head), cache


@dataclasses.dataclass(frozen=True)
class Model:
    """A network's architecture, without parameters. Hashable; build it with `build`."""

    vocab_size: int
    width: int
    logit_cap: float
    head_chunk: int
    head_init: str
    module: DiT
    tied_head: bool = False

    def init(self, key: jax.Array) -> Params:
        """Freshly initialised float32 parameters, as the official code does it.

        With ``head_init`` "table" the head starts as the transposed embedding table, not at zero: a
        network that reads off the token nearest to its input, which is right with probability
        about tau. Small training budgets need not learn that first. A tied head is that table.
        """
        key_backbone, key_table = jax.random.split(key)
        h_BLD = jnp.zeros((1, 2, self.width), jnp.float32)
        tau = jnp.zeros((1,), jnp.float32)
        tau_t = tau if self.module.two_times else None
        told_BLD = h_BLD if self.module.self_conditioning else None
        inputs = h_BLD, tau, tau_t
        params = dict(self.module.init(key_backbone, *inputs, estimate_BLD=told_BLD)["params"])
        bound = 1.0 / math.sqrt(self.width)
        table = uniform(bound)(key_table, (self.vocab_size, self.width))
        params["embed"] = {"table": table}
        params["head"] = {"bias": jnp.zeros((self.vocab_size,), jnp.float32)}
        if not self.tied_head:
            kernel = table.T if self.head_init == "table" else jnp.zeros_like(table.T)
            params["head"]["kernel"] = kernel
        return params

    def apply(self, params: Params, *arguments: Any, **options: Any) -> tuple:
        """The module on its part of the parameters."""
        own = {name: tree for name, tree in params.items() if name not in ("embed", "head")}
        return self.module.apply({"params": own}, *arguments, **options)

    @property
    def chunk(self) -> int:
        """Tokens per device whose logits exist at one time."""
        if self.head_chunk:
            return self.head_chunk
        return chunks.tokens_for(self.vocab_size, CHUNK_MEGABYTES[device_kind()])

    @functools.cached_property
    def trained(self) -> "Model":
        """The same network in the form whose gradient is cheapest; it compiles longer."""
        return dataclasses.replace(self, module=self.module.clone(trained=True))

    @functools.partial(jax.jit, static_argnums=0)
    def backbone(
        self, params, h_BLD, tau_s, tau_t=None, key=None, given_BL=None, estimate_BLD=None
    ):
        """`flow.net.Backbone`: dropout is on if and only if there is a key, or one for every text.

        Compiled as a part, so that a loss that asks several times is traced once.
        """
        rngs, interceptors = None if key is None else {STREAM: key}, contextlib.nullcontext()
        if key is not None and key.ndim:
            rngs, interceptors = {STREAM: jax.random.key(0)}, nn.intercept_methods(by_text(key))
        told = {"given_BL": given_BL, "estimate_BLD": estimate_BLD}
        options = {"deterministic": key is None, "rngs": rngs}
        with interceptors:
            return self.apply(params, h_BLD, tau_s, tau_t, **told, **options)[:2]

    def net(self, params: Params, temperature: float = 1.0, devices: int = 1) -> Net:
        """The network with these parameters; ``devices`` share the batch and so each chunk.

        A causal one is a `CausalNet`.
        """
        causal, gather = self.module.causal, self.module.gather
        if gather is not None:  # those of the blocks where each is used
            parts = {name: tree for name, tree in params.items() if name != "blocks"}
            params = {**params, **gather(parts)}
        make = functools.partial(CachedNet, model=self) if causal else Net
        return make(
            self.backbone,
            params,
            logit_cap=self.logit_cap,
            head_chunk=self.chunk * devices,
            dtype=self.module.dtype,
            temperature=temperature,
            self_conditioning=self.module.self_conditioning,
        )


def build(
    settings: Settings,
    vocab_size: int,
    gather: Gather | None = None,
    share: Share | None = None,
) -> Model:
    """The model of these settings for a vocabulary of ``vocab_size`` tokens.

    With ``mask_token`` the network has one token more, the last, that no tokenizer writes.
    ``gather`` brings parameters together that devices share; None: they are whole. ``share``
    divides kernels over devices; None: there is one.

    Raises UserError for a causal network that is to see times or estimates.
    """
    unseen = {
        "two_times": (settings.two_times, "time"),
        "loss_weighting": (settings.loss_weighting, "time"),
        "self_conditioning": (settings.self_conditioning, "estimate of what follows"),
    }
    for knob, (is_set, what) in unseen.items():
        if settings.causal and is_set:
            raise UserError(f"a causal network sees no {what}; set model.{knob}=False")
    module = DiT(
        depth=settings.depth,
        heads=settings.heads,
        cond_dim=settings.cond_dim,
        mlp_ratio=settings.mlp_ratio,
        dropout=settings.dropout,
        attention_cap=0.0 if settings.causal else settings.attention_cap,
        two_times=settings.two_times,
        loss_weighting=settings.loss_weighting,
        dtype=jnp.dtype(settings.dtype),
        remat=settings.remat,
        scan_unroll=settings.scan_unroll,
        causal=settings.causal,
        attention=settings.attention,
        learned_positions=settings.learned_positions,
        self_conditioning=settings.self_conditioning,
        gather=gather,
        share=share,
        stream_dtype=jnp.dtype(settings.stream_dtype),
        rms=settings.norm == "rms",
        mlp=settings.mlp,
        qk_norm=settings.qk_norm,
    )
    return Model(
        vocab_size + settings.mask_token,
        settings.width,
        settings.logit_cap,
        settings.head_chunk,
        settings.head_init,
        module,
        settings.tied_head,
    )


def count_parameters(params: Tree) -> int:
    """Number of entries in all arrays of a tree (arrays or shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
