"""What a network evaluation costs by formula, and how fast this machine multiplies matrices."""

import dataclasses
import math
import re
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax import config as config_lib
from flm_jax.flow.net import Net
from flm_jax.flow.trees import Params
from flm_jax.host import numerics

# Dense peaks in FLOP/s per chip, as the vendors state them; the first name that is among the words
# of the device's counts.
PEAKS = {  # of bfloat16
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,  # what JAX calls a v5p
    "TPU v6 lite": 918e12,
}
# Of float32 operands at JAX's default precision: TF32 on these GPUs, one bfloat16 pass on TPUs.
FLOAT32_PEAKS = {
    "GH200": 495e12,
    "H200": 495e12,
    "H100 PCIe": 378e12,
    "H100 NVL": 418e12,
    "H100": 495e12,
    "A100": 156e12,
    "L40S": 183e12,
    "L4": 60e12,
} | {name: peak for name, peak in PEAKS.items() if name.startswith("TPU")}


def evaluation_flops(
    model: config_lib.ModelConfig, vocab_size: int, length: int
) -> dict[str, float]:
    """FLOPs per token of one forward pass: matrix products of blocks, attention and head.

    A multiplication and an addition are two. Left out: norms, time embedding (per sequence), and
    what a state space adds, which is no part of the model.
    """
    width = model.width
    return {
        "blocks": 2.0 * model.depth * (4 + 2 * model.mlp_ratio) * width * width,
        "attention": 4.0 * model.depth * length * width,
        "head": 2.0 * width * vocab_size,
    }


def training_flops(
    model: config_lib.ModelConfig,
    vocab_size: int,
    tokens: int,
    length: int,
    evaluations: float,
    derivatives: float = 0.0,
) -> float:
    """Model FLOPs of a training step, over all devices: what is computed again is not counted.

    Args:
      tokens: of the batch, in rows of ``length``.
      evaluations: of networks, per token; one is differentiated, which costs two more.
      derivatives: of these with a forward derivative, which costs each once more.
    """
    once = sum(evaluation_flops(model, vocab_size, length).values())
    return tokens * once * (evaluations + 2.0 + derivatives)


class Calls:
    """Counts the tokens that networks are asked about, while a program is traced.

    ``fused_head`` False gives the networks the head of the official method: differentiated as it
    stands, with no gradient made ahead.
    """

    def __init__(self, fused_head: bool = True):
        self.tokens = 0
        self.fused_head = fused_head

    def counting(self, make: Callable[[Params], Net]) -> Callable[[Params], Net]:
        """``make`` with networks that count; what they compute stays the same."""

        def made(params):
            net = make(params)

            def backbone(params, h_BLD, *rest):
                self.tokens += h_BLD.shape[0] * h_BLD.shape[1]
                return net.backbone(params, h_BLD, *rest)

            return dataclasses.replace(net, backbone=backbone, fused_head=self.fused_head)

        return made


class MatrixRate:
    """FLOP/s of matrix products of the model's own shapes on this device, measured.

    The shapes are a block's (tokens, D) x (D, hidden) and the head's (chunk, D) x (D, V); a sample
    times each for about ``seconds``, takes the fastest, and weighs both alike. Other load on the
    machine changes the rate from second to second, so samples are taken between the things to
    compare with, and their median counts.
    """

    def __init__(
        self, tokens: int, width: int, hidden: int, vocab_size: int, dtype: str, chunk: int,
        seconds: float,
    ):  # fmt: skip
        self.shapes = (tokens, width, hidden), (min(chunk, tokens), width, vocab_size)
        self.dtype, self.seconds = dtype, seconds
        self.product = jax.jit(lambda a, b: a @ b)
        self.samples = []

    def sample(self) -> None:
        rates = [2.0 * math.prod(shape) / self._fastest(*shape) for shape in self.shapes]
        self.samples.append(len(rates) / sum(1.0 / rate for rate in rates))

    def _fastest(self, rows: int, inner: int, columns: int) -> float:
        a, b = jnp.ones((rows, inner), self.dtype), jnp.ones((inner, columns), self.dtype)
        self.product(a, b).block_until_ready()
        best, end = float("inf"), time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            self.product(a, b).block_until_ready()
            best = min(best, time.perf_counter() - start)
        return best

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def known_peak(device_kind: str, dtype: str) -> float | None:
    """The vendor's peak in FLOP/s of a device for products of this type; None where unknown.

    For float32 it is that of JAX's default precision, and unknown if another one is asked for.
    """
    if dtype == "float32" and numerics.setting("jax_default_matmul_precision") not in (
        None, "default",
    ):  # fmt: skip
        return None
    table = {"bfloat16": PEAKS, "float32": FLOAT32_PEAKS}.get(dtype, {})
    for name, peak in table.items():
        if re.search(rf"\b{name}\b", device_kind, re.IGNORECASE):
            return peak
    return None
