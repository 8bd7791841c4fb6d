"""Distillation end to end on a tiny corpus: teachers, first parameters, resume, refusals."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import official_files
import pytest
import tiny
from runs import finished as finished  # a fixture

import flm_jax
from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.interop import hub_layout
from flm_jax.models import transfer
from flm_jax.training import loop, sources

FLOW_MAP = {"model__two_times": True, "init_from": "teacher", "sampler__name": "flow_map"}


def distil(finished, loss: str, loss_options=None, **changes):
    """A config that distils the finished run, in a workdir beside its corpus."""
    base, teacher = finished
    overrides = FLOW_MAP | {"teacher": str(teacher), "loss": {"name": loss}} | changes
    overrides.setdefault("train__steps", 4)
    overrides["loss"] = {"name": loss, "options": loss_options or {}}
    folder = pathlib.Path(base.data.options["path"]).parent
    config = tiny.run_config(folder, **overrides)
    config_lib.validate(config, experiment.tables())
    return config


def run(config, workdir: pathlib.Path):
    assert loop.train(config, workdir) == 0
    return flm_jax.load(workdir)


@pytest.mark.slow
def test_psd_starts_as_its_teacher_and_writes_in_one_step(finished, tmp_path, capsys, caplog):
    config = distil(finished, "psd", optim__learning_rate=1e-9)
    student = run(config, tmp_path / "psd")
    assert "starting from the parameters of teacher" in capsys.readouterr().out
    assert caplog.text.count("train.batch_size=8 gives no boundary sample") == 1
    teacher = flm_jax.load(finished[1])
    # A learning rate of nothing: still the teacher, whatever the second time.
    h = jax.random.normal(jax.random.key(0), (2, 5, 16))
    tau, tau_t = np.asarray([0.2, 0.6], np.float32), np.asarray([0.9, 0.7], np.float32)
    ours = student.net(student.params, diagonal=False)(h, tau, tau_t).posterior.dense()
    theirs = teacher.net(teacher.params)(h, tau).posterior.dense()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    samples = student.generate(num_samples=3, steps=1, seed=3)
    assert samples.tokens.shape == (3, 12)
    rows = [json.loads(line) for line in (tmp_path / "psd" / "metrics.jsonl").open()]
    assert {"loss_diagonal", "loss_off_diagonal"} <= set().union(*rows)
    # Jumps of the untrained student land where its one denoiser says, which no flow map does.
    defects = [row["eval/semigroup_defect"] for row in rows if "eval/semigroup_defect" in row]
    assert defects and all(0.0 < defect < 2.0 for defect in defects)
    space = student.space()
    state = space.scatter(space.noise(jax.random.split(jax.random.key(1), 2), 12))
    zero, half, one = (np.full(2, tau, np.float32) for tau in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(student.flow_map(state, zero, zero), state, atol=1e-6)
    assert student.semigroup_defect(state, zero, half, one).shape == (2, 12)
    with pytest.raises(UserError, match="this model is not a flow map"):
        teacher.flow_map(state, zero, one)


def test_texts_that_stay_the_same_stop_early(finished):
    model = flm_jax.load(finished[1])
    patient = model.generate(num_samples=6, steps=32, patience=2)
    assert 3.0 <= patient.evaluations < 32.0
    never = model.generate(num_samples=6, steps=32, patience=31)
    whole = model.generate(num_samples=6, steps=32)
    assert whole.evaluations == 32.0
    np.testing.assert_array_equal(never.tokens, whole.tokens)


@pytest.mark.parametrize(
    "loss, options",
    [
        pytest.param("psd", {"target": "ema", "on_diagonal": "data"}, marks=pytest.mark.slow),
        pytest.param("lsd", {"end": "teacher"}, marks=pytest.mark.slow),
        pytest.param("esd", {}, marks=pytest.mark.slow),
    ],
)
def test_every_flow_map_objective_trains(finished, tmp_path, loss, options):
    teacher_free = options.get("on_diagonal") == "data"
    changes = {"teacher": "", "init_from": str(finished[1])} if teacher_free else {}
    config = distil(finished, loss, options, train__steps=2, **changes)
    model = run(config, tmp_path / loss)
    assert model.generate(num_samples=2, steps=2).tokens.shape == (2, 12)


@pytest.mark.slow
def test_an_official_checkpoint_teaches_a_run_with_a_tokenizer_of_its_own(finished, tmp_path):
    """The checkpoint names no tokenizer; the run's serves both, unless the vocabularies differ."""
    teacher = flm_jax.load(finished[1])
    folder = hub_layout.write(tmp_path / "hub", teacher.params, heads=2, length=12)
    config = distil(finished, "psd", teacher=str(folder), train__steps=1)
    assert run(config, tmp_path / "psd").generate(num_samples=1, steps=1).tokens.shape == (1, 12)
    longer = hub_layout.write(tmp_path / "longer", teacher.params, heads=2, length=13)
    with pytest.raises(UserError, match="was trained on blocks of 13 tokens, here data.length=12"):
        run(distil(finished, "psd", teacher=str(longer)), tmp_path / "x")
    other, _ = official_files.hub(tmp_path / "other")
    with pytest.raises(UserError, match="11 tokens|vocabulary of 11"):
        run(distil(finished, "psd", teacher=str(other)), tmp_path / "x")


