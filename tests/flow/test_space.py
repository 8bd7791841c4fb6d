"""The projected space is the one-hot space seen through T: exactly, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flow import noise as noise_lib
from flm_jax.flow import space as space_lib
from flm_jax.flow.head import Head
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot, Projected

V, B, L, D = 12, 3, 5, 4


def table(seed: int, width: int = D) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (V, width))


def keys(n: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


TOKENS = jax.random.randint(jax.random.key(9), (B, L), 0, V)


@pytest.mark.parametrize("tables", [{"a": table(0)}, {"a": table(0), "b": table(1, 3)}])
def test_covariance_of_projected_noise_is_the_gram_matrix(tables):
    space = Projected(tables)
    noise = space.scatter(space.noise(keys(4000), 50)).reshape(-1, space.noise_width)
    joint = np.concatenate([np.asarray(t) for t in tables.values()], axis=1)
    covariance = np.asarray(noise.T @ noise) / len(noise)
    gram = joint.T @ joint
    deviation = np.sqrt((gram**2 + np.outer(gram.diagonal(), gram.diagonal())) / len(noise))
    assert (np.abs(covariance - gram) < 6 * deviation + 3e-5 * gram.diagonal().mean()).all()
    assert np.abs(noise.mean(0)).max() < 0.05


@pytest.mark.parametrize(
    "t", [jnp.asarray([0.0, 0.3, 1.0]), jnp.linspace(0, 1, B * L).reshape(B, L)]
)
def test_both_spaces_agree_state_by_state(t):
    """Dense noise pushed through from_dense gives the same views after every operation."""
    with jax.enable_x64(True):
        tables = {
            r: table(i, w).astype(jnp.float64) for i, (r, w) in enumerate([("a", 4), ("b", 3)])
        }
        noise = jax.random.normal(jax.random.key(3), (B, L, V), jnp.float64)
        more = jax.random.normal(jax.random.key(4), (B, L, V), jnp.float64)
        head = Head(table(5).T.astype(jnp.float64), jnp.zeros(V, jnp.float64), chunk=4)
        features = jax.random.normal(jax.random.key(6), (B, L, D), jnp.float64)
        p = Posterior(features, head).probability()
        views = []
        for make in (OneHot, Projected):
            space = make(tables)
            state = space.corrupt(space.from_dense(noise), TOKENS, t)
            state = space.advance(state, 1 - t / 2, t / 3, p)
            state = space.perturb(state, space.from_dense(more), 0.1 + t)
            views.append([space.view(state, role) for role in tables])
        for dense, projected in zip(*views, strict=True):
            np.testing.assert_allclose(projected, dense, atol=2e-4)  # eta = 1e-5 of the diagonal


def losses(stop_gradient: bool):
    """loss(table, space, noise): a nonlinear function of what the networks see."""
    t = jnp.asarray([0.2, 0.5, 0.8])

    def loss(student, make, frozen, raw):
        space = make({"student": student, **frozen})
        state = space.corrupt(raw(space), TOKENS, t)
        h = space.view(state, "student")
        prediction = jnp.tanh(h)
        target = jnp.tanh(0.5 * h)
        for role in frozen:
            target += jnp.mean(jnp.sin(space.view(state, role)), axis=-1, keepdims=True)
        if stop_gradient:
            target = jax.lax.stop_gradient(target)
        return jnp.sum((prediction - target) ** 2)

    return loss


def with_factor_gradient(tables, z_BLW):
    """The wrong way: automatic differentiation through the Cholesky factor."""
    return z_BLW @ noise_lib.cholesky_factor(noise_lib.gram(tables)).T


def compare_gradients(monkeypatch, stop_gradient, frozen, project=None):
    """(loss difference, relative gradient difference) of the exact projection test, float64."""
    monkeypatch.setattr(noise_lib, "cholesky_factor", jnp.linalg.cholesky)  # eta = 0
    if project is not None:
        monkeypatch.setattr(noise_lib, "project_noise", project)
    with jax.enable_x64(True):
        student = table(0).astype(jnp.float64)
        frozen = {r: t.astype(jnp.float64) for r, t in frozen.items()}
        noise = jax.random.normal(jax.random.key(3), (B, L, V), jnp.float64)
        joint = jnp.concatenate([student, *frozen.values()], axis=1)
        z = Projected({"student": student, **frozen}).from_dense(noise)
        value_and_grad = jax.value_and_grad(losses(stop_gradient))
        dense_loss, dense = value_and_grad(student, OneHot, frozen, lambda _: noise)
        lazy_loss, lazy = value_and_grad(student, Projected, frozen, lambda _: z)
        # Gradients through the clean tokens are the same in both; the noise part is projected.
        clean = data_gradient(student, frozen, noise, losses(stop_gradient))
        projection = joint @ jnp.linalg.solve(joint.T @ joint, joint.T)
        wanted = clean + projection @ (dense - clean)
        error = jnp.linalg.norm(lazy - wanted) / jnp.linalg.norm(wanted)
        return abs(float(lazy_loss - dense_loss)), float(error)


def data_gradient(student, frozen, dense_noise, loss):
    """Gradient that reaches the table through the clean tokens alone (noise part held fixed)."""
    held = dense_noise @ jnp.concatenate([student, *frozen.values()], axis=1)

    class Held(Projected):
        def scatter(self, noise, scale=1.0):
            return space_lib.per_token(scale) * noise

    return jax.grad(loss)(student, Held, frozen, lambda s: held)


FROZEN = [{}, {"teacher": table(1, 3)}]


@pytest.mark.parametrize("frozen", FROZEN, ids=["alone", "with a teacher"])
@pytest.mark.parametrize("stop_gradient", [False, True])
def test_exact_gradient(monkeypatch, stop_gradient, frozen):
    """With z = n T R^-T: equal losses, and dE = P dE_onehot for the noise part."""
    difference, error = compare_gradients(monkeypatch, stop_gradient, frozen)
    assert difference < 1e-9
    assert error < 1e-9


def test_differentiating_through_the_factor_fails_the_exact_test(monkeypatch):
    """What makes the test above worth something: the obvious implementation does not pass it."""
    _, error = compare_gradients(monkeypatch, True, {}, with_factor_gradient)
    assert error > 0.1


def test_a_teacher_sees_the_same_noise_as_the_student():
    with jax.enable_x64(True):
        student, teacher = (table(i).astype(jnp.float64) for i in (0, 1))
        joint = Projected({"student": student, "teacher": teacher})
        noise = jax.random.normal(jax.random.key(0), (B, L, V), jnp.float64)
        state = joint.scatter(joint.from_dense(noise))
        np.testing.assert_allclose(joint.view(state, "student"), noise @ student, atol=1e-3)
        np.testing.assert_allclose(joint.view(state, "teacher"), noise @ teacher, atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e-7, 1e-4], ids="offset {}".format)
def test_equal_and_nearly_equal_tables_stay_finite_and_right(offset):
    student = table(0)
    teacher = student + offset * table(1)
    space = Projected({"student": student, "teacher": teacher + 0.0})
    assert space.noise_width == 2 * D

    def loss(e):
        inner = Projected({"student": e, "teacher": teacher})
        state = inner.corrupt(inner.noise(keys(B), L), TOKENS, jnp.full((B,), 0.3))
        student_view, teacher_view = inner.view(state, "student"), inner.view(state, "teacher")
        return jnp.sum(jnp.tanh(student_view) * jax.lax.stop_gradient(teacher_view)), state

    (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(student)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    views = space.view(state, "student"), space.view(state, "teacher")
    np.testing.assert_allclose(*views, atol=0.2)  # they differ by sqrt(eta) noise only
    noise = space.scatter(space.noise(keys(2000), 20)).reshape(-1, 2 * D)
    covariance = noise.T @ noise / len(noise)
    joint = np.concatenate([student, teacher], axis=1)
    np.testing.assert_allclose(covariance, joint.T @ joint, atol=0.06 * covariance.max())


def test_the_gram_matrix_is_that_of_the_tables_side_by_side():
    tables = [table(0), table(1, 5), table(2, 1)]
    joint = np.concatenate(tables, axis=1)
    np.testing.assert_allclose(noise_lib.gram(tables), joint.T @ joint, rtol=1e-5, atol=1e-5)


def test_only_tables_that_learn_are_differentiated():
    """The gradient of one of two tables takes the products of its own columns only."""
    tables, z = (table(0), table(1)), jax.random.normal(jax.random.key(3), (B, L, 2 * D))

    def loss(learned, frozen):
        return jnp.sum(jnp.sin(noise_lib.project_noise((learned, frozen), z)))

    def into_vocabulary(arguments):
        program = jax.jit(jax.grad(loss, arguments)).lower(*tables).as_text().splitlines()
        return sum("dot_general" in line and f"-> tensor<{V}x{D}xf32>" in line for line in program)

    once, both = jax.grad(loss, 0)(*tables), jax.grad(loss, (0, 1))(*tables)
    np.testing.assert_allclose(once, both[0], rtol=1e-6)
    assert np.abs(both[1]).max() > 1e-2
    assert into_vocabulary(0) == 2 and into_vocabulary((0, 1)) == 4


def test_no_copy_of_the_tables_for_the_state():
    """Drawing a state of two networks takes less memory than one table."""
    rows, width = 20_000, 128
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32)
              for shape in ((rows, width), (rows, width), (width, rows))]  # fmt: skip

    def state(student, teacher, kernel_DV):
        space = Projected({"student": student, "teacher": teacher})
        state = space.corrupt(space.noise(keys(2), 3), TOKENS[:2, :3], jnp.full((2,), 0.3))
        head = Head(kernel_DV, jnp.zeros(rows), chunk=1)
        p = Posterior(space.view(state, "student"), head)
        return space.advance(state, 0.5, 0.5, p.probability())

    memory = jax.jit(state).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * rows * width


def test_singular_table_still_gets_a_factor():
    for broken in (jnp.zeros((V, D)), jnp.ones((V, D)), table(0).at[:, 1].set(0.0)):
        assert np.isfinite(noise_lib.cholesky_factor(noise_lib.gram([broken]))).all()


@pytest.mark.parametrize("factor", [30.0, 3e3, 1e6])
def test_a_huge_column_adds_no_noise_to_the_others(factor):
    dominated = table(0).at[:, 2].mul(factor)
    r = np.asarray(noise_lib.cholesky_factor(noise_lib.gram([dominated])), np.float64)
    exact = np.asarray(dominated, np.float64)
    size = np.linalg.norm(exact, axis=0)
    error = (r @ r.T - exact.T @ exact) / np.outer(size, size)
    assert np.abs(error).max() < 1.2e-4  # ten times eta, and rounding


def test_a_table_stored_in_bfloat16_gives_the_noise_of_its_values():
    stored = table(0).astype(jnp.bfloat16)
    noise = Projected({"student": stored}).noise(keys(2), 3)
    assert noise.dtype == jnp.float32
    same = Projected({"student": stored.astype(jnp.float32)}).noise(keys(2), 3)
    scatter = [Projected({"student": t}).scatter(noise) for t in (stored, stored.astype("float32"))]
    np.testing.assert_array_equal(noise, same)
    np.testing.assert_array_equal(*scatter)
    assert np.isfinite(scatter[0]).all() and scatter[0].dtype == jnp.float32


def test_gradient_in_expectation_is_the_dense_one():
    """Monte Carlo, no projection involved: average gradients of both spaces agree."""
    student, groups, size = table(0), 64, 1000

    def loss(e, make, key):
        space = make({"student": e})
        h = space.view(space.scatter(space.noise(jax.random.split(key, size), 1)), "student")
        return jnp.sum(jnp.tanh(h) * jax.lax.stop_gradient(jnp.tanh(h / 2))) / size

    def mean_gradient(make):
        each = jax.lax.map(lambda k: jax.grad(loss)(student, make, k), keys(groups, 5))
        return np.asarray(each.mean(0)), np.asarray(each.var(0).sum())

    (dense, dense_variance), (lazy, lazy_variance) = mean_gradient(OneHot), mean_gradient(Projected)
    noise = np.sqrt((dense_variance + lazy_variance) / groups)
    assert np.linalg.norm(dense - lazy) < 3 * noise
    assert np.linalg.norm(dense) > 10 * noise  # there is something to agree on
    assert lazy_variance < 0.6 * dense_variance  # Rao-Blackwell: less noise, V / W = 3 here


def test_noise_of_a_sequence_depends_on_its_key_only():
    for space in (OneHot({"a": table(0)}), Projected({"a": table(0)})):
        together = space.noise(keys(5), L)
        np.testing.assert_array_equal(space.noise(keys(5)[2:3], L)[0], together[2])


def test_one_network_in_two_roles_is_one_table():
    e = table(0)
    space = Projected({"student": e, "teacher": e})
    assert space.noise_width == D
    state = space.scatter(space.noise(keys(B), L))
    np.testing.assert_array_equal(space.view(state, "teacher"), space.view(state, "student"))


def test_a_factor_made_before_gives_the_same_noise():
    tables = {"a": table(0), "b": table(1, 3)}
    space = Projected(tables)
    noise = space.noise(keys(B), L)
    settled = space.with_constant(space.constant())
    np.testing.assert_array_equal(settled.scatter(noise, 0.5), space.scatter(noise, 0.5))
    other = {role: 2.0 * table for role, table in tables.items()}
    doubled = space.with_constant(Projected(other).constant())
    np.testing.assert_allclose(doubled.scatter(noise), 2.0 * space.scatter(noise), rtol=1e-5)
    dense = OneHot(tables)
    assert dense.constant() is None and dense.with_constant(None) is dense


def test_choice_of_the_space():
    assert space_lib.choose("auto", 1024, 192) is Projected
    assert space_lib.choose("auto", 384, 192) is OneHot
    assert space_lib.choose("onehot", 10**6, 1) is OneHot
