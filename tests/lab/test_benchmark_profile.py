"""Where time goes: kinds of work from the program's text, times from a trace's events."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from test_benchmark import TINY, command

from flm_jax import config as config_lib
from flm_jax.lab.benchmark import profile
from flm_jax.lab.benchmark.asked import Asked

V, D = 80, 16
HLO = """
%fused (a: f32[5,16], b: f32[16,80]) -> f32[5,80] {
  %a = f32[5,16]{1,0} parameter(0)
  %b = f32[16,80]{1,0} parameter(1)
  ROOT %dot.1 = f32[5,80]{1,0} dot(%a, %b), lhs_contracting_dims={1}
}

%tuples (c: f32[5,16]) -> (f32[5,80], f32[5]) {
  %c = f32[5,16]{1,0} parameter(0)
  ROOT %sum = (f32[5,80]{1,0}, f32[5]{0}) exponential(%c)
}

ENTRY %main (p: f32[5,16]) -> f32[5,80] {
  %p = f32[5,16]{1,0} parameter(0)
  %w = f32[16,80]{1,0} constant({...})
  %head = f32[5,80]{1,0} fusion(%p, %w), kind=kCustom, calls=%fused, metadata={op_name="jit(f)/x"}
  %block = f32[5,5]{1,0} custom-call(%p, %p), metadata={op_name="jit(f)/a/dot_general"}
  %pair = (f32[5,80]{1,0}, f32[5]{0}) fusion(%p), kind=kLoop, calls=%tuples, metadata={op_name="a"}
  %logits = f32[5,80]{1,0} tanh(%head), metadata={op_name="jit(f)/tanh"}
  %adam = f32[16,80]{1,0} multiply(%w, %w), metadata={op_name="jit(f)/mul"}
  %bits = f32[5,80]{1,0} xor(%head, %head), metadata={op_name="jit(f)/threefry2x32"}
  %turned = f32[80,16]{0,1} transpose(%w), dimensions={1,0}
  ROOT %norm = f32[5,16]{1,0} sqrt(%p), metadata={op_name="jit(f)/sqrt"}
}
"""


def event(name, start, length, thread=1):
    return {"ph": "X", "ts": start, "dur": length, "tid": thread, "name": name,
            "args": {"hlo_op": name}}  # fmt: skip


def test_kinds_follow_from_opcodes_and_shapes():
    found = {name: op.kind(V, D) for name, op in profile.operations(HLO).items()}
    assert {name: found[name] for name in
            ("head", "block", "logits", "pair", "adam", "bits", "turned", "norm")} == {
        "head": profile.HEAD, "pair": profile.LOGITS, "logits": profile.LOGITS,
        "block": profile.PRODUCTS,
        "adam": profile.TABLE, "bits": profile.RANDOM, "turned": profile.COPIES,
        "norm": profile.REST,
    }  # fmt: skip


def ending(name, moment):
    return {"ph": "X", "ts": moment, "dur": 0.0, "tid": 9, "name": f"end: {name}"}


def continuation(start, length):
    return {"ph": "X", "ts": start, "dur": length, "tid": 9, "name": "ThunkExecutor::Execute"}


def test_an_operation_lasts_until_its_end_in_another_thread():
    """Twice the same product; the time between two runs belongs to nothing."""
    events = [event("dot", 0.0, 1.0), ending("dot", 100.0), event("tanh", 100.0, 20.0),
              event("dot", 1000.0, 1.0, 2), ending("dot", 1050.0), {"ph": "M", "name": "thread"},
              event("tanh", 1050.0, 30.0, 2)]  # fmt: skip
    assert profile.seconds(events) == pytest.approx({"dot": 150e-6, "tanh": 50e-6})


def test_a_mark_comes_late_where_the_thread_went_on_with_what_waited():
    """The short addition ends where its thread takes up the product, which is long."""
    events = [event("add", 0.0, 1.0), continuation(400.0, 20.0), continuation(500.0, 9_000.0),
              event("dot", 501.0, 8_990.0, 9), ending("add", 9_510.0)]  # fmt: skip
    assert profile.seconds(events) == pytest.approx({"add": 500e-6, "dot": 8_990e-6})


def test_operations_at_one_time_share_it_and_loops_have_none():
    events = [event("while", 0.0, 100.0), event("dot", 10.0, 30.0), event("tanh", 20.0, 40.0, 2)]
    found = profile.seconds(events, around={"while"})
    assert found == pytest.approx({"dot": 20e-6, "tanh": 30e-6})


@pytest.mark.slow
def test_most_of_a_real_program_is_its_large_product(tmp_path):
    @jax.jit
    def program(x, w):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ w @ w.T), x)

    x, w = jnp.ones((600, 300)), jnp.full((300, 2000), 1e-3)
    compiled = program.lower(x, w).compile()
    compiled(x, w).block_until_ready()
    known = profile.operations(compiled.as_text())
    found, wall = profile.profile(lambda: compiled(x, w).block_until_ready(), known, tmp_path, 2)
    kinds = profile.by_kind(found, known, 2000, 300)
    assert kinds[profile.HEAD] > 0.5 * sum(kinds.values()) > 0.0
    assert sum(kinds.values()) < wall
    text = profile.report(found, known, kinds, wall)
    assert "| products of the head |" in text and "2000x300" in text.replace("300x2000", "2000x300")


@pytest.mark.parametrize("vocab, measured", [(80, 80), (40, 41), (64, 65), (16, 17), (10, 11)])
def test_the_vocabulary_is_no_other_axis(vocab, measured):
    """Batch 8, length 5, width 16: V = 40 would be all rows, 64 the hidden layer, 10 a quarter."""
    config = config_lib.load(
        "bench_cpu", {"model.width": 16, "model.heads": 2, "model.depth": 1, "model.cond_dim": 8}
    )
    plan = Asked(batch=8, length=(5,), vocab=vocab).plan(config, "train", "projected")
    assert profile.vocabulary_alone(plan) == measured


@pytest.mark.slow
def test_the_command_writes_a_table_for_both_spaces(tmp_path):
    done = command("profile", *TINY, f"--output={tmp_path / 'p'}", "--json")
    assert done.returncode == 0, done.stderr
    shares = json.loads(done.stdout.splitlines()[-1])
    assert set(shares) == {"projected", "onehot"} and set(shares["onehot"]) == set(profile.KINDS)
    assert all(sum(kinds.values()) > 0.0 for kinds in shares.values())
    text = pathlib.Path(tmp_path / "p" / "profile.md").read_text()
    assert text.count("| products of the head |") == 2
    again = command("profile", *TINY, f"--output={tmp_path / 'p'}")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_a_profile_needs_a_folder_and_one_device(tmp_path):
    done = command("profile", *TINY)
    assert done.returncode == 2 and "profile writes files" in done.stderr
    two = "import os; os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'"
    done = command("profile", *TINY, f"--output={tmp_path / 'p'}", prefix=two)
    assert done.returncode == 2 and "there are 2; hide the others" in done.stderr
    assert not (tmp_path / "p").exists()
