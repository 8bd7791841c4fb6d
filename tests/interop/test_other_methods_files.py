"""Official files of other methods: what no tensor tells comes from the config, or is asked for."""

import dataclasses

import jax
import numpy as np
import pytest
from official_files import ONE_TIME, TWO_TIMES, L, V, lightning, saved_letters

import flm_jax
from flm_jax.errors import UserError
from flm_jax.inference.conversion import convert
from flm_jax.interop import official, settings
from flm_jax.losses import UniformDiffusion
from flm_jax.options import Reading

PLUS = dataclasses.replace(TWO_TIMES, loss_weighting=False)
LETTERS = {"name": "characters", "options": {}}


def config_of(folder, sizes, config, **asked):
    path, *_ = lightning(folder / "a.ckpt", sizes, config=config)
    return settings.config_of(official.read(path), LETTERS, L, **asked)


def plus(**algo) -> dict:
    return {"algo": {"name": "fmlm_plus", **algo}, "model": {"softcap": 0.0}}


def mdlm(**model) -> dict:
    return {"algo": {"name": "mdlm"}, "model": model}


@pytest.mark.parametrize("identity", [True, False])
def test_the_clock_of_an_any_order_file_is_that_of_its_config_and_its_cap_is_50(tmp_path, identity):
    config = config_of(tmp_path, PLUS, plus(skip_time_reparam=identity))
    assert config.clock.name == ("identity" if identity else "decoding_accuracy")
    assert (config.loss.name, config.sampler.name) == ("any_order", "flow_map")
    assert (config.model.attention_cap, config.model.logit_cap) == (50.0, 30.0)


def test_an_any_order_file_that_does_not_tell_its_clock_is_asked_about(tmp_path):
    with pytest.raises(UserError, match="does not tell its clock .* give --clock=identity"):
        config_of(tmp_path, PLUS, plus())
    assert config_of(tmp_path, PLUS, plus(), clock="identity").clock.name == "identity"


def test_a_flow_map_that_tells_no_method_is_read_as_fmlm_with_a_notice(tmp_path):
    path, *_ = lightning(tmp_path / "a.ckpt", PLUS)
    found = official.read(path)
    assert "is read as FMLM" in found.notices[-1] and "--clock=identity" in found.notices[-1]
    for clock, expected in ((None, "decoding_accuracy"), ("identity", "identity")):
        assert settings.config_of(found, LETTERS, L, clock=clock).clock.name == expected
    path, *_ = lightning(tmp_path / "b.ckpt", PLUS, config={"algo": {"name": "fmlm"}})
    assert official.read(path).notices == ()


def test_a_masked_model_has_its_own_caps_and_one_token_more_than_its_tokenizer(tmp_path):
    path, *_ = lightning(tmp_path / "a.ckpt", ONE_TIME, config=mdlm(softcap=0.0))
    found = official.read(path)
    assert (found.vocab_size, found.sizes.vocab_size, found.masked) == (V - 1, V, True)
    config = settings.config_of(found, LETTERS, L)
    assert (config.model.attention_cap, config.model.logit_cap) == (0.0, 0.0)
    assert config.model.mask_token
    assert (config.loss.name, config.sampler.name) == ("masked_diffusion", "ancestral_masked")
    with pytest.raises(UserError, match="does not tell the cap of its attention .*--attention_cap"):
        config_of(tmp_path, ONE_TIME, mdlm())
    assert config_of(tmp_path, ONE_TIME, mdlm(), attention_cap=50.0).model.attention_cap == 50.0
    with pytest.raises(UserError, match="attention_cap=-1"):
        config_of(tmp_path, ONE_TIME, mdlm(), attention_cap=-1.0)


@pytest.mark.parametrize("method", ["duo", "duo_base", "distillation"])
def test_a_uniform_model_has_its_own_caps_and_as_many_tokens_as_its_tokenizer(tmp_path, method):
    named = {"algo": {"name": method}}
    path, *_ = lightning(tmp_path / "a.ckpt", ONE_TIME, config=named | {"model": {"softcap": 0.0}})
    found = official.read(path)
    assert (found.vocab_size, found.masked) == (V, False)
    config = settings.config_of(found, LETTERS, L)
    assert (config.model.attention_cap, config.model.logit_cap) == (0.0, 0.0)
    assert not config.model.mask_token
    assert (config.loss.name, config.sampler.name) == ("uniform_diffusion", "ancestral_uniform")
    with pytest.raises(UserError, match="uniform diffusion model that does not tell the cap"):
        config_of(tmp_path, ONE_TIME, named)


def test_networks_of_other_methods_are_refused(tmp_path):
    with pytest.raises(UserError, match="trained by the method 'sedd', whose networks look like"):
        config_of(tmp_path, ONE_TIME, {"algo": {"name": "sedd"}})


def test_an_any_order_file_writes_converts_and_comes_back(tmp_path):
    letters = saved_letters(tmp_path / "letters")
    config = plus(skip_time_reparam=True)
    path, _, average = lightning(tmp_path / "a.ckpt", PLUS, config=config)
    workdir = convert(str(path), str(tmp_path / "run"), Reading(tokenizer=letters, length=L))
    model = flm_jax.load(workdir)
    assert model.config.clock.name == "identity" and model.experiment.loss.needs.given
    assert model.generate(2, 1).tokens.shape == (2, L)
    exported = convert(str(workdir), str(tmp_path / "export"), Reading())
    again = official.read(exported)
    assert again.method == "fmlm_plus" and again.option("algo", "skip_time_reparam") is True
    for name, array in average.items():
        np.testing.assert_array_equal(again.state[name], array)


def test_a_uniform_file_writes_and_can_be_distilled_into_itself(tmp_path):
    letters = saved_letters(tmp_path / "letters")
    duo = {"algo": {"name": "duo"}, "model": {"softcap": 0.0}}
    path, *_ = lightning(tmp_path / "a.ckpt", ONE_TIME, config=duo)
    workdir = convert(str(path), str(tmp_path / "run"), Reading(tokenizer=letters, length=L))
    model = flm_jax.load(workdir)
    assert model.generate(2, 4).tokens.shape == (2, L)
    assert model.experiment.loss == UniformDiffusion()  # what DCD's teacher must have trained with


def test_a_masked_file_writes_and_converts(tmp_path):
    letters = saved_letters(tmp_path / "letters", V - 1)
    path, *_ = lightning(tmp_path / "a.ckpt", ONE_TIME, config=mdlm(softcap=0.0))
    workdir = convert(str(path), str(tmp_path / "run"), Reading(tokenizer=letters, length=L))
    tokens = flm_jax.load(workdir).generate(2, L).tokens
    assert tokens.shape == (2, L) and tokens.max() < V - 1  # the mask is never written
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(flm_jax.load(workdir).params))
