"""Settings of JAX that the environment or another project has left: numbers are the same."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from runs import finished as finished  # a fixture

import flm_jax
from flm_jax.checkpoint import Checkpoints
from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.host import numerics
from flm_jax.inference import evaluation
from flm_jax.options import Evaluation
from flm_jax.training import loop


def somebodys_mesh():
    return jax.set_mesh(jax.make_mesh((2,), ("x",)))  # its axes are explicit


SETTINGS = {
    "x64": lambda: jax.enable_x64(True),
    "generator": lambda: jax.default_prng_impl("rbg"),
    "partitionable": lambda: jax.threefry_partitionable(False),
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "disable_jit": lambda: jax.disable_jit(),
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
    "mesh": somebodys_mesh,
}


@pytest.fixture(scope="module")
def reference(finished):
    return flm_jax.load(finished[1]).generate(4, 3, seed=1, batch_size=8)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_model_loads_and_writes_the_same_texts(name, finished, reference):
    with SETTINGS[name]():
        model = flm_jax.load(finished[1])
        samples = model.generate(4, 3, seed=1, batch_size=8)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(model.params)} == {"float32"}
    np.testing.assert_array_equal(samples.tokens, reference.tokens)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["disable_jit"], marks=pytest.mark.slow),
        [name for name in SETTINGS if name != "disable_jit"],
    ],
)
def test_training_is_the_same_bit_for_bit(names, finished, tmp_path):
    config, workdir = finished
    knobs = dataclasses.replace(config.train, steps=4, eval_every=4)
    config = dataclasses.replace(config, train=knobs)
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(SETTINGS[name]())
        assert loop.train(config, tmp_path / "run") == 0
    abstract = jax.eval_shape(Experiment(config, vocabulary(workdir)).model.init, numerics.key(0))
    kept = [
        Checkpoints(folder / "checkpoints").restore({"params": abstract, "ema": abstract}, 4)[1]
        for folder in (tmp_path / "run", workdir)
    ]
    for ours, wanted in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(wanted))


def vocabulary(workdir) -> int:
    return flm_jax.load(workdir).tokenizer.vocab_size


def test_parameters_and_tables_state_their_type():
    parts = {"learned_positions": 4, "loss_weighting": True, "self_conditioning": True}
    config = tiny.config_lib.resolve({"model": parts})
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        experiment = Experiment(config, 16)
        params = jax.eval_shape(experiment.model.init, numerics.key(0))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert {leaf.dtype for leaf in jax.tree.leaves(experiment.clock)} == {jnp.dtype("float32")}
        np.testing.assert_array_equal(
            jax.random.key_data(numerics.key(3)), np.array([0, 3], np.uint32)
        )


@pytest.mark.slow
def test_a_user_in_x64_mode_moves_states_by_hand(finished):
    """What is not pinned, because it may be traced, follows the types of its arguments."""
    model = flm_jax.load(finished[1])
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 2)
        space = model.space()
        state = space.scatter(space.noise(keys, 6))
        net = model.net(model.params)
        tau = jnp.full(2, 0.5, jnp.float32)
        assert state.dtype == jnp.float32
        posterior = net(space.view(state, "student"), tau).posterior
        # A key of another generator draws with that one.
        rbg = jax.random.split(jax.random.key(0, impl="rbg"), 2)
        assert posterior.sample(rbg).shape == (2, 6)
        for x in (tau, tau.astype(jnp.float64)):
            assert bool(
                jnp.isfinite(net(space.view(state, "student"), x).posterior.entropy()).all()
            )


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'nonsense'"),
                                   AssertionError()])  # fmt: skip
def test_a_platform_that_is_not_there_is_one_sentence(error, finished, tmp_path, monkeypatch):
    def devices():
        raise error

    config, workdir = finished
    monkeypatch.setattr(jax, "devices", devices)
    for act in (
        lambda: loop.train(config, tmp_path / "run"),
        lambda: flm_jax.load(workdir),
        lambda: evaluation.evaluate(Evaluation(checkpoint=str(workdir))),
    ):
        with pytest.raises(UserError, match="JAX finds no device for JAX_PLATFORMS=cpu") as caught:
            act()
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()
