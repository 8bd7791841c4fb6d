"""What is read from compiled programs, and chips that are described: here by the CPU's compiler."""

import dataclasses
import functools
import importlib.util
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flm_jax import target
from flm_jax.errors import UserError
from flm_jax.host import sharding
from flm_jax.lab.plan import chips, compiled, hlo, moved, predict, program, topology, validate
from flm_jax.lab.plan.hlo import Array

MESH = sharding.make_mesh((8, 1, 1))
CHIP = chips.CHIPS["v5e"]
SHAPE = dict(width=32, depth=2, heads=2, batch=64, length=32, vocab=512)


def read(function, *shapes, axis=None):
    """The compiled function of float32 arrays, cut along an ``axis`` of the mesh or whole."""
    there = NamedSharding(MESH, P(axis))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=there) for shape in shapes]
    return hlo.Program(jax.jit(function).lower(*arguments).compile().as_text() or "")


def test_a_collective_counts_as_often_as_its_loop_runs():
    def summed(x):
        total = jax.shard_map(
            lambda y: jax.lax.fori_loop(0, 5, lambda i, z: jax.lax.psum(z * i, "data") + y, y),
            mesh=MESH, in_specs=P("data"), out_specs=P("data"), check_vma=False,
        )  # fmt: skip
        return total(x)

    (found,) = read(summed, (8, 3, 7), axis="data").collectives
    assert found == hlo.Collective("all-reduce", Array("f32", (1, 3, 7)), 5, 84)
    assert found.bytes == 5 * 4 * 21


def test_what_is_gathered_counts_whole():
    whole = NamedSharding(MESH, P())
    found = read(
        lambda x: jax.lax.with_sharding_constraint(x, whole) * 2, (16, 24), axis="data"
    ).collectives
    assert [(one.kind, one.array.entries) for one in found] == [("all-gather", 16 * 24)]


def test_only_results_of_fusions_are_in_memory():
    """(64, 65) is the shape of a product that is summed away where it is made."""

    def function(x, y):
        return jnp.sum(jnp.exp(x[:, None]) * jnp.sin(y[None]), axis=1), x @ jnp.outer(x, y)

    arrays = read(function, (64,), (65,)).arrays
    assert not [array for array in arrays if array.shape == (64, 65, 3)]
    shapes = {array.shape for array in arrays}
    assert (64,) in shapes and (65,) in shapes


TEXT = """\
HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[4,100] {
  ROOT %big = f32[4,100]{1,0} broadcast(%p), dimensions={}
}

%cond (c: (s32[], f32[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(12)
  %c = (s32[], f32[8]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[], f32[8]) parameter(0)
  %y = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%b), channel_id=1
  %splash_fwd.2.1 = f32[8]{0} custom-call(%y), custom_call_target="tpu_custom_call"
  ROOT %t = (s32[], f32[8]) tuple(%b, %k)
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8]{0} parameter(0)
  %s = ((f32[2,4]), f32[2,4]{1,0}) all-to-all-start(%x), channel_id=2
  %e = f32[2,4]{1,0} all-to-all-done(%s)
  %w = (s32[]{:T(128)}, f32[8]) while(%x), condition=%cond, body=%body
  %a = u8[64]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %f = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
}
"""


def test_a_program_as_tpus_have_it():
    """No known trip count, layouts in the shapes, asynchronous collectives, kernels."""
    found = hlo.Program(TEXT)
    assert found.collectives == (
        hlo.Collective("all-gather", Array("bf16", (16, 64)), 12, 2048),
        hlo.Collective("all-to-all", Array("f32", (2, 4)), 1, 32),
    )
    assert found.kernels == {"splash_fwd": 12}
    assert Array("f32", (4, 100)) not in found.arrays and found.arrays[Array("f32", (4,))] == 1


