"""One jump is that of the library's samplers, and a loop over jumps is what they write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from exported import computed, inputs, model, noise

from flm_jax.errors import UserError
from flm_jax.export import folder, jump
from flm_jax.flow.at import STUDENT
from flm_jax.samplers.base import Given
from flm_jax.samplers.euler import Euler
from flm_jax.samplers.flow_map import FlowMap

BATCH, LENGTH, STEPS = 3, 6, 3


def library(made, rule, raw, given=None, steps_noise=None):
    """Tokens and confidence of the sampler's last step."""
    space, net = made.space, made.model.net(made.model.params, diagonal=False)
    at = tiny.at({STUDENT: net}, lambda tables: space, made.model.experiment.clock)
    keys = jax.random.split(jax.random.key(0), BATCH)

    @jax.jit
    def write(raw):
        options = dict(length=LENGTH, steps=STEPS, start=raw, trajectory=True, given=given)
        return tiny.write(rule, at, keys, noise=steps_noise, **options)

    tokens_BL, path = write(raw)
    return np.asarray(tokens_BL), np.asarray(path.confidence_SBL[-1]), np.asarray(path.states)


def loop(made, raw, given=None):
    """The same by jumps."""
    x = {"state": np.asarray(made.space.scatter(raw))}
    x |= {"estimate": np.zeros_like(x["state"])} if "estimate" in made.inputs else {}
    if given is not None:
        x |= {"given_tokens": given.tokens_BL, "given_mask": given.mask_BL}
    states, times = [x["state"]], np.linspace(0, 1, STEPS + 1, dtype=np.float32)
    for now, then in zip(times[:-1], times[1:], strict=True):
        x |= {"tau_s": np.full(BATCH, now), "tau_t": np.full(BATCH, then)}
        x["state"], tokens, confidence, mean = computed(made, x)
        x |= {"estimate": mean} if "estimate" in x else {}
        states.append(x["state"])
    return tokens, confidence, np.stack(states)


@pytest.mark.parametrize("space", ["projected", "onehot"])
@pytest.mark.parametrize("two_times", [False, True], ids=["denoiser", "flow_map"])
def test_jumps_one_after_the_other_write_what_the_sampler_writes(tmp_path, two_times, space):
    told = {"model__self_conditioning": space == "projected"}
    made = jump.of_model(model(tmp_path, two_times, space, given=two_times, **told))
    raw, given = noise(made, BATCH, LENGTH), None
    if two_times:
        x = inputs(made, BATCH, LENGTH)
        given = Given(jnp.asarray(x["given_tokens"]), jnp.asarray(x["given_mask"]))
    tokens, confidence, states = loop(made, raw, given)
    expected = library(made, FlowMap() if two_times else Euler(), raw, given)
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_allclose(confidence, expected[1], atol=2e-5)
    # The library reads the last state off the last prediction; the start has its given tokens.
    np.testing.assert_allclose(states[1:-1], expected[2][1:-1], atol=2e-5)
    assert len(np.unique(tokens)) > 1


def test_a_jump_is_the_flow_map(tmp_path):
    made = jump.of_model(model(tmp_path, two_times=True))
    x = inputs(made, BATCH, LENGTH)
    expected = made.model.flow_map(*(jnp.asarray(x[n]) for n in ("state", "tau_s", "tau_t")))
    np.testing.assert_allclose(computed(made, x)[0], expected, atol=1e-5)


def test_fresh_noise_by_the_words_of_the_readme(tmp_path):
    """gamma: jump to t', go on from next_state + (t - t') * mean + gamma * (1 - t) * noise."""
    gamma, made = 0.8, jump.of_model(model(tmp_path, two_times=True))
    raw, fresh = noise(made, BATCH, LENGTH), noise(made, (STEPS - 1) * BATCH, LENGTH, seed=1)
    fresh = fresh.reshape(STEPS - 1, BATCH, LENGTH, -1)
    tokens, _, states = library(made, FlowMap(gamma=gamma), raw, steps_noise=fresh)
    has = folder.arrays(made)
    state, times = raw @ has["noise"].T, np.linspace(0, 1, STEPS + 1)
    np.testing.assert_allclose(state, states[0], atol=1e-5)
    for step, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
        t = np.interp(then, has["clock_tau"], has["clock_t"])
        aim = 1 - (1 - t) * np.sqrt(1 - gamma**2)
        tau_aim = np.interp(aim, has["clock_t"], has["clock_tau"])
        x = {"state": state, "tau_s": np.full(BATCH, now), "tau_t": np.full(BATCH, tau_aim)}
        x = {name: np.asarray(value, np.float32) for name, value in x.items()}
        after, found, _, mean = computed(made, x)
        if step + 1 < STEPS:
            state = after + (t - aim) * mean + gamma * (1 - t) * (fresh[step] @ has["noise"].T)
            np.testing.assert_allclose(state, states[step + 1], atol=2e-3)
    np.testing.assert_array_equal(found, tokens)


@pytest.mark.parametrize("two_times", [False, True], ids=["denoiser", "flow_map"])
def test_the_ends_of_time(tmp_path, two_times):
    """From s to s nothing moves; to 1 the state becomes the mean; at 1 it is kept."""
    made = jump.of_model(model(tmp_path, two_times, given=True))
    x = inputs(made, BATCH, LENGTH) | {"given_mask": np.zeros((BATCH, LENGTH), bool)}
    x["tau_t"] = x["tau_s"] = np.array([0.0, 0.4, 1.0], np.float32)
    np.testing.assert_allclose(computed(made, x)[0], x["state"], atol=1e-6)
    x |= {"tau_s": np.zeros(BATCH, np.float32), "tau_t": np.ones(BATCH, np.float32)}
    after, tokens, confidence, mean = computed(made, x)
    np.testing.assert_allclose(after, mean, atol=2e-4)  # 1e-5 of the state is left by Euler
    assert confidence.max() < 1.0
    x["given_mask"][:] = True
    after, tokens, confidence, mean = computed(made, x)
    np.testing.assert_array_equal(tokens, x["given_tokens"])
    np.testing.assert_array_equal(confidence, 1.0)
    np.testing.assert_array_equal(after, np.asarray(made.space.tables["student"])[tokens])
    np.testing.assert_array_equal(mean, after)


def test_the_temperature_of_the_config_is_in_the_jump(tmp_path):
    cold, hot = (
        jump.of_model(model(tmp_path / name, sampler__denoiser_temperature=value))
        for name, value in (("cold", 1.0), ("hot", 4.0))
    )
    x = inputs(cold, BATCH, LENGTH)
    assert (computed(hot, x)[2] < computed(cold, x)[2]).all()


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [("masked_diffusion", "has no jump to export"), ("residual", "jumps with two networks")],
)
def test_what_has_no_jump_is_refused(tmp_path, loss, sentence):
    other = model(tmp_path, model__mask_token=loss == "masked_diffusion")
    section = dataclasses.replace(other.config.loss, name=loss)
    config = dataclasses.replace(other.config, loss=section)
    other.experiment = dataclasses.replace(other.experiment, config=config)
    with pytest.raises(UserError, match=sentence):
        jump.of_model(other)


def test_a_length_beyond_the_positions_is_refused(tmp_path):
    with pytest.raises(UserError, match="--length=13 .* give at most 12"):
        jump.of_model(model(tmp_path, model__learned_positions=12), length=13)
