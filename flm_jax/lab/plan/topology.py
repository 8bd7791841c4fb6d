"""Devices that are not here, described so well that the real compilers compile for them.

The compilers of TPUs and NVIDIA GPUs come as packages (the extras [tpu] and [cuda]); they need a
description of the chips instead of chips. Nothing of what they make can be run here.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax

from flm_jax.errors import UserError
from flm_jax.lab.plan.chips import Chip

# Slices by their number of chips, as Google offers them; the compiler wants whole hosts of four.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}
SLICES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBIC}
_PACKAGES = {"tpu": ("libtpu", "tpu"), "gpu": ("jax_cuda13_plugin", "cuda13")}
# Read by libtpu, which would ask a metadata server for them.
_TPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # It would let one process have the chips; these have none.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA's GpuTargetConfigProto says of a GPU, from its maker's data sheet and white paper.

    Attributes:
      memory, bandwidth, l2: bytes, bytes/s, bytes.
      shared, shared_block: bytes of shared memory of a multiprocessor, and of a block that asks.
      fpus: float32 units of a multiprocessor.
    """

    title: str
    capability: int
    multiprocessors: int
    fpus: int
    memory: int
    bandwidth: int
    l2: int
    shared: int
    shared_block: int
    clock_ghz: float

    def text(self) -> str:
        """In the form that XLA reads."""
        return (
            "gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 "
            f"shared_memory_per_block: 49152 shared_memory_per_core: {self.shared} "
            f"threads_per_core_limit: 2048 core_count: {self.multiprocessors} "
            f"fpus_per_core: {self.fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
            f"block_dim_limit_z: 65535 memory_bandwidth: {self.bandwidth} "
            f"l2_cache_size: {self.l2} clock_rate_ghz: {self.clock_ghz} "
            f"device_memory_size: {self.memory} "
            f"shared_memory_per_block_optin: {self.shared_block} "
            f"cuda_compute_capability {{ major: {self.capability} }} "
            "registers_per_core_limit: 65536 registers_per_block_limit: 65536 } "
            'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
            f'device_description_str: "{self.title}"'
        )


GPUS = {
    "h200": Gpu("NVIDIA H200", 9, 132, 128, 150_754_820_096, 4_800_000_000_000, 52_428_800,
                233_472, 232_448, 1.98),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 128, 85_024_112_640, 3_352_000_000_000, 52_428_800,
                233_472, 232_448, 1.98),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 64, 85_051_572_224, 2_039_000_000_000, 41_943_040,
                167_936, 166_912, 1.41),
}  # fmt: skip


def devices(chip: Chip, number: int) -> Sequence[Any]:
    """So many described devices.

    Raises UserError for chips that nothing here compiles for, numbers that no slice has, and where
    the compiler is not installed.
    """
    described = [*SLICES, *GPUS]
    if chip.name not in described:
        raise UserError(
            f"--compile has no description of the chip {chip.name!r}; those that can be compiled "
            f"for are {', '.join(described)}"
        )
    platform = "tpu" if chip.name in SLICES else "gpu"
    package, extra = _PACKAGES[platform]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"the compiler for {chip.name} is not installed: pip install 'jax[{extra}]"
            f"=={jax.__version__}' (best into an environment of its own: it is large), or leave "
            "--compile out for an estimate without it"
        )
    return _slice(chip.name, number) if platform == "tpu" else _gpus(chip.name, number)


def _slice(name: str, number: int) -> Sequence[Any]:
    from jax.experimental import topologies

    for variable, value in _TPU_VARIABLES.items():
        os.environ.setdefault(variable, value)
    layouts = SLICES[name]
    whole = 4 if number in (1, 2) else number  # a part of a host: of its four chips
    if whole not in layouts:
        raise UserError(
            f"there is no slice of {number} chips of {name}; "
            f"take 1, 2, {', '.join(map(str, layouts))}"
        )
    described = topologies.get_topology_desc(f"{name}:{layouts[whole]}", platform="tpu").devices
    return described[:number]


def _gpus(name: str, number: int) -> Sequence[Any]:
    from jax.experimental import topologies

    if number > 8 and number % 8:
        raise UserError(f"{number} x {name}: beyond one host of 8 only whole hosts are described")
    hosts, each = max(1, number // 8), min(number, 8)
    return topologies.get_topology_desc(
        "", platform="cuda", target_config=GPUS[name].text(), topology=f"{hosts}x1x{each}"
    ).devices