@pytest.mark.slow
def test_a_correction_finds_its_teacher_from_any_folder(finished, tmp_path, monkeypatch):
    there, workdir = tmp_path / "there", tmp_path / "g"
    shutil.copytree(finished[1], there / "q")
    monkeypatch.chdir(there)
    few = {"train__steps": 1, "train__eval_every": 0, "evals": ()}
    config = distil(finished, "residual", teacher="q", sampler__name="two_model", **few)
    denoiser = run(config, workdir).frozen["teacher"]
    assert loop.train(config, workdir) == 0  # the same words again are the same run

    monkeypatch.chdir(tmp_path)

    def loads(**options):
        params = flm_jax.load(workdir, **options).frozen["teacher"].params
        jax.tree.map(np.testing.assert_array_equal, params, denoiser.params)

    loads()
    # An official checkpoint has no tokenizer of its own.
    loads(teacher=hub_layout.write(tmp_path / "hub", denoiser.params, heads=2, length=12))
    with pytest.raises(UserError, match="g corrects, it is a correction itself; say where it is"):
        loads(teacher=workdir)
    with pytest.raises(UserError, match="'flow_matching', which writes without its teacher; omit"):
        flm_jax.load(there / "q", teacher=there / "q")

    there.rename(tmp_path / "here")
    with pytest.raises(UserError, match="but there is no .*there/q and no q; put it back, or say"):
        loads()
    loads(teacher="here/q")
    monkeypatch.chdir(tmp_path / "here")
    loads()


@pytest.mark.slow
def test_two_stages_of_the_first_version(finished, tmp_path):
    stage1 = distil(finished, "residual", sampler__name="two_model", model__loss_weighting=True)
    first = run(stage1, tmp_path / "g")
    assert set(first.frozen) == {"teacher"}
    assert first.generate(num_samples=2, steps=2).tokens.shape == (2, 12)
    with pytest.raises(
        UserError, match="'flow_map' does not fit this .* correction .*; use two_model"
    ):
        first.generate(num_samples=2, steps=2, sampler="flow_map")
    stage2 = distil(finished, "second_stage", teacher=str(tmp_path / "g"))
    second = run(stage2, tmp_path / "one")
    assert second.generate(num_samples=2, steps=1).tokens.shape == (2, 12)
    with pytest.raises(UserError, match="is a correction, not a denoiser"):
        run(distil(finished, "psd", teacher=str(tmp_path / "g")), tmp_path / "x")
    with pytest.raises(UserError, match="is not a run of the loss 'residual'"):
        run(distil(finished, "second_stage"), tmp_path / "y")


