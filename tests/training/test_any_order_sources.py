"""What any-order training starts from and learns from: wrong models get one sentence."""

import pytest
import tiny

import flm_jax
from flm_jax import config as config_lib
from flm_jax import experiment
from flm_jax.errors import UserError
from flm_jax.training import sources

ANY_ORDER = {"model__two_times": True, "sampler__name": "flow_map"}


def config_of(folder, name: str, options: dict, **changes) -> config_lib.Config:
    return tiny.run_config(folder, loss={"name": name, "options": options}, **changes)


def model_of(folder, name="flow_matching", options=None, **changes) -> flm_jax.FlowModel:
    made = experiment.Experiment(config_of(folder, name, options or {}, **changes), tiny.V)
    return flm_jax.FlowModel(made, None, {})


def test_the_teacher_at_zero_is_named_if_and_only_if_the_loss_asks_for_it(tmp_path):
    share = {"at_zero_fraction": 0.25}
    for options, teacher, sentence in (
        (share, "", "give --config.masked_teacher=CHECKPOINT"),
        ({}, "somewhere", "options.at_zero_fraction=0.25"),
    ):
        config = config_of(tmp_path, "any_order", options, masked_teacher=teacher, **ANY_ORDER)
        with pytest.raises(UserError, match=sentence):
            config_lib.validate(config, experiment.tables())
    config = config_of(tmp_path, "any_order", share, masked_teacher="somewhere", **ANY_ORDER)
    config_lib.validate(config, experiment.tables())


def test_a_teacher_that_has_seen_no_given_tokens_is_refused(tmp_path):
    student = model_of(tmp_path, "any_order", {"on_diagonal": "teacher"}, **ANY_ORDER)
    loss, config = student.experiment.loss, student.config
    with pytest.raises(UserError, match="trained without given tokens; train it with .*uniform"):
        sources._check_given(model_of(tmp_path), loss, config)
    for options in ({"given": "uniform"}, {"given_fraction": 0.3}):
        sources._check_given(model_of(tmp_path, options=options), loss, config)
    sources._check_given(model_of(tmp_path), experiment.LOSSES["psd"](), config)


def test_a_teacher_at_zero_of_another_kind_is_refused(tmp_path, monkeypatch):
    student = model_of(tmp_path, "any_order", **ANY_ORDER).experiment
    monkeypatch.setattr(sources, "check", lambda *_: None)
    denoiser = model_of(tmp_path)
    masked = model_of(
        tmp_path, "masked_diffusion", model__mask_token=True, sampler__name="ancestral_masked"
    )  # fmt: skip
    for found in (denoiser, masked):
        monkeypatch.setattr(sources, "read", lambda *_, found=found: found)
        if found is masked:
            assert sources.read_masked("x", student, None) is masked
            continue
        with pytest.raises(UserError, match="'flow_matching', not with 'masked_diffusion'"):
            sources.read_masked("x", student, None)
