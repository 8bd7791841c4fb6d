"""SDTT and DCD as runs: their teacher, resume inside a round, meshes, what is refused."""

import pathlib

import jax
import numpy as np
import pytest
import tiny
from config_changes import sentence
from runs import finished as finished  # a fixture

from flm_jax import config as config_lib
from flm_jax import experiment, inference
from flm_jax.errors import UserError
from flm_jax.losses.rounds import UPDATES
from flm_jax.training import loop

# Loss and sampler of the teacher, and of the student.
METHODS = {
    "sdtt": ("masked_diffusion", "ancestral_masked"),
    "dcd": ("uniform_diffusion", "ancestral_uniform"),
}


def config_of(folder: pathlib.Path, loss: str, sampler: str, **changes) -> config_lib.Config:
    options = {"every": 3, "rounds": 2, "first_steps": 8} if loss in METHODS else {}
    config = tiny.run_config(
        folder, loss={"name": loss, "options": options}, sampler__name=sampler,
        model__mask_token=sampler == "ancestral_masked", model__width=64, train__sample_every=0,
        **changes,
    )  # fmt: skip
    config_lib.validate(config, experiment.tables())
    return config


def restored(config: config_lib.Config, workdir: pathlib.Path):
    session = loop.Session(config, workdir)
    with session.log:
        step, state = session.restore_or_init()
        session.batches.close()
    return step, state


def leaves(state) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves((state.params, state.ema, state.loss))]


@pytest.mark.slow  # four trainings, compiled for two meshes
@pytest.mark.parametrize("name", METHODS)
def test_a_sharded_run_stopped_inside_a_round_goes_on_exactly(name, tmp_path, monkeypatch, capsys):
    """Four steps and four more, rounds of three; and nearly the same on another mesh."""
    monkeypatch.setattr(loop.summary, "finish", lambda *_: None)
    loss, sampler = METHODS[name]
    taught = config_of(tmp_path / "text", loss, sampler, train__steps=4)
    assert loop.train(taught, tmp_path / "teacher") == 0

    def run(mesh: dict, *stops: int):
        workdir = tmp_path / "-".join(map(str, [name, *mesh.values(), *stops]))
        for stop in stops:
            config = config_of(
                tmp_path / "text", name, sampler, teacher=str(tmp_path / "teacher"),
                train__steps=stop, mesh=mesh,
            )  # fmt: skip
            assert loop.train(config, workdir) == 0
        step, state = restored(config, workdir)
        assert (step, int(state.loss["teacher"][UPDATES])) == (8, 8)
        return state

    whole = run({"fsdp": 4, "data": 2}, 8)
    assert f"starting from the parameters of {tmp_path / 'teacher'}" in capsys.readouterr().out
    for mine, wanted in zip(leaves(run({"fsdp": 4, "data": 2}, 4, 8)), leaves(whole), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    for mine, wanted in zip(leaves(run({"data": 8}, 8)), leaves(whole), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-3, atol=2e-4)
    # The second and last round began after update 3, and its teacher is neither end of the run.
    first = inference.load(tmp_path / "teacher").params
    table = np.asarray(whole.loss["teacher"]["embed"]["table"])
    assert np.abs(table - first["embed"]["table"]).max() > 1e-5
    assert np.abs(table - np.asarray(whole.params["embed"]["table"])).max() > 1e-5


def test_only_a_model_of_its_kind_is_distilled_into_itself(finished, tmp_path):
    """A denoiser has the shapes of a uniform diffusion, and would be taken for one."""
    base, teacher = finished
    folder = pathlib.Path(base.data.options["path"]).parent
    config = tiny.run_config(
        folder, loss={"name": "dcd", "options": {}}, sampler__name="ancestral_uniform",
        teacher=str(teacher),
    )  # fmt: skip
    with pytest.raises(UserError, match="'flow_matching', but loss 'dcd' distils models of unifor"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_start_is_the_teacher_that_is_named(tmp_path):
    changes = {"loss": {"name": "dcd", "options": {}}, "sampler__name": "ancestral_uniform"}

    def told(**more):
        config = tiny.run_config(tmp_path, **changes, **more)
        return sentence(config_lib.validate, config, experiment.tables())

    assert "loss 'dcd' needs a teacher; give --config.teacher=WORKDIR" in told()
    assert "init_from='other', but loss 'dcd' distils a model into itself" in told(
        teacher="somewhere", init_from="other"
    )
