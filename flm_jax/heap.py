"""Memory that compiling has used goes back to the system before the program runs.

XLA's compiler leaves hundreds of megabytes of freed but retained heap behind (0.4 GiB after the
training step of configs/bench_cpu.py), on top of which the step then takes its own memory. Only
glibc keeps memory in this way and can be asked; elsewhere nothing happens.
"""

import ctypes
import functools

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
SECONDS = 1.0  # programs that compile faster leave little


@functools.cache
def trim_after_compiles() -> None:
    """From now on, every program that took long to compile is followed by a `trim`."""

    def listen(event: str, duration: float, **_) -> None:
        if event == COMPILE_EVENT and duration >= SECONDS:
            trim()

    jax.monitoring.register_event_duration_secs_listener(listen)


def trim() -> bool:
    """Gives freed heap memory back to the system; False where that is not possible."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
