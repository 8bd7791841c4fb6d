"""What a network evaluation costs by formula, and how fast this machine multiplies matrices."""

import math
import statistics
import time

import jax
import jax.numpy as jnp

from flm_jax import config as config_lib

# Dense bf16 peaks in FLOP/s per chip, as the vendors state them; matched on the device's name.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}


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
    """The vendor's bf16 peak of a device; None for other types and unknown devices."""
    if dtype != "bfloat16":
        return None
    found = [peak for name, peak in PEAKS.items() if name.lower() in device_kind.lower()]
    return found[0] if found else None
