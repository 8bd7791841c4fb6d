"""Freed memory goes back to the system, except what products need again."""

import platform
import resource
import subprocess
import sys

import jax
import pytest

from flm_jax.host import memory


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_trim_gives_back_freed_memory():
    """Small blocks with a live one at the end stay with the process until it trims."""
    blocks = [bytes(4000) for _ in range(20_000)]
    keep = bytes(4000)
    full = resident()
    del blocks
    if not memory.trim():
        return  # not glibc: there is nothing to ask
    assert resident() < full - 40_000_000 and keep


@pytest.mark.parametrize(("platforms", "megabytes"), [("cpu", 9), ("cuda", 4)])
def test_a_freed_large_array_goes_back_at_once(platforms, megabytes):
    """Without a fixed threshold, a block below one that was freed before stays in the heap."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("there is nothing to ask of this C library")
    given_back = float(in_fresh_process(GIVES_BACK, platforms, str(megabytes)))
    assert given_back > 0.9 * 20 * megabytes


@pytest.mark.parametrize("platforms", ["cpu", "cuda"])
def test_a_product_finds_the_memory_of_the_one_before(platforms):
    """Packed operands are small blocks freed at the end of a product: zeroed once or every time."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("there is nothing to ask of this C library")
    faults = int(in_fresh_process(PACKS, platforms))
    assert (faults < 1000) == (platforms == "cpu"), faults


@pytest.mark.parametrize("megabytes", [4, 9])
def test_the_run_of_a_small_models_program_finds_its_memory_again(megabytes):
    """``megabytes``: the largest array of the model; a larger one would leave holes."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("there is nothing to ask of this C library")
    faults = int(in_fresh_process(RUNS, "cpu", str(megabytes)))
    assert (faults < 1000) == (megabytes == 4), faults


PREPARE = """
import resource, sys, threading
import jax
jax.config.update("jax_platforms", sys.argv[1])  # no device is touched: cuda need not be there
from flm_jax.host import memory
memory.keep_small()
"""

GIVES_BACK = (
    PREPARE
    + """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6
size = int(float(sys.argv[2]) * 1e6)
bytearray(20_000_000)  # freed: blocks of this size would go into the heap from now on
blocks = [bytearray(b"x" * size) for _ in range(20)]
keep = bytes(100_000)  # above them, so that the heap cannot shrink
full = resident()
del blocks
print(full - resident())
"""
)

PACKS = (
    PREPARE
    + """
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def pack():
    for _ in range(10):
        bytearray(b"x" * 6_000_000)
pack()
before = faults()
thread = threading.Thread(target=pack)  # products run in any thread of a pool
thread.start()
thread.join()
pack()
print(faults() - before)
"""
)

RUNS = (
    PREPARE
    + """
import jax.numpy as jnp
size = int(float(sys.argv[2]) * 2**18)
memory.keep_programs({"kernel": jax.ShapeDtypeStruct((size,), jnp.float32)})
def run():
    for _ in range(10):
        bytearray(b"x" * 100_000_000)
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
)


def in_fresh_process(program: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_only_long_compilations_are_followed_by_a_trim(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "trim", lambda: calls.append(1))
    memory.keep_small()
    memory.keep_small()
    jax.monitoring.record_event_duration_secs(memory.COMPILE_EVENT, 0.01)
    jax.monitoring.record_event_duration_secs("/another/event", 100.0)
    assert not calls
    jax.monitoring.record_event_duration_secs(memory.COMPILE_EVENT, 2.0)
    assert calls == [1]
