"""Every objective of the table from its first step to its report, on running text of 32 tokens."""

import json

import pytest
import tiny

import flm_jax
from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.losses import LOSSES
from flm_jax.samplers import SAMPLERS
from flm_jax.training import loop

LENGTH = 32
# Where the sampler is not the one that its network asks for by itself.
SAMPLER_OF = dict.fromkeys(("uniform_diffusion", "uniform_curriculum", "dcd"), "ancestral_uniform")
SELF_DISTILLATION = "psd without a teacher"
FROM_MASKED = "any_order of a masked diffusion model"


def sampler_for(loss: str) -> str:
    """The sampler that writes with a network trained by this loss."""
    row = LOSSES[loss]()
    if loss in SAMPLER_OF:
        return SAMPLER_OF[loss]
    if row.needs.two_times:
        return "two_model" if row.is_correction else "flow_map"
    needs = tiny.needs(row)
    return next(
        name
        for name, sampler in SAMPLERS.items()
        if tiny.needs(sampler()) == needs and name not in SAMPLER_OF.values()
    )


class Runs:
    """Finished runs by name; one that another needs as its teacher is trained first, once."""

    def __init__(self, folder):
        self.folder, self.done = folder, {}

    def config(self, name: str) -> config_lib.Config:
        loss = {SELF_DISTILLATION: "psd", FROM_MASKED: "any_order"}.get(name, name)
        row, options, changes = LOSSES[loss](), {}, {}
        if name == SELF_DISTILLATION:
            options = {"on_diagonal": "data"}
        elif name == FROM_MASKED:
            options = {"at_zero_fraction": 0.25}
            changes["masked_teacher"] = changes["init_from"] = str(self("masked_diffusion"))
        elif row.needs.starts_as:
            changes["teacher"] = str(self(row.needs.starts_as[0]))
        elif row.needs.teacher:
            teacher = "residual" if row.needs.residual else "flow_matching"
            changes["teacher"] = str(self(teacher))
            changes["init_from"] = "teacher"
        changes |= {f"model__{knob}": value for knob, value in tiny.needs(row).items()}
        sampler = sampler_for(loss)
        only = SAMPLERS[sampler]().steps_for(LENGTH)
        config = tiny.run_config(
            self.folder,
            data__length=LENGTH,
            loss={"name": loss, "options": options},
            sampler__name=sampler,
            sampler__steps=(only,) if only else (4, 32),
            train__steps=4,
            train__sample_every=0,
            **changes,
        )
        config_lib.validate(config, experiment.tables())
        return config

    def __call__(self, name: str):
        if name not in self.done:
            workdir = self.folder / name.replace(" ", "_")
            assert loop.train(self.config(name), workdir) == 0
            self.done[name] = workdir
        return self.done[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("methods"))


@pytest.mark.slow  # a training run each
@pytest.mark.parametrize("name", [*LOSSES, SELF_DISTILLATION, FROM_MASKED])
def test_a_run_comes_to_its_report(name, runs):
    workdir = runs(name)
    config = runs.config(name)
    results = json.loads((workdir / "results.json").read_text())
    assert [group["steps"] for group in results["samples"]] == list(config.sampler.steps)
    assert all(group["texts"] for group in results["samples"])
    frames = results["strip"]["frames"]
    assert 1 < len(frames) <= 16 and len(frames[-1]["sequences"][0]) == LENGTH
    assert frames[0]["sequences"] != frames[-1]["sequences"]
    assert json.loads((workdir / "run.json").read_text())["stopped"] == "complete"
    assert "From noise to text" in (workdir / "report.html").read_text()
    assert flm_jax.load(workdir).generate(num_samples=2).tokens.shape == (2, LENGTH)


def test_every_objective_has_a_sampler_that_is_checked_before_training(runs):
    for name, row in LOSSES.items():
        sampler, row = sampler_for(name), row()
        needs = tiny.needs(row)
        wrong = {"sampler__name": sampler, "loss": {"name": name, "options": {}}}
        wrong |= {f"model__{knob}": value for knob, value in needs.items()}
        wrong |= {"teacher": "somewhere"} if row.needs.named_teacher else {}

        def refused(**changes):
            with pytest.raises(UserError) as error:
                config = tiny.run_config(runs.folder, data__length=LENGTH, **wrong | changes)  # noqa: B023
                config_lib.validate(config, experiment.tables())
            return str(error.value)

        assert "sampler.steps is empty" in refused(sampler__steps=())
        assert "0 in sampler.steps must be at least 1" in refused(sampler__steps=(4, 0))
        assert "8 is more than once in sampler.steps" in refused(sampler__steps=(8, 1, 8))
        if SAMPLERS[sampler]().steps_for(LENGTH):
            assert "takes 31 steps, not 1, 30; set sampler.steps=31" in refused(
                sampler__steps=(1, 31, 30)
            )
        if "patience" not in SAMPLERS[sampler].uses:
            text = refused(sampler__patience=2, sampler__steps=(31,))
            assert "a sampler of tokens cannot stop early (patience=2)" in text
