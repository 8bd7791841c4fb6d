"""What programs are made for: the devices of this process, or others that are not here.

Networks, kernels and budgets ask `current` instead of JAX, so that a program can be traced and
compiled for a chip that this machine does not have (`lab/plan/topology.py`).
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax

ACCELERATORS = ("tpu", "gpu")


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices of one kind.

    Attributes:
      platform: "cpu", "tpu" or "gpu".
      device_kind: its maker's name: "TPU v5 lite", "NVIDIA H200".
      devices: how many share a program.
      compute_capability: of an NVIDIA GPU, "9.0"; else "".
    """

    platform: str
    device_kind: str
    devices: int
    compute_capability: str = ""

    @property
    def form(self) -> Literal["cpu", "accelerator"]:
        """Which of two forms of a computation suits it."""
        return "accelerator" if self.platform in ACCELERATORS else "cpu"


_CHOSEN: contextvars.ContextVar[Target | None] = contextvars.ContextVar("target", default=None)


def of_devices(devices: Sequence[Any]) -> Target:
    """Devices of JAX, or of a topology, all of one kind."""
    first = devices[0]
    # Only GPUs that are here have it.
    capability = getattr(first, "compute_capability", "")
    return Target(first.platform, first.device_kind, len(devices), capability)


def current() -> Target:
    """What is compiled for now: the devices of this process, unless `compiling_for` says others."""
    return _CHOSEN.get() or of_devices(jax.devices())


@contextlib.contextmanager
def compiling_for(target: Target) -> Iterator[None]:
    """In this block programs are traced for other devices; nothing that was traced is kept.

    JAX keeps traced functions by their arguments, of which the target is none.
    """
    token = _CHOSEN.set(target)
    jax.clear_caches()
    try:
        yield
    finally:
        _CHOSEN.reset(token)
        jax.clear_caches()