MOVED = """\
HloModule moving

%slice (p: f32[12,100], i: s32[]) -> f32[1,100] {
  %p = f32[12,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %cast = bf16[12,100]{1,0} convert(%p)
  ROOT %one = f32[1,100]{1,0} dynamic-slice(%cast, %i, %i), dynamic_slice_sizes={1,100}
}

%update (q: f32[12,100], u: f32[1,100], j: s32[]) -> f32[12,100] {
  %q = f32[12,100]{1,0} parameter(0)
  %u = f32[1,100]{1,0} parameter(1)
  %j = s32[] parameter(2)
  ROOT %new = f32[12,100]{1,0} dynamic-update-slice(%q, %u, %j, %j)
}

%body (b: (s32[], f32[12,100], f32[12,100])) -> (s32[], f32[12,100], f32[12,100]) {
  %b = (s32[], f32[12,100], f32[12,100]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %w = f32[12,100]{1,0} get-tuple-element(%b), index=1
  %k = f32[12,100]{1,0} get-tuple-element(%b), index=2
  %x = f32[1,100]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice
  %f = f32[1,100]{1,0:S(1)} negate(%x)
  %n = f32[12,100]{1,0} fusion(%k, %f, %i), kind=kLoop, calls=%update
  ROOT %t = (s32[], f32[12,100], f32[12,100]) tuple(%i, %w, %n)
}

%cond (c: (s32[], f32[12,100], f32[12,100])) -> pred[] {
  ROOT %c = pred[] parameter(0)
}

ENTRY %main (a: (s32[], f32[12,100], f32[12,100])) -> f32[3,100] {
  %a = (s32[], f32[12,100], f32[12,100]) parameter(0)
  %l = (s32[], f32[12,100], f32[12,100]) while(%a), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %r = f32[12,100]{1,0} get-tuple-element(%l), index=2
  ROOT %s = f32[3,100]{1,0} slice(%r), slice={[0:3], [0:100]}
}
"""  # noqa: E501


def test_bytes_that_move_are_those_of_slices_and_updates():
    """A layer: the slice is read and written, negated into fast memory, and written in place."""
    layer = 400 + 4 + 400, 400, 4 + 400  # indices have four bytes
    assert moved.moved(hlo.Program(MOVED)) == 12 * sum(layer) + 2 * 1200


def test_a_scan_reads_each_layer_once():
    """By the compiler of this machine: weights, and the stream into and out of each layer."""

    def blocks(weights, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    found = moved.moved(read(blocks, (12, 64, 64), (8, 64)))
    weights, stream = 4 * 12 * 64 * 64, 4 * 8 * 64
    assert weights + 12 * 2 * stream <= found <= 3 * weights + 12 * 5 * stream


@pytest.mark.parametrize(
    "line, kind, size",
    [
        ("(f32[8], bf16[4,4]) all-gather(%x, %x)", "all-gather", 64),
        ("((f32[2], bf16[4]), (f32[8], bf16[16])) all-gather-start(%x, %x)", "all-gather", 64),
        ("(f32[8], f32[2]) all-reduce-start(%x, %x)", "all-reduce", 40),
        ("((f32[8], f32[16]), (f32[2], f32[4])) reduce-scatter-start(%x)", "reduce-scatter", 96),
        ("(f32[6], f32[6], u32[], u32[]) collective-permute-start(%x)", "collective-permute", 24),
    ],
)
def test_arrays_that_travel_together_count_together(line, kind, size):
    text = f"ENTRY %main (x: f32[8]) -> f32[4] {{\n  %s = {line}, channel_id=2\n}}\n"
    (found,) = hlo.Program(text).collectives
    assert (found.kind, found.size, found.bytes) == (kind, size, size)


def test_a_loop_that_ends_by_data_counts_once():
    text = TEXT.replace("compare(%i, %n), direction=LT", "and(%i, %n)")
    assert hlo.Program(text).collectives[0].times == 1


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("v4-8", "no description of the chip 'v4'; those that can be compiled for are v5e, v6e"),
        ("t4x2", "no description of the chip 't4'"),
        ("h200x8", r"compiler for h200 is not installed: pip install 'jax\[cuda13\]==.*--compile"),
        ("v5e-8", r"compiler for v5e is not installed: pip install 'jax\[tpu\]=="),
    ],
)
def test_chips_that_cannot_be_compiled_for_get_a_sentence(text, sentence, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=sentence):
        topology.devices(*chips.parse(text))


@pytest.mark.parametrize(
    "text, sentence",
    [("v5e-24", "no slice of 24 chips of v5e; take 1, 2, 4, 8"), ("h100x12", "only whole hosts")],
)
def test_numbers_that_there_are_not_get_a_sentence(text, sentence, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=sentence):
        topology.devices(*chips.parse(text))


