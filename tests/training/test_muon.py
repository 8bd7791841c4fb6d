"""Muon: the direction of a matrix by its singular vectors, and which parameters it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flm_jax.config import OptimConfig
from flm_jax.training import loop, muon, optim


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (2, 5, 7)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape):
    x = random(1, *shape)
    u, _, vt = np.linalg.svd(np.asarray(x), full_matrices=False)
    inner = (
        np.swapaxes(u, -1, -2) @ np.asarray(jax.jit(muon.orthogonal)(x)) @ np.swapaxes(vt, -1, -2)
    )
    values = np.diagonal(inner, axis1=-2, axis2=-1)
    assert 0.5 < values.min() and values.max() < 1.3
    off = inner - np.eye(inner.shape[-1]) * values[..., None]
    np.testing.assert_allclose(off, 0.0, atol=2e-5)


def test_a_matrix_of_low_rank_stays_one_and_zero_stays_zero():
    x = random(2, 8, 1) @ random(3, 1, 5)
    values = np.linalg.svd(np.asarray(jax.jit(muon.orthogonal)(x)), compute_uv=False)
    assert 0.5 < values[0] < 1.3 and values[1:].max() < 1e-4
    np.testing.assert_array_equal(muon.orthogonal(jnp.zeros((3, 4))), 0.0)


def grads(seed: int, like: dict) -> dict:
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), like)


@pytest.fixture(scope="module")
def params() -> dict:
    return tiny.params(tiny.model(mlp="swiglu"))


@pytest.fixture(scope="module")
def two_steps(params):
    """Updates of two gradients by Muon, by AdamW, and both gradients; no warm-up, no clipping."""
    settings = dict(learning_rate=1.0, warmup_steps=0, clip_norm=0.0)
    first, second, found = grads(5, params), grads(6, params), {}
    for name in ("muon", "adamw"):
        optimizer = optim.optimizer(OptimConfig(name=name, **settings))
        update = jax.jit(functools.partial(optimizer.update, horizon=10))
        _, state = update(first, jax.jit(optimizer.init)(params), params)
        found[name], _ = update(second, state, params)
    return found, first, second


def test_matrices_of_the_blocks_are_muons_and_all_else_is_adams(two_steps):
    found, _, _ = two_steps
    same = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (jax.tree_util.keystr(path), bool(jnp.all(a == b))),
        found["muon"],
        found["adamw"],
    )
    pairs = jax.tree.leaves(same, is_leaf=lambda x: isinstance(x, tuple))
    others = {path for path, equal in pairs if not equal}
    assert others == {f"['blocks']['{name}']['kernel']" for name in muon.MATRICES}
    assert "['blocks']['mlp_gate']['kernel']" in others


@pytest.mark.parametrize("name", muon.MATRICES)
def test_the_update_of_a_matrix_is_written_out(two_steps, name):
    """Nesterov's momentum of each layer, its matrices apart, by float64 singular vectors."""
    found, first, second = two_steps
    g1, g2 = (np.asarray(g["blocks"][name]["kernel"], np.float64) for g in (first, second))
    ahead = 0.95 * (0.95 * g1 + g2) + g2
    update = -np.asarray(found["muon"]["blocks"][name]["kernel"])
    for layer, of_layer in zip(ahead, update, strict=True):
        parts = np.split(layer, muon.MATRICES[name], axis=-1)
        for part, own in zip(parts, np.split(of_layer, muon.MATRICES[name], axis=-1), strict=True):
            u, _, vt = np.linalg.svd(part, full_matrices=False)
            inner = u.T @ own @ vt.T / (0.2 * max(part.shape) ** 0.5)
            values = np.diagonal(inner)
            assert 0.5 < values.min() and values.max() < 1.3
            np.testing.assert_allclose(inner - np.diag(values), 0.0, atol=1e-4)


def test_the_root_mean_square_of_a_full_update_is_about_a_fifth_of_the_rate():
    shapes = {"blocks": {"mlp_in": {"kernel": random(7, 1, 64, 256)}}}
    update, _ = muon.scale_by_muon().update(shapes, muon.scale_by_muon().init(shapes))
    size = float(jnp.sqrt(jnp.mean(update["blocks"]["mlp_in"]["kernel"] ** 2)))
    assert 0.14 < size < 0.24


def test_a_refused_batch_changes_the_state_of_neither(params):
    optimizer = optim.optimizer(OptimConfig(name="muon"))
    update = jax.jit(functools.partial(optimizer.update, horizon=10))
    _, state = update(grads(8, params), jax.jit(optimizer.init)(params), params, accept=True)
    _, refused = update(grads(9, params), state, params, accept=False)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(refused), strict=True):
        np.testing.assert_array_equal(a, b)
    _, taken = update(grads(9, params), state, params, accept=True)
    moments = [optax.tree.get(s, "momentum")["blocks"]["qkv"]["kernel"] for s in (state, taken)]
    assert not np.array_equal(*moments)


@pytest.mark.slow  # two trainings, compiled for two meshes
def test_a_sharded_run_that_was_stopped_goes_on_exactly(tmp_path, monkeypatch):
    """Four steps and eight more on 2 x 4 devices are twelve steps, and nearly those of one row."""
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)

    def states(mesh: dict, *stops: int) -> list[np.ndarray]:
        workdir = tmp_path / "-".join(map(str, [*mesh.values(), *stops]))
        for stop in stops:
            config = tiny.run_config(
                tmp_path / "text",
                model__width=64,
                optim__name="muon",
                train__steps=stop,
                train__sample_every=0,
                mesh=mesh,
            )
            assert loop.train(config, workdir) == 0
        session = loop.Session(config, workdir)
        with session.log:
            step, state = session.restore_or_init()
            session.batches.close()
        assert step == stops[-1]
        return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.opt_state))]

    whole = states({"fsdp": 4, "data": 2}, 12)
    for mine, wanted in zip(states({"fsdp": 4, "data": 2}, 4, 12), whole, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    for mine, wanted in zip(states({"data": 8}, 12), whole, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-3, atol=2e-4)
