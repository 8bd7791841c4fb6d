"""Freed memory goes back to the system instead of waiting in the process.

XLA's compiler leaves hundreds of megabytes of freed but retained heap behind (0.4 GiB after the
training step of configs/bench_cpu.py), on top of which the step then takes its own memory: the heap
is trimmed before the program runs. And glibc raises the size from which it maps a block of its own
up to 32 MiB as it sees such blocks freed, so that arrays end up in the heap and leave holes there
(another 50 MiB): that size is fixed. Only glibc is like this and can be asked; elsewhere nothing
happens.
"""

import ctypes
import functools

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
SECONDS = 1.0  # programs that compile faster leave little
M_MMAP_THRESHOLD = -3  # malloc.h
MAPPED_FROM = 2**20  # bytes; a smaller array is not worth the page faults of a map of its own


@functools.cache
def keep_small() -> None:
    """From now on arrays are maps of their own, and long compilations are followed by a `trim`."""
    _glibc("mallopt", M_MMAP_THRESHOLD, MAPPED_FROM)

    def listen(event: str, duration: float, **_) -> None:
        if event == COMPILE_EVENT and duration >= SECONDS:
            trim()

    jax.monitoring.register_event_duration_secs_listener(listen)


def trim() -> bool:
    """Gives freed heap memory back to the system; False where that is not possible."""
    return _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> bool:
    """Whether that function is there and reports success."""
    try:
        return bool(getattr(ctypes.CDLL(None), function)(*arguments))
    except (AttributeError, OSError, TypeError):
        return False