@settings(max_examples=60, deadline=None)
@given(
    fixed=st.floats(0, 2e9),
    each=st.floats(1e5, 3e8),
    bend=st.floats(0, 0.3),
    guess=st.integers(0, 4000),
)
def test_the_largest_batch_fits_and_a_little_more_does_not(fixed, each, bend, guess):
    """Memory on a straight line, or on one with a bend where the compiler changes its mind."""
    chip = chips.CHIPS["v5e"]
    work = small_work()

    def memory(rows):
        return int(fixed + each * rows * (1 + bend * (rows > 40)))

    def step(work, chip, mesh):
        return types.SimpleNamespace(memory=memory(work.config.train.batch_size // 4))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "training_step", step)
        patch.setattr(predict, "largest_batch", lambda *_: 4 * guess)
        found = compiled.largest_batch(work, chip, (4, 1, 1)) // 4
    room = predict.room(chip)
    assert memory(found) <= room or found == 0
    assert memory(max(found + 1, int(compiled.NEAR * found) + 1)) > room


@functools.cache
def small_work():
    return program.work(validate.config_of(SHAPE), SHAPE["vocab"])


@pytest.fixture
def described(monkeypatch):
    """The devices of this machine in the place of described ones."""
    monkeypatch.setattr(topology, "devices", lambda chip, number: jax.devices()[:number])


@pytest.mark.parametrize("space, dense", [("projected", False), ("onehot", True)])
def test_arrays_of_the_vocabulary_are_found(described, space, dense):
    config = validate.config_of(SHAPE | {"space": space})
    chunked = dataclasses.replace(config.model, head_chunk=config.model.head_chunk or 16)
    work = program.work(dataclasses.replace(config, model=chunked), SHAPE["vocab"])
    found = compiled.training_step(work, chips.CHIPS["v5e"], (4, 1, 1))
    assert bool(found.of_vocabulary) == dense
    said = compiled.report(found)
    assert ("no array of all tokens and the vocabulary" in said) != dense
    assert "all-reduce" in said and "fits" in said and "4 x v5e" in said
    numbers = compiled.as_json(found)
    assert numbers["memory_bytes"] == found.memory > 0
    assert numbers["moved_bytes"] == found.moved > found.arguments
    least = found.least
    assert least is not None and "ms at the vendor's rates: products reach between" in said
    assert least.memory == found.moved / 819e9
    assert least.links == sum(one.bytes for one in found.collectives) / 200e9 > 0
    low, high = compiled.utilisation(least)
    assert 0 < low < high < 1
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(work.state))
    batch = 2 * 4 * np.prod((SHAPE["batch"], SHAPE["length"])) / 4
    assert found.arguments == pytest.approx(state + batch, rel=0.02)


@pytest.mark.parametrize(
    "loss, name",
    [("flow_matching", "euler"), ("psd", "flow_map"), ("masked_diffusion", "ancestral_masked"),
     ("autoregressive", "autoregressive"), ("residual", "two_model")],
)  # fmt: skip
def test_samplers_are_compiled_as_they_are_used(described, loss, name):
    config = validate.config_of(SHAPE | {"loss": loss})
    sampling = dataclasses.replace(config.sampler, name=name, batch_size=64)
    model = dataclasses.replace(config.model, head_chunk=16, causal=loss == "autoregressive")
    config = dataclasses.replace(config, sampler=sampling, model=model)
    found = compiled.sampler(program.work(config, SHAPE["vocab"]), CHIP, (4, 1, 1), 3)
    said = compiled.report(found)
    named = f"sampler, {31 if loss == 'autoregressive' else 3} steps"
    assert said.startswith(f"{named} compiled for 4 x v5e, mesh data=4 fsdp=1 tensor=1")
    assert compiled.as_json(found)["program"] == named
    params = program.work(config, SHAPE["vocab"]).parameters
    networks = 1 + (loss == "residual")  # some parameters are only trained with
    assert 0.85 < found.arguments / (4 * params * networks) < 1.1
    if loss not in ("masked_diffusion", "autoregressive"):
        assert not found.of_vocabulary


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--program=sampler"], "--program=sampler is only compiled, not estimated; give --com"),
        (["--program=sampler", "--compile", "--largest"], "--largest is the batch of training; om"),
        (["--sampling_steps=4"], "--sampling_steps are those of --program=sampler; give it, too"),
        (["--program=text"], "--program=text is not known; use train or sampler"),
    ],
)
def test_words_about_samplers_that_make_no_sense(words, sentence, capsys):
    assert call("plan", "--config=configs/quickstart.py", "--chips=v5e-8", *words) == 2
    assert sentence in capsys.readouterr().err


COMPILERS = [("libtpu", "v5e-8", "TPU v5 lite"), ("jax_cuda13_plugin", "h200x8", "NVIDIA H200")]


@pytest.mark.slow
@pytest.mark.parametrize("package, name, kind", COMPILERS)
def test_the_real_compilers(package, name, kind):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the compiler {package} is not installed")
    chip, number = chips.parse(name)
    assert target.of_devices(topology.devices(chip, number)).device_kind == kind
    found = compiled.training_step(small_work(), chip, (number // 2, 2, 1))
    assert found.fits and not found.of_vocabulary and found.collectives
