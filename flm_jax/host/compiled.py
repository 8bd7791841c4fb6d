"""Compiled programs kept from one process to the next, in JAX's persistent cache.

They run on processors like the one they were compiled on. A folder that JAX was told of before, by
JAX_COMPILATION_CACHE_DIR or in Python, stays.
"""

import contextlib
import gc
import hashlib
import os
import pathlib
import platform
from collections.abc import Iterator

import jax

from flm_jax.errors import UserError
from flm_jax.host import folders

_FOLDER, _THRESHOLD = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def kept_in(folder: pathlib.Path, at_least_s: float | None = None) -> Iterator[None]:
    """Inside it, programs are kept in a folder, and taken from there.

    ``at_least_s``: only those that take so long to compile; None: JAX's own second.
    """
    if jax.config.values[_FOLDER]:
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: jax.config.values[name] for name in (_FOLDER, _THRESHOLD)}
    jax.config.update(_FOLDER, str(folder))
    if at_least_s is not None:
        jax.config.update(_THRESHOLD, at_least_s)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def kept_for_user() -> Iterator[None]:
    """Inside it, all programs are kept in the user's cache folder, if there is one to write to.

    For commands of a few seconds, which small programs would keep waiting as much as large ones.
    """
    try:
        folder = folders.cache() / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError):  # no home, or nothing may be written there
        folder = None
    if folder is None or not os.access(folder, os.W_OK):
        yield
        return
    with kept_in(folder, at_least_s=0.0):
        yield


def _processor() -> str:
    """A name for what this CPU understands: homes are shared by machines that differ."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    words = " ".join([platform.machine(), platform.processor(), *sorted(features.split())])
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def needed_bytes(program: jax.stages.Compiled) -> int | None:
    """What a compiled program needs on one device, its arguments included; None if it is not known.

    Results in the place of arguments count once.
    """
    used = program.memory_analysis()
    if used is None:
        return None
    parts = used.argument_size_in_bytes, used.output_size_in_bytes, used.temp_size_in_bytes
    return sum(parts) - used.alias_size_in_bytes


def forget() -> None:
    """Frees the programs of networks that are gone: of many networks they would fill the memory."""
    gc.collect()
    jax.clear_caches()
