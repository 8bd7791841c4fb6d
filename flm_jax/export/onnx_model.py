"""A jump as an ONNX graph, written node by node from the parameters.

What it computes is said by `models/dit.py` and the files beside it, and by `export/jump.py`, whose
names of inputs and outputs it has; the tests hold both against each other. Everything is float32,
and all logits of a call exist at one time.
"""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from flm_jax.export.jump import OUTPUTS, Jump
from flm_jax.export.onnx_graph import INLINE, Graph
from flm_jax.flow.clock import Spline
from flm_jax.flow.input_scale import TINY
from flm_jax.interop.flat import flat
from flm_jax.models.attention import rotary_frequencies
from flm_jax.models.dit import GELU
from flm_jax.models.layers import FREQUENCIES, MAX_PERIOD
from flm_jax.samplers.euler import Euler

GRAPH_FILE = "jump.onnx"
_EPSILON = 1e-5  # of the norms


def write(
    jump: Jump,
    folder: pathlib.Path,
    about: str = "",
    properties: Mapping[str, str] | None = None,
    inline: int = INLINE,
) -> None:
    """Writes the graph; see `Graph.save` for ``inline``."""
    graph = Graph()
    found = _Writer(jump, graph).outputs()
    for name in OUTPUTS:
        graph.name(found[name], name)
    path = folder / GRAPH_FILE
    graph.save(path, jump.inputs, jump.outputs, about, properties or {}, inline)