@pytest.mark.slow
def test_a_distillation_resumes_bit_for_bit(finished, tmp_path):
    config = distil(finished, "psd")
    whole = run(config, tmp_path / "whole")
    run(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)),
        tmp_path / "parts")  # fmt: skip
    parts = run(config, tmp_path / "parts")
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_smaller_student_starts_fresh(finished, tmp_path):
    changes = {"init_from": "", "model__width": 8, "model__depth": 1}
    model = run(distil(finished, "psd", train__steps=2, **changes), tmp_path / "small")
    assert model.params["embed"]["table"].shape[1] == 8


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"model__width": 8}, "does not fit this model: .* 16.* there but .* 8.* here"),
        ({"data__length": 10}, "was trained on blocks of 12 tokens, here data.length=10"),
        ({"teacher": "nowhere"}, "teacher='nowhere' does not exist; set --config.teacher to"),
    ],
)
def test_teachers_that_do_not_fit(finished, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        run(distil(finished, "psd", **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"teacher": ""}, "loss 'psd' needs a teacher"),
        ({"model__two_times": False}, "sampler 'flow_map' needs a network of two times"),
        ({"sampler__name": "autoregressive"}, "sampler 'autoregressive' needs a causal network"),
    ],
)
def test_configs_that_clash_are_refused_at_once(finished, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        distil(finished, "psd", **changes)


def test_a_flow_map_hands_on_its_second_time():
    model = tiny.model(two_times=True)
    fresh, source = tiny.params(model, 0), tiny.params(model, 1)
    params = transfer.student_from(fresh, source)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(source), strict=True):
        np.testing.assert_array_equal(a, b)


def test_learned_positions_may_be_added_to_a_source_but_not_lost():
    plain, placed = tiny.model(), tiny.model(learned_positions=tiny.L)
    source = tiny.params(plain, 1)
    added = transfer.student_from(placed.init(jax.random.key(0)), source)
    h_BLD = jax.random.normal(jax.random.key(2), (tiny.B, tiny.L, tiny.D))
    tau = jnp.linspace(0.1, 0.9, tiny.B)
    same = (model.backbone(p, h_BLD, tau)[0] for model, p in ((plain, source), (placed, added)))
    np.testing.assert_array_equal(*same)
    lost = transfer.student_from(tiny.params(plain), tiny.params(placed))
    with pytest.raises(UserError, match="positions is .* there but absent here"):
        sources.adopt(lost, tiny.params(plain), "runs/a")


def test_self_conditioning_may_be_added_to_a_source_and_lost():
    plain, told = tiny.model(), tiny.model(self_conditioning=True)
    source = tiny.params(told, 1)
    lost = transfer.student_from(tiny.params(plain), source)
    sources.adopt(lost, tiny.params(plain), "runs/a")
    added = transfer.student_from(told.init(jax.random.key(0)), lost)
    assert not added.pop("estimate")["kernel"].any()
    source.pop("estimate")
    jax.tree.map(np.testing.assert_array_equal, added, source)


def test_a_teacher_that_cannot_be_told_its_estimate_is_refused(finished, tmp_path):
    config = distil(finished, "psd", {"teacher_iterations": 2})
    with pytest.raises(UserError, match="was trained with model.self_conditioning=False; train it"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_self_conditioning_from_training_to_writing(tmp_path):
    """A denoiser that resumes bit for bit, and a flow map that learns from its iterations."""
    config = tiny.run_config(tmp_path, model__self_conditioning=True, train__steps=8)
    whole = run(config, tmp_path / "whole")
    half = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4))
    run(half, tmp_path / "parts")
    parts = run(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    assert np.abs(whole.params["estimate"]["kernel"]).max() > 1e-4
    assert whole.generate(2, steps=3, fixed_point_iterations=2).evaluations == 6.0
    taught = config, tmp_path / "whole"
    options = {"teacher_iterations": 2}
    plain = run(distil(taught, "psd", options), tmp_path / "plain")
    assert "estimate" not in plain.params
    told = run(distil(taught, "psd", options, model__self_conditioning=True), tmp_path / "told")
    assert told.generate(2, steps=2, gamma=0.5).tokens.shape == (2, 12)
