"""What accelerators can do, and names for numbers of them: v5p-64, v6e-8, h100x8, cpu."""

import dataclasses
import re

from flm_jax.errors import UserError
from flm_jax.training.cost import PEAKS


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its vendor describes it.

    Attributes:
      memory_gb: 1e9 bytes.
      bf16_tflops: dense peak.
      float32_tflops: of products with float32 operands at JAX's default precision (TF32 on GPUs
        since Ampere, bfloat16 passes on TPUs).
      exact_tflops: of products that are asked for in full float32 (the noise of the projected
        space): the ordinary float32 units of a GPU, six bfloat16 passes of a TPU.
      memory_gbs: memory bandwidth, 1e9 bytes/s.
      link_gbs: what a chip can send within a host (GPU) or slice (TPU), one direction, 1e9 bytes/s.
      network_gbs: per chip between hosts, where that is another network.
      per_host: chips that `link_gbs` connects; 0: all of them (the interconnect of a TPU slice).
      source: where the numbers are from.
    """

    name: str
    memory_gb: float
    bf16_tflops: float
    float32_tflops: float
    exact_tflops: float
    memory_gbs: float
    link_gbs: float
    network_gbs: float
    per_host: int
    source: str


def _tpu(name: str, device: str, memory_gb: float, memory_gbs: float, link_gbs: float) -> Chip:
    peak = PEAKS[device] / 1e12
    source = f"Google Cloud documentation of TPU {name}: peak, memory, interconnect per chip / 2"
    return Chip(
        name, memory_gb, peak, peak, peak / 6, memory_gbs, link_gbs, link_gbs, 0, source
    )  # fmt: skip


CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", "TPU v4", 32, 1200, 150),
        _tpu("v5e", "TPU v5 lite", 16, 819, 200),
        _tpu("v5p", "TPU v5p", 95, 2765, 300),
        _tpu("v6e", "TPU v6 lite", 32, 1600, 400),
        Chip("h200", 141, PEAKS["H200"] / 1e12, 495, 67, 4800, 450, 50, 8,
             "NVIDIA data sheet of H200 SXM; network: one 400 Gbit/s port a GPU"),
        Chip("h100", 80, PEAKS["H100"] / 1e12, 495, 67, 3350, 450, 50, 8,
             "NVIDIA data sheet of H100 SXM; network: one 400 Gbit/s port a GPU"),
        Chip("a100", 80, PEAKS["A100"] / 1e12, 156, 19.5, 2039, 300, 25, 8,
             "NVIDIA data sheet of A100 SXM 80 GB; network: one 200 Gbit/s port a GPU"),
        Chip("l4", 24, 121, 60, 30, 300, 32, 12, 8, "NVIDIA data sheet of L4; links: PCIe 4"),
        Chip("t4", 16, 8.1, 8.1, 8.1, 300, 16, 6, 4,
             "NVIDIA data sheet of T4 (no bfloat16 units: float32 rate); links: PCIe 3"),
        Chip("cpu", 24, 0.15, 0.15, 0.15, 20, 10, 1, 1,
             "two shared cores that this project is measured on; products 0.14 to 0.36 TFLOP/s"),
    )
}  # fmt: skip
TPUS = ("v4", "v5e", "v5p", "v6e")
_CORES = {"v4", "v5p"}  # the number in the name of a slice counts TensorCores, two on a chip
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e"}


def parse(text: str) -> tuple[Chip, int]:
    """("v5p-64") -> (the chip, 32): a TPU slice by its official name, or CHIPxNUMBER.

    Raises UserError for unknown chips and impossible numbers.
    """
    found = re.fullmatch(r"([a-z0-9]+?)(?:([x-])(\d+))?", text.strip().lower())
    name = _ALIASES.get(found[1], found[1]) if found else ""
    if not found or name not in CHIPS:
        raise UserError(
            f"--chips={text!r} is unknown; write for example v5p-64, v6e-8, h100x8 or h200x1 "
            f"(chips: {', '.join(CHIPS)}), or describe your own with --chips=custom"
        )
    number = int(found[3] or 1)
    if found[2] == "-":
        if name not in TPUS:
            raise UserError(f"--chips={text!r}: only TPU slices have a dash; write {name}x{number}")
        if name in _CORES:
            if number % 2:
                raise UserError(
                    f"--chips={text!r}: the number of a {name} slice counts cores, two on a chip; "
                    f"try {name}-{number + 1}"
                )
            number //= 2
    if number < 1:
        raise UserError(f"--chips={text!r} has no chip; write {name}x1")
    return CHIPS[name], number
