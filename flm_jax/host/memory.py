"""Freed memory goes back to the system, except what every matrix product needs again.

Three habits of glibc cost a training step on a CPU memory or time. XLA's compiler leaves hundreds
of megabytes of freed but retained heap behind (0.4 GiB after the training step of
configs/bench_cpu.py), on top of which the step then takes its own memory: the heap is trimmed
before the program runs. Glibc raises the size from which it maps a block of its own up to 32 MiB as
it sees such blocks freed, so that arrays end up in the heap and leave holes there: that size is
fixed. And a product on a CPU packs its operands into blocks of up to a dozen megabytes, freed when
it is done. If these went back to the system, every product would wait for the system to zero fresh
pages (370,000 page faults a step, a sixth of its time): the heap keeps them, one heap for all
threads, or else each of them would keep its own.

The memory that a compiled program takes for its run, one block, is another such case: mapped anew
for every training step of a small model, its zeroed pages were a seventh of the step. The heap
keeps it where no array of the model is large, so that there are no holes (`keep_programs`).

Only glibc is like this and can be asked; elsewhere nothing happens.
"""

import ctypes
import functools
import importlib.util
import math
from typing import Any

import jax

from flm_jax.host import numerics

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
SECONDS = 1.0  # programs that compile faster leave little
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8  # malloc.h
PACKED = 8 * 2**20  # bytes; nearly all that a product packs is smaller, large arrays are larger
KEPT = 64 * 2**20  # bytes free at the end of the heap, for the blocks of a few products
PROGRAM = 2**30  # bytes free there at most, for the run of a small model's program
MAPPED_FROM = 2**20  # bytes, with an accelerator; below, a map of its own costs more than it saves


@functools.cache
def keep_small() -> None:
    """From now on large arrays are maps of their own; long compilations are followed by a `trim`.

    To be called before devices are touched: their threads choose their heaps early.
    """
    if only_cpu():
        _glibc("mallopt", M_ARENA_MAX, 1)
        _glibc("mallopt", M_MMAP_THRESHOLD, PACKED)
        _glibc("mallopt", M_TRIM_THRESHOLD, KEPT)
    else:  # products are computed elsewhere
        _glibc("mallopt", M_MMAP_THRESHOLD, MAPPED_FROM)

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILE_EVENT and duration_secs >= SECONDS:
            trim()

    jax.monitoring.register_event_duration_secs_listener(listen)


def keep_programs(params: Any) -> None:
    """From now on the heap keeps what a program takes for its run, if the model is small.

    That is: no array of ``params`` (arrays or shapes) is as large as a map of its own. After
    `keep_small`; lasts until the process ends.
    """
    largest = max(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    if only_cpu() and largest < PACKED:
        _glibc("mallopt", M_MMAP_MAX, 0)
        _glibc("mallopt", M_TRIM_THRESHOLD, PROGRAM)


def only_cpu() -> bool:
    """Whether this process will compute on CPUs, as far as that is known before devices are."""
    if platforms := numerics.setting("jax_platforms"):
        return platforms == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def trim() -> bool:
    """Gives freed heap memory back to the system; False where that is not possible."""
    return _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> bool:
    """Whether that function is there and reports success."""
    try:
        return bool(getattr(ctypes.CDLL(None), function)(*arguments))
    except (AttributeError, OSError, TypeError):
        return False
