"""Freed memory goes back to the system after long compilations."""

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


def test_only_long_compilations_are_followed_by_a_trim(monkeypatch):
    calls = []
    monkeypatch.setattr(heap, "trim", lambda: calls.append(1))
    heap.trim_after_compiles()
    heap.trim_after_compiles()
    jax.monitoring.record_event_duration_secs(heap.COMPILE_EVENT, 0.01)
    jax.monitoring.record_event_duration_secs("/another/event", 100.0)
    assert not calls
    jax.monitoring.record_event_duration_secs(heap.COMPILE_EVENT, 2.0)
    assert calls == [1]
