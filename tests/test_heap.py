"""Freed memory goes back to the system after long compilations."""

import platform
import resource

import jax

from flm_jax import heap


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_trim_gives_back_freed_memory():
    """Small blocks with a live one at the end stay with the process until it trims."""
    blocks = [bytes(4000) for _ in range(20_000)]
    keep = bytes(4000)
    full = resident()
    del blocks
    if not heap.trim():
        return  # not glibc: there is nothing to ask
    assert resident() < full - 40_000_000 and keep


def test_a_freed_array_of_megabytes_goes_back_at_once():
    """Without a fixed threshold, a block below one that was freed before stays in the heap."""
    heap.keep_small()
    bytearray(20_000_000)  # freed: blocks of this size would go into the heap from now on
    blocks = [bytearray(b"x" * 4_000_000) for _ in range(20)]
    keep = bytes(100_000)  # above them, so that the heap cannot shrink
    full = resident()
    del blocks
    if platform.libc_ver()[0] != "glibc":
        return  # nothing to ask
    assert resident() < full - 60_000_000 and keep


def test_only_long_compilations_are_followed_by_a_trim(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "trim", lambda: calls.append(1))
    heap.keep_small()
    heap.keep_small()
    jax.monitoring.record_event_duration_secs(heap.COMPILE_EVENT, 0.01)
    jax.monitoring.record_event_duration_secs("/another/event", 100.0)
    assert not calls
    jax.monitoring.record_event_duration_secs(heap.COMPILE_EVENT, 2.0)
    assert calls == [1]