class _Writer:
    """The parts of a jump, each from the values that it is made of to the value that it is.

    Values are names in the graph; suffixes are their shapes, as everywhere.
    """

    def __init__(self, jump: Jump, graph: Graph):
        self.jump, self.g = jump, graph
        self.settings = jump.model.config.model
        self.weights = flat(jump.model.params)
        self.given = jump.needs.given

    def outputs(self) -> dict[str, str]:
        """The outputs of a jump by name."""
        g, state = self.g, "state"
        given_BL1 = ""
        if self.given:
            given_BL1 = g("Unsqueeze", "given_mask", np.array([2]))
            state = g("Where", given_BL1, self.clean("given_tokens"), state)
        t_s, t_t = self.time("tau_s"), self.time("tau_t")
        raw_BLV = self.logits(state, t_s)
        tokens_BL = g("Cast", g("ArgMax", raw_BLV, axis=-1, keepdims=0), to=_type(np.int32))
        p_BLV = g("Softmax", self.capped(raw_BLV), axis=-1)
        confidence_BL = g("ReduceMax", p_BLV, axes=[-1], keepdims=0)
        mean = p_BLV if self.jump.is_onehot else g("MatMul", p_BLV, self.table())
        if self.given:
            mean = g("Where", given_BL1, state, mean)
            tokens_BL = g("Where", "given_mask", "given_tokens", tokens_BL)
            confidence_BL = g("Where", "given_mask", 1.0, confidence_BL)
        keep, add = (self.per_token(x) for x in self.coefficients(t_s, t_t))
        after = g("Add", g("Mul", keep, state), g("Mul", add, mean))
        if self.given:
            after = g("Where", given_BL1, state, after)
        return dict(zip(OUTPUTS, (after, tokens_BL, confidence_BL, mean), strict=True))

    # Space and times.

    def table(self) -> str:
        return self.weight("embed/table")

    def clean(self, tokens_BL: str) -> str:
        """The state of tokens."""
        if not self.jump.is_onehot:
            return self.g("Gather", self.table(), tokens_BL, axis=0)
        wide = self.g("Cast", tokens_BL, to=_type(np.int64))  # as onnxruntime wants it
        size = np.int64(self.jump.vocab_size)
        return self.g("OneHot", wide, size, np.array([0.0, 1.0], np.float32), axis=-1)

    def time(self, tau_B: str) -> str:
        """`Clock.to_t`."""
        spline = self.jump.portable.clock.inverse
        return tau_B if spline is None else self.g("Clip", self.spline(spline, tau_B), 0.0, 1.0)

    def spline(self, spline: Spline, x_B: str) -> str:
        """`Spline.__call__`: the interval is found by counting the knots that are not above."""
        g = self.g
        knots, low, scale, coefficients = (np.asarray(x, np.float32) for x in spline)
        passed = g("GreaterOrEqual", g("Unsqueeze", x_B, np.array([1])), knots[None])
        count = g("ReduceSum", g("Cast", passed, to=_type(np.int64)), np.array([1]), keepdims=0)
        i = g("Clip", g("Sub", count, np.int64(1)), np.int64(0), np.int64(knots.size - 2))
        u = g("Sub", g("Sub", x_B, g("Gather", knots, i)), g("Gather", low, i))
        u = g("Clip", g("Mul", u, g("Gather", scale, i)), 0.0, 1.0)
        value = g("Gather", coefficients[0], i)
        for coefficient in coefficients[1:]:
            value = g("Add", g("Mul", value, u), g("Gather", coefficient, i))
        last = coefficients[3]  # rounding keeps the order
        begin, end = (g("Gather", last, j) for j in (i, g("Add", i, np.int64(1))))
        return g("Min", g("Max", value, begin), end)

    def coefficients(self, t_s: str, t_t: str) -> tuple[str, str]:
        """(keep, add) of `maps.euler` or `maps.jump`."""
        g, rule = self.g, self.jump.rule
        clean = g("GreaterOrEqual", t_s, 1.0)
        left = g("Sub", 1.0, t_s)
        if isinstance(rule, Euler):
            left = g("Add", left, rule.eps)
        left = g("Where", clean, 1.0, left)
        add = g("Where", clean, 0.0, g("Div", g("Sub", t_t, t_s), left))
        if isinstance(rule, Euler):
            return g("Sub", 1.0, add), add
        return g("Where", clean, 1.0, g("Div", g("Sub", 1.0, t_t), left)), add

    def per_token(self, x_B: str) -> str:
        """(B,) -> (B, 1, 1)."""
        return self.g("Unsqueeze", x_B, np.array([1, 2]))

    # The network.

    def logits(self, state: str, t_s: str) -> str:
        """Raw logits (B, L, V) of the network at a state."""
        g, settings = self.g, self.settings
        estimate_BLD = ""
        h_BLD = self.view(state)
        if self.jump.needs.self_conditioning:
            estimate_BLD = self.view("estimate")
        if settings.input_scale:
            h_BLD, estimate_BLD = self.scaled(h_BLD, estimate_BLD, t_s)
        if estimate_BLD:
            h_BLD = g("Add", h_BLD, self.linear(estimate_BLD, "estimate"))
        length = g("Gather", g("Shape", "state"), np.int64(1))
        if settings.learned_positions:
            end = g("Unsqueeze", length, np.array([0]))
            table = self.weight("positions")
            h_BLD = g("Add", h_BLD, g("Slice", table, np.array([0]), end, np.array([0])))
        conditioning, rotary = self.conditioning(), self.rotary(length)
        for layer in range(settings.depth):
            h_BLD = self.block(h_BLD, conditioning, rotary, layer)
        shift, scale = self.modulation(conditioning, "final/modulation", 2)
        features_BLD = self.modulate(self.norm(h_BLD, "final/norm/scale"), shift, scale)
        kernel = self.table() if settings.tied_head else self.weight("head/kernel")
        if settings.tied_head:
            kernel = g("Transpose", kernel, perm=[1, 0])
        return g("Add", g("MatMul", features_BLD, kernel), self.weight("head/bias"))

    def view(self, state: str) -> str:
        """h = x @ E (B, L, D)."""
        return self.g("MatMul", state, self.table()) if self.jump.is_onehot else state

    def capped(self, raw_BLV: str) -> str:
        """`Head.capped`."""
        cap, temperature = self.settings.logit_cap, self.jump.temperature
        logits = self.cap(raw_BLV, cap)
        return logits if temperature == 1.0 else self.g("Div", logits, float(temperature))

    def cap(self, x: str, cap: float) -> str:
        g, cap = self.g, float(cap)
        return g("Mul", g("Tanh", g("Div", x, cap)), cap) if cap else x

    def scaled(self, h_BLD: str, estimate_BLD: str, t_s: str) -> tuple[str, str]:
        """`input_scale.scaled`: the state, and the estimate if there is one."""
        g, deviation = self.g, self.settings.input_scale
        table_VD = self.weights["embed/table"].astype(np.float64)
        power = float(np.sum(table_VD**2) / table_VD.shape[1])
        t = self.per_token(t_s)
        if self.given:
            t = g("Where", g("Unsqueeze", "given_mask", np.array([2])), 1.0, t)
        noisy, clean = g("Sub", 1.0, t), g("Div", g("Mul", t, t), float(len(table_VD)))
        variance = g("Mul", g("Add", g("Mul", noisy, noisy), clean), power)
        scale = g("Div", float(deviation), g("Sqrt", g("Add", variance, TINY)))
        if estimate_BLD:
            at_one = deviation / math.sqrt(power / len(table_VD) + TINY)
            estimate_BLD = g("Mul", estimate_BLD, at_one)
        return g("Mul", h_BLD, scale), estimate_BLD

    def conditioning(self) -> str:
        """`DiT.condition`: (B, C), or (B + 1, C) with the vector of given tokens last."""
        g = self.g
        vectors = self.embedded("tau_s", "time_embed")
        if self.jump.needs.two_times:
            vectors = g("Add", vectors, self.embedded("tau_t", "time_embed_to"))
        return self.silu(vectors)

    def embedded(self, tau_B: str, name: str) -> str:
        """`TimeEmbedding`, of the time 1 besides where tokens are given."""
        g = self.g
        if self.given:
            tau_B = g("Concat", tau_B, np.ones(1, np.float32), axis=0)
        index = np.arange(FREQUENCIES, dtype=np.float32)
        frequency = np.exp(np.float32(-math.log(MAX_PERIOD)) * index / np.float32(FREQUENCIES))
        angle = g("Mul", g("Unsqueeze", tau_B, np.array([1])), frequency[None])
        waves = g("Concat", g("Cos", angle), g("Sin", angle), axis=-1)
        return self.linear(self.silu(self.linear(waves, f"{name}/in")), f"{name}/out")

    def modulation(self, conditioning: str, name: str, parts: int, layer: int | None = None):
        """`Conditioning.split`: (B, 1, D) each, or (B, L, D) where tokens are given."""
        g = self.g
        vectors = g("Unsqueeze", self.linear(conditioning, name, layer), np.array([1]))
        sizes = np.full(parts, self.settings.width)
        split = g.several("Split", parts, vectors, sizes, axis=-1)
        if not self.given:
            return split
        given_BL1 = g("Unsqueeze", "given_mask", np.array([2]))
        ends = np.array([-1]), np.array([np.iinfo(np.int64).max]), np.array([0])
        own = np.array([0]), np.array([-1]), np.array([0])
        return [g("Where", given_BL1, g("Slice", x, *ends), g("Slice", x, *own)) for x in split]

    def rotary(self, length: str) -> tuple[str, str]:
        """`rotary_tables`: cos and sin (L, K / 2)."""
        g = self.g
        end = g("Cast", length, to=_type(np.float32))
        position = g("Range", np.float32(0), end, np.float32(1))
        frequency = rotary_frequencies(self.settings.width // self.settings.heads)
        angle = g("Mul", g("Unsqueeze", position, np.array([1])), frequency[None])
        return g("Cos", angle), g("Sin", angle)

    def block(self, h_BLD: str, conditioning: str, rotary: tuple[str, str], layer: int) -> str:
        """`Block`."""
        g, name = self.g, "blocks"
        parts = self.modulation(conditioning, f"{name}/modulation", 6, layer)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        u = self.modulate(self.norm(h_BLD, f"{name}/norm_attention/scale", layer), shift_a, scale_a)
        mixed = self.linear(self.attention(u, rotary, layer), f"{name}/attention_out", layer)
        h_BLD = g("Add", h_BLD, g("Mul", gate_a, mixed))
        u = self.modulate(self.norm(h_BLD, f"{name}/norm_mlp/scale", layer), shift_m, scale_m)
        inner = self.linear(u, f"{name}/mlp_in", layer)
        if self.settings.mlp == GELU:
            inner = self.gelu(inner)
        else:
            inner = g("Mul", self.silu(self.linear(u, f"{name}/mlp_gate", layer)), inner)
        return g("Add", h_BLD, g("Mul", gate_m, self.linear(inner, f"{name}/mlp_out", layer)))

    def attention(self, u_BLD: str, rotary: tuple[str, str], layer: int) -> str:
        """Attention of a block, (B, L, D), before its output projection."""
        g, heads = self.g, self.settings.heads
        width = self.settings.width // heads
        qkv = g(
            "Reshape", self.linear(u_BLD, "blocks/qkv", layer), np.array([0, 0, 3 * heads, width])
        )
        qkv = g("Transpose", qkv, perm=[0, 2, 1, 3])
        q, k, v = g.several("Split", 3, qkv, np.full(3, heads), axis=1)
        if self.settings.qk_norm:
            q, k = (
                self.rms(x, f"blocks/{n}/scale", layer) for x, n in ((q, "q_norm"), (k, "k_norm"))
            )
        q, k = self.rotate(q, rotary), self.rotate(k, rotary)
        scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.cap(g("Mul", scores, width**-0.5), self.settings.attention_cap)
        mixed = g("MatMul", g("Softmax", scores, axis=-1), v)
        return g(
            "Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([0, 0, heads * width])
        )

    def rotate(self, x_BHLK: str, rotary: tuple[str, str]) -> str:
        """`attention.rotate`."""
        g, (cos, sin) = self.g, rotary
        half = self.settings.width // self.settings.heads // 2
        a, b = g.several("Split", 2, x_BHLK, np.full(2, half), axis=-1)
        first = g("Sub", g("Mul", a, cos), g("Mul", b, sin))
        return g("Concat", first, g("Add", g("Mul", a, sin), g("Mul", b, cos)), axis=-1)

    # Layers.

    def weight(self, name: str, layer: int | None = None) -> str:
        """A parameter; of a block, the part of that layer."""
        whole = self.weights[name]
        if layer is None:
            return self.g.constant(whole, name)
        return self.g.constant(whole[layer], name.replace("blocks/", f"blocks/{layer}/"))

    def linear(self, x: str, name: str, layer: int | None = None) -> str:
        y = self.g("MatMul", x, self.weight(f"{name}/kernel", layer))
        bias = f"{name}/bias"
        return self.g("Add", y, self.weight(bias, layer)) if bias in self.weights else y

    def norm(self, x: str, scale: str, layer: int | None = None) -> str:
        if self.settings.norm == "rms":
            return self.rms(x, scale, layer)
        weight = self.weight(scale, layer)
        return self.g("LayerNormalization", x, weight, axis=-1, epsilon=_EPSILON)

    def rms(self, x: str, scale: str, layer: int | None = None) -> str:
        g = self.g
        square = g("ReduceMean", g("Mul", x, x), axes=[-1], keepdims=1)
        return g(
            "Mul", g("Div", x, g("Sqrt", g("Add", square, _EPSILON))), self.weight(scale, layer)
        )

    def modulate(self, x: str, shift: str, scale: str) -> str:
        return self.g("Add", self.g("Mul", x, self.g("Add", scale, 1.0)), shift)

    def silu(self, x: str) -> str:
        return self.g("Mul", x, self.g("Sigmoid", x))

    def gelu(self, x: str) -> str:
        """The tanh form."""
        g = self.g
        inner = g("Add", x, g("Mul", g("Mul", g("Mul", x, x), x), 0.044715))
        tanh = g("Tanh", g("Mul", inner, math.sqrt(2.0 / math.pi)))
        return g("Mul", g("Mul", x, 0.5), g("Add", tanh, 1.0))


def _type(dtype: type) -> int:
    from onnx import helper  # pyright: ignore[reportMissingImports]

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
