"""Every form of attention against the plain einsum: values, all derivatives, memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax import config as config_lib
from flm_jax import target
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.host import sharding
from flm_jax.losses import LOSSES
from flm_jax.models import attention, kernels, splash
from flm_jax.samplers import SAMPLERS
from flm_jax.target import Target

B, L, H, K = 2, 13, 2, 4
BLOCK = 4  # 13 queries: four blocks, three rows of padding
CASES = [(0.0, False, False), (50.0, False, False), (2.0, True, False), (50.0, False, True)]


def inputs(dtype=np.float64, length=L, heads=H, width=K, rows=B):
    """Queries, keys and values, and a direction for each; scores of a few units."""
    draw = np.random.default_rng(0).standard_normal((2, 3, rows, length, heads, width))
    return tuple(tuple(jnp.asarray(2.0 * x, dtype) for x in part) for part in draw)


def mask(length=L):
    """A random one in which every query sees something."""
    return jnp.asarray(np.random.default_rng(1).random((length, length)) < 0.5) | jnp.eye(
        length, dtype=bool
    )


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_one_position_after_the_other_is_causal_attention(cap):
    """Whatever stands in the cache at the position and behind it."""
    with jax.enable_x64(True):
        q, k, v = inputs()[0]
        wanted = attention.attend(q, k, v, cap, causal=True)
        junk = functools.partial(jnp.full, fill_value=1e3)
        for i in range(L):
            later = jnp.arange(L) >= i
            keys = jnp.where(later, junk((1,)), k.transpose(0, 2, 3, 1))
            values = jnp.where(later[:, None], junk((1, 1)), v.swapaxes(1, 2))
            own = (x[:, i : i + 1] for x in (q, k, v))
            found = attention.attend_once(*own, (keys, values), jnp.int32(i), cap)
            np.testing.assert_allclose(found[:, 0], wanted[:, i], rtol=1e-12)


def derivatives(form, point, direction, forward=True):
    """Value, gradient, forward derivative, and the gradient of that (reverse over forward)."""

    def scalar(*point):
        return jnp.sum(jnp.sin(form(*point).astype(jnp.promote_types(point[0].dtype, jnp.float32))))

    def slope(*point):
        return jax.jvp(scalar, point, direction)[1]

    found = {"value": form(*point), "gradient": jax.grad(scalar, (0, 1, 2))(*point)}
    if forward:
        found["jvp"] = jax.jvp(form, point, direction)[1]
        found["gradient of jvp"] = jax.grad(slope, (0, 1, 2))(*point)
    return found


def assert_close(found, wanted, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, mine), reference in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        assert mine.dtype == reference.dtype, path
        mine, reference = (np.asarray(x, np.float64) for x in (mine, reference))
        np.testing.assert_allclose(mine, reference, **tolerance, err_msg=str(path))


def test_rotary_positions_of_both_kinds_of_device_are_the_same(monkeypatch):
    found = {}
    with jax.enable_x64(True):
        x_BLHK, direction = inputs()[0][0], inputs()[1][0]
        tables = attention.rotary_tables(L, K, jnp.float64)
        for kind in ("cpu", "accelerator"):
            monkeypatch.setattr(attention, "device_kind", lambda kind=kind: kind)
            found[kind] = jax.jvp(lambda x: attention.rotate(x, *tables), (x_BLHK,), (direction,))
    assert_close(found["cpu"], found["accelerator"], rtol=1e-12, atol=1e-12)
    a, b = np.split(np.asarray(x_BLHK)[0, 3, 0], 2)  # position 3
    cos, sin = (np.asarray(table)[3] for table in tables)
    wanted = np.concatenate([a * cos - b * sin, a * sin + b * cos])
    np.testing.assert_allclose(found["cpu"][0][0, 3, 0], wanted, rtol=1e-12)


@pytest.mark.parametrize(("cap", "causal", "masked"), CASES)
def test_chunked_is_the_reference_in_value_and_all_derivatives(cap, causal, masked):
    with jax.enable_x64(True):
        point, direction = inputs()
        visible = mask() if masked else None

        @jax.jit
        def both(point, direction):
            forms = (
                lambda q, k, v: attention.einsum(q, k, v, cap, visible, causal),
                lambda q, k, v: attention.chunked(q, k, v, cap, visible, causal, BLOCK),
            )
            return [derivatives(form, point, direction) for form in forms]

        wanted, found = both(point, direction)
        assert found["value"].dtype == jnp.float64
        assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_causal_and_masked_keys_have_no_influence():
    """The two ways to hide keys agree, and what is hidden moves nothing."""
    point, _ = inputs(np.float32)
    lower = jnp.tril(jnp.ones((L, L), bool))
    for form in attention.einsum, functools.partial(attention.chunked, block=BLOCK):
        one = form(*point, 50.0, None, True)
        np.testing.assert_allclose(one, form(*point, 50.0, lower, False), rtol=1e-6, atol=1e-6)
        q, k, v = point
        moved = form(q, k.at[:, 7:].add(1.0), v.at[:, 7:].add(1.0), 50.0, None, True)
        np.testing.assert_array_equal(moved[:, :7], one[:, :7])
        assert np.abs(moved[:, 7:] - one[:, 7:]).max((0, 2, 3)).min() > 1e-2


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_chunked_in_the_types_of_training(dtype, tolerance):
    """Against the reference in float32; bfloat16 within its own rounding."""
    point, direction = inputs(jnp.dtype(dtype))
    wide = tuple(x.astype(jnp.float32) for x in point)

    @jax.jit
    def both(point, wide):
        mine = derivatives(
            lambda q, k, v: attention.chunked(q, k, v, 50.0, block=BLOCK), point, direction, False
        )
        reference = derivatives(
            lambda q, k, v: attention.einsum(q, k, v, 50.0), wide, direction, False
        )
        return mine, reference

    found, wanted = both(point, wide)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(dtype)}
    for mine, reference in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        error = np.abs(np.asarray(mine, np.float32) - reference).max()
        assert error < tolerance * np.abs(reference).max()


def test_gradients_of_keys_are_summed_in_float32():
    """Many blocks whose contributions bfloat16 could not add up one by one."""
    length, block = 4096, 4  # 1024 additions of 4; bfloat16 stops at 1024
    q = jnp.zeros((1, length, 1, 2), jnp.bfloat16)
    v = jnp.zeros((1, 1, 1, 2), jnp.bfloat16)  # one key: all weights are 1

    def total(v):
        out = attention.chunked(q, q[:, :1], v, 0.0, block=block)
        return jnp.sum(out.astype(jnp.float32))

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(v), np.full(v.shape, float(length)))


def temporaries(backend, length):
    """Bytes of temporary memory of the gradient, as compiled."""
    shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)

    def loss(q, k, v):
        return jnp.sum(attention.attend(q, k, v, 50.0, None, backend) ** 2)

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_of_chunked_grows_with_the_length_not_with_its_square():
    scores = 4 * 2 * 1024 * 1024
    assert temporaries("einsum", 1024) > scores
    small, large = (temporaries("chunked", n) for n in (1024, 2048))
    assert small < scores  # eight blocks, of which at most seven copies' worth is alive
    assert large < 2.5 * small


def test_auto_takes_blocks_for_long_sequences():
    assert not attention.is_long(128, 64) and attention.is_long(1024, 64)
    assert temporaries("auto", 1024) == temporaries("chunked", 1024)
    assert temporaries("auto", 128) == temporaries("einsum", 128)


def test_blocks_of_queries_leave_the_batch_on_its_devices():
    """Rows over 4 devices: the same numbers, and nothing moves between the devices."""
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    rows = jax.NamedSharding(mesh, jax.P("data"))
    point, _ = inputs(np.float32, rows=4)
    form = jax.jit(functools.partial(attention.chunked, cap=50.0, block=BLOCK))
    placed = [jax.device_put(x, rows) for x in point]
    wanted = attention.einsum(*point, 50.0)
    np.testing.assert_allclose(form(*placed), wanted, rtol=1e-5, atol=1e-5)
    text = form.lower(*placed).compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "all-reduce" not in text


# The network and the knob


@pytest.mark.parametrize("changes", [{}, {"causal": True}])
def test_the_network_computes_the_same_with_every_form(changes, monkeypatch):
    """With the remat of its blocks and forward derivatives, as LSD and ESD take them; the blocks of
    queries are made small enough to matter."""
    monkeypatch.setattr(attention.chunked, "__defaults__", (None, False, 4))
    params = tiny.params(tiny.model(**changes))
    h = jax.random.normal(jax.random.key(0), (tiny.B, tiny.L, tiny.D))
    tau = None if changes.get("causal") else jnp.linspace(0.1, 0.9, tiny.B)

    def loss(params, h, backend):
        model = tiny.model(attention=backend, **changes)
        features, tangent = jax.jvp(lambda h: model.backbone(params, h, tau)[0], (h,), (h,))
        return jnp.sum(jnp.sin(features)) + jnp.sum(jnp.sin(tangent))

    step = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)
    text = step.lower(params, h, "chunked").as_text()
    assert text.count("while") > step.lower(params, h, "einsum").as_text().count("while")
    assert_close(step(params, h, "chunked"), step(params, h, "einsum"), rtol=1e-3, atol=1e-4)


def make(**model):
    tree = {"data": {"name": "d"}, "tokenizer": {"name": "t"}, "model": model}
    return config_lib.resolve(tree)


def test_a_kernel_that_is_not_installed_is_a_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed; run pip install tokamax") as caught:
        config_lib.validate(make(attention="tokamax"), {})
    assert "\n" not in str(caught.value)
    config_lib.validate(make(attention="chunked"), {})
    # Checkpoints of it can still be read.
    assert Experiment(make(attention="tokamax"), 11).model.module.attention == "auto"


def test_a_kernel_is_refused_for_losses_with_forward_derivatives(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    tables = {"loss": LOSSES, "sampler": SAMPLERS}
    for name, refused in [("flow_matching", False), ("lsd", True), ("esd", True)]:
        config = make(attention="tokamax", two_times=name != "flow_matching")
        config = dataclasses.replace(
            config, loss=config_lib.LossConfig(name), teacher="t" if refused else ""
        )
        try:
            config_lib.validate(config, tables)
            said = ""
        except UserError as error:
            said = str(error)
        sentence = f"loss {name!r} takes forward derivatives, which model.attention='tokamax'"
        assert (sentence in said) == refused


def test_splash_is_refused_where_there_is_no_such_kernel():
    with pytest.raises(UserError, match="for TPUs but this is for cpu; set model.attention='auto'"):
        kernels.check(make(attention="splash").model)
    with target.compiling_for(Target("tpu", "any", 8)):
        kernels.check(make(attention="splash").model)
    kernels.check(make(attention="chunked").model)
    long = {"data": {"name": "d", "length": 200}, "model": {"attention": "splash"}}
    with pytest.raises(UserError, match="multiples of 128 but data.length=200; .*length=256"):
        config_lib.validate(config_lib.resolve(long | {"tokenizer": {"name": "t"}}), {})


def test_a_kernel_is_not_divided_over_devices():
    with pytest.raises(UserError, match="not divided over devices but there are 8"):
        config_lib.validate_devices(make(attention="tokamax"), 8)
    config_lib.validate_devices(make(attention="tokamax"), 1)
    config_lib.validate_devices(make(attention="chunked"), 8)


def test_auto_is_a_kernel_only_where_it_is_safe(monkeypatch):
    hopper, ampere = (Target("gpu", "any", 1, capability) for capability in ("9.0", "8.0"))
    tpu, cpu = (Target(platform, "any", 1) for platform in ("tpu", "cpu"))
    model = config_lib.ModelConfig(dtype="bfloat16")

    def settled(chips, model=model, jvp=False, count=1, there=True, long=False):
        monkeypatch.setattr(kernels, "installed", lambda: there)
        with target.compiling_for(dataclasses.replace(chips, devices=count)):
            return kernels.settle(model, jvp, long)

    assert settled(hopper) == settled(tpu) == "tokamax"
    assert settled(ampere) == settled(cpu) == settled(hopper, there=False) == "auto"
    assert settled(hopper, jvp=True) == settled(hopper, count=2) == "auto"
    assert settled(hopper, dataclasses.replace(model, dtype="float32")) == "auto"
    assert settled(hopper, dataclasses.replace(model, attention="einsum")) == "einsum"
    assert settled(cpu, dataclasses.replace(model, attention="tokamax")) == "tokamax"
    assert settled(tpu, long=True) == settled(tpu, count=64, there=False, long=True) == "splash"
    assert settled(tpu, long=True, jvp=True) == settled(tpu, count=64) == "auto"
    assert settled(tpu, dataclasses.replace(model, heads=24), long=True) == "auto"
    assert settled(cpu, long=True, there=False) == "auto"
    splash = dataclasses.replace(model, attention="splash")
    assert settled(tpu, splash) == "splash" and settled(cpu, splash) == "auto"


# The kernel for TPUs, interpreted here


@pytest.mark.parametrize(
    "cap, causal, dtype, length, tolerance",
    [(50.0, False, "float32", 256, 1e-5), (2.0, False, "float32", 128, 1e-5),
     (0.0, True, "float32", 256, 1e-5), (50.0, False, "bfloat16", 128, 3e-2)],
)  # fmt: skip
def test_splash_is_the_reference(monkeypatch, cap, causal, dtype, length, tolerance):
    """On one device, and with rows and heads on eight."""
    interpret_splash(monkeypatch)
    point, direction = inputs(jnp.dtype(dtype), length, width=64, rows=4)
    wide = tuple(x.astype(jnp.float32) for x in point)
    mesh = sharding.make_mesh((2, 2, 2))

    @jax.jit
    def all_three(point, wide):
        def of(backend, share=None):
            return lambda q, k, v: attention.attend(
                q, k, v, cap, None, backend, causal=causal, share=share
            )

        wanted = derivatives(of("einsum"), wide, direction, False)
        mine = (derivatives(of("splash", s), point, direction, False) for s in (None, shared))
        return wanted, *mine

    shared = sharding.share(mesh)
    wanted, *found = all_three(point, wide)
    for one in found:
        assert {x.dtype for x in jax.tree.leaves(one)} == {jnp.dtype(dtype)}
        for mine, reference in zip(*map(jax.tree.leaves, (one, wanted)), strict=True):
            error = np.abs(np.asarray(mine, np.float32) - reference).max()
            assert error < tolerance * np.abs(reference).max()


def interpret_splash(monkeypatch):
    """Without a TPU; what is called is counted."""
    real, calls = splash.attend, []

    def interpreted(*arrays, **options):
        calls.append([x.shape for x in arrays])
        return real(*arrays, **options, interpret=True)

    monkeypatch.setattr(splash, "attend", interpreted)
    return calls


def test_splash_is_left_where_it_has_no_kernel(monkeypatch):
    """Lengths, masks, and rows that the devices do not divide; a device has its rows and heads."""
    calls = interpret_splash(monkeypatch)
    shared = sharding.share(sharding.make_mesh((2, 2, 2)))

    def shape(rows, length, visible=None, share=shared):
        q, k, v = inputs(np.float32, length, width=64, rows=rows)[0]
        form = functools.partial(attention.attend, cap=50.0, backend="splash", share=share)
        return jax.eval_shape(form, q, k, v, visible_LM=visible).shape

    assert shape(4, 130) == (4, 130, H, 64) and shape(3, 128) == (3, 128, H, 64)
    assert shape(4, 128, jnp.ones((128, 128), bool)) == (4, 128, H, 64)
    assert not calls
    assert shape(4, 128) == (4, 128, H, 64) and calls == [[(1, 128, 1, 64)] * 3]
    assert shape(3, 128, share=None) == (3, 128, H, 64) and calls[1:] == [[(3, 128, H, 64)] * 3]


# The optional library


def tokamax(implementation, dtype, length, width, tolerance, forms=((50.0, False), (0.0, True))):
    pytest.importorskip("tokamax", reason="the extra [kernels] is not installed")
    point, direction = inputs(dtype, length, width=width)
    for cap, causal in forms:

        @jax.jit
        def both(point, cap=cap, causal=causal):
            forms = (
                lambda q, k, v: attention.einsum(q, k, v, cap, None, causal),
                lambda q, k, v: kernels.tokamax(q, k, v, cap, None, causal, implementation),
            )
            return [derivatives(form, point, direction, False) for form in forms]

        wanted, found = both(point)
        for mine, reference in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            mine, reference = (np.asarray(x, np.float32) for x in (mine, reference))
            assert np.abs(mine - reference).max() < tolerance * np.abs(reference).max()


@pytest.mark.parametrize("implementation", [None, "xla", "xla_chunked"])
def test_tokamax_in_plain_jax_is_the_reference(implementation):
    tokamax(implementation, jnp.float32, L, K, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("length", [128, 200, 1024])
def test_the_kernel_of_a_gpu_is_the_reference(length):
    if jax.default_backend() != "gpu":
        pytest.skip("there is no GPU")
    if not kernels.supported(target.current()):
        pytest.skip("tokamax has no kernel for this GPU")
    tokamax("mosaic", jnp.bfloat16, length, 64, 3e-2)
