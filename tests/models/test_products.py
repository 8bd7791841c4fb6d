"""Products against plain ones: values, derivatives, and the forms that the programs have."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.typing import DTypeLike
from jaxprs import equations

from flm_jax.models import dit, products
from flm_jax.models.dit import KEPT_MEGABYTES, POLICIES, kept, remembered

N, NARROW, WIDE = 12, 3, 5


def arrays(*shapes, dtype: DTypeLike = np.float64):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.standard_normal(shape), dtype) for shape in shapes]


def derivatives(product, rows, kernel):
    """Value, gradients, forward derivative, and the gradient of that (reverse over forward)."""

    def scalar(rows, kernel):
        return jnp.sum(jnp.sin(product(rows, kernel)))

    def tangent(rows, kernel):
        moved = jnp.cos(rows), jnp.sin(kernel)
        return jax.jvp(lambda *p: jnp.sin(product(*p)), (rows, kernel), moved)[1]

    def of_rows_only(rows, kernel):
        return jax.jvp(lambda rows: product(rows, kernel), (rows,), (jnp.cos(rows),))[1]

    return (
        product(rows, kernel),
        jax.grad(scalar, (0, 1))(rows, kernel),
        tangent(rows, kernel),
        jax.grad(lambda *p: jnp.sum(jnp.sin(of_rows_only(*p))), (0, 1))(rows, kernel),
    )


@pytest.mark.parametrize("shape", [(NARROW, WIDE), (WIDE, NARROW)])
def test_every_derivative_is_that_of_an_ordinary_product(shape):
    with jax.enable_x64(True):
        point = arrays((N, shape[0]), shape)

        @jax.jit
        def both(*point):
            mine = derivatives(lambda x, y: products.product(x, y, jnp.float64), *point)
            return mine, derivatives(jnp.matmul, *point)

        for mine, wanted in zip(*map(jax.tree.leaves, both(*point)), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", ["full", "products"])
def test_they_pass_a_scan_that_computes_its_body_again(policy):
    with jax.enable_x64(True):
        rows, kernels = arrays((N, NARROW), (4, NARROW, NARROW))

        def deep(product):
            def body(rows, kernel):
                return jnp.sin(product(rows, kernel)), None

            body = jax.checkpoint(body, prevent_cse=False, policy=POLICIES[policy])
            return lambda rows, kernels: jax.lax.scan(body, rows, kernels)[0]

        mine = deep(lambda x, y: products.product(x, y, jnp.float64))
        for found, wanted in zip(
            *[jax.tree.leaves(jax.jit(lambda *p, f=f: derivatives(f, *p))(rows, kernels))
              for f in (mine, deep(jnp.matmul))],
            strict=True,
        ):  # fmt: skip
            np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-10)


def traced(function, *point):
    return list(equations(jax.make_jaxpr(function)(*point).jaxpr))


def gradients(product):
    return jax.grad(lambda *p: jnp.sum(jnp.sin(product(*p).astype(jnp.float32))), (0, 1))


def of_dots(equations):
    """(shape of the left operand, its contracted axis) of every product."""
    return [
        (e.invars[0].aval.shape, e.params["dimension_numbers"][0][0])
        for e in equations if e.primitive.name == "dot_general"
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(NARROW, WIDE), (WIDE, NARROW)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_narrower_operand_of_a_kernels_gradient_is_transposed(shape, dtype):
    point = arrays((N, shape[0]), shape, dtype=np.float32)
    found = traced(gradients(lambda x, y: products.product(x, y, dtype)), *point)
    assert ((NARROW, N), (1,)) in of_dots(found)
    assert not any(left[0] == WIDE for left, _ in of_dots(found))


def test_operands_of_bfloat16_lie_row_after_row_in_the_compiled_program():
    """XLA computes products of others in float32, without a word."""
    point = arrays((64, NARROW * 8), (NARROW * 8, WIDE * 8), dtype=np.float32)
    program = gradients(lambda x, y: products.product(x, y, jnp.bfloat16))
    early = jax.jit(program).lower(*point).as_text(dialect="hlo")
    dots = [line for line in early.splitlines() if " dot(" in line]
    assert len(dots) == 3
    shapes = dict(re.findall(r"(\S+) = (\S+) ", early))
    for line in dots:
        for name in re.findall(r"dot\((\S+), (\S+)\)", line)[0]:
            assert re.fullmatch(r"bf16\[\d+,\d+\]\{1,0\}", shapes[name]), (name, shapes[name])


def of_products(function, *point):
    """(types of operands, type of the result) of every product in value and gradients."""
    return {
        (*(x.aval.dtype.name for x in e.invars), e.outvars[0].aval.dtype.name)
        for e in traced(function, *point) if e.primitive.name == "dot_general"
    }  # fmt: skip


def test_on_a_cpu_products_read_bfloat16_and_all_else_is_float32():
    point = arrays((N, NARROW), (NARROW, WIDE), dtype=np.float32)
    half = "bfloat16"
    program = gradients(lambda x, y: products.product(x, y, jnp.bfloat16))
    assert of_products(program, *point) == {(half, half, "float32")}
    arithmetic = {e.primitive.name for e in traced(program, *point)
                  if e.outvars[0].aval.dtype == jnp.bfloat16}  # fmt: skip
    moves = {"transpose", "broadcast_in_dim", "reshape", "optimization_barrier"}
    assert arithmetic <= {"convert_element_type", *moves}


def test_on_accelerators_results_are_rounded_at_once_and_derivatives_are_ordinary(monkeypatch):
    monkeypatch.setattr(products, "device_kind", lambda: "accelerator")
    point = arrays((N, NARROW), (NARROW, WIDE), dtype=np.float32)
    found = traced(gradients(lambda x, y: products.product(x, y, jnp.bfloat16)), *point)
    names = {e.primitive.name for e in found}
    assert not names & {"linear_call", "custom_jvp_call", "optimization_barrier"}
    results = {e.outvars[0].aval.dtype.name for e in found if e.primitive.name == "dot_general"}
    assert results == {"bfloat16"}


@pytest.mark.parametrize("shape", [(NARROW, WIDE), (WIDE, NARROW)])
def test_gradients_of_bfloat16_products_are_right_within_their_rounding(shape):
    point = arrays((N, shape[0]), shape, dtype=np.float32)

    @jax.jit
    def both(*point):
        mine = gradients(lambda x, y: products.product(x, y, jnp.bfloat16))
        return mine(*point), gradients(jnp.matmul)(*point)

    for found, reference in zip(*both(*point), strict=True):
        assert found.dtype == jnp.float32
        assert np.abs(found - reference).max() < 3e-2 * np.abs(reference).max()


@pytest.mark.parametrize("kind", ["cpu", "accelerator"])
def test_what_is_kept_by_memory_on_a_cpu_and_nothing_on_accelerators(kind):
    auto = dict(remat="auto", unroll=0, depth=4, heads=4, mlp_ratio=4, kind=kind)
    smallest, small, large = (32, 64, 128), (256, 64, 128), (32, 128, 512)
    limits = KEPT_MEGABYTES["none"][kind], KEPT_MEGABYTES["products"][kind]
    for shape in (smallest, small, large):
        every, products_only = (
            4 * kept(form, shape, 4, 4) / 2**20 for form in ("none", "products")
        )
        wanted = "none" if every <= limits[0] else "products"
        wanted = wanted if products_only <= limits[1] else "full"
        assert remembered(shape, **auto) == (wanted, 4 if wanted == "none" else 1)
        # A scan is asked for: blocks in it keep no more than what it pays to copy.
        in_a_scan = remembered(shape, **auto | {"unroll": 1})
        assert in_a_scan == ("products" if products_only <= limits[1] else "full", 1)
        assert remembered(shape, **auto | {"remat": "full"}) == ("full", 1)
    if kind == "cpu":
        assert remembered(smallest, **auto)[0] == "none"
        assert remembered(large, **auto)[0] == "full"


def test_blocks_stand_one_after_the_other_in_training_only():
    """What a scan copies is saved; programs that take no gradient compile faster with one."""
    model = tiny.model(depth=2)
    params = tiny.params(model)
    h_BLD, tau = np.zeros((2, 4, tiny.D), np.float32), np.full(2, 0.5, np.float32)

    def scans(model):
        found = traced(lambda h: model.net(params)(h, tau).posterior.features_BLD, h_BLD)
        return sum(e.params.get("length") == 2 and e.params["unroll"] == 1
                   for e in found if e.primitive.name == "scan")  # fmt: skip

    assert scans(model) == 1 and scans(model.trained) == 0


@pytest.mark.parametrize(("kind", "read"), [("cpu", "float32"), ("accelerator", "bfloat16")])
def test_on_a_cpu_attention_reads_float32_in_a_bfloat16_network(monkeypatch, kind, read):
    monkeypatch.setattr(dit, "device_kind", lambda: kind)
    model = tiny.model(dtype="bfloat16")
    params, h_BLD = tiny.params(model), jnp.zeros((2, 4, tiny.D))
    found = traced(lambda h: model.apply(params, h, jnp.full(2, 0.5))[0], h_BLD)
    types = {True: set(), False: set()}
    for product in (e for e in found if e.primitive.name == "dot_general"):
        _, (of_batch, _) = product.params["dimension_numbers"]  # products of attention have such
        types[bool(of_batch)] |= {x.aval.dtype.name for x in product.invars}
    assert types[True] == {read} and "bfloat16" in types[False]
