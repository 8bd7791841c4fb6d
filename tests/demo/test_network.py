"""The network and the samplers in JavaScript say what those of the library say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from exported import VARIANTS, Letters, computed, inputs, model, noise
from javascript import ask

from flm_jax.experiment import Experiment
from flm_jax.export import jump as jump_lib
from flm_jax.flow.at import STUDENT
from flm_jax.inference import FlowModel
from flm_jax.samplers.autoregressive import LeftToRight
from flm_jax.samplers.base import Given
from flm_jax.samplers.churn import Churn
from flm_jax.samplers.euler import Euler
from flm_jax.samplers.flow_map import FlowMap
from flm_jax.samplers.refinement import Refinement

LENGTH, STEPS, ROUNDS = 12, 4, 3  # the length is that of tiny.run_config
START, STEP, TOKENS, ROUND = 0, 1, 2, 4  # purposes of noise in sampling.js
WIDE = {"model__width": 24, "model__heads": 2}  # no multiple of what product.wat takes at a time


def given_of(x, i):
    if "given_mask" not in x:
        return None
    return {"tokens": x["given_tokens"][i], "mask": x["given_mask"][i]}


@pytest.mark.parametrize("name", [*VARIANTS, "wide"])
def test_the_network_is_the_jump(tmp_path, name):
    changes = {**VARIANTS["modern"], **WIDE} if name == "wide" else VARIANTS[name]
    jump = jump_lib.of_model(model(tmp_path, **changes))
    x = inputs(jump, 4, LENGTH)
    if "given_mask" in x:  # the samplers see to that
        given = Given(x["given_tokens"], x["given_mask"])
        x["state"] = np.asarray(given.clean(jump.space, x["state"]))
    tasks = [
        {
            "what": "predict",
            "state": x["state"][i].ravel(),
            "estimate": x["estimate"][i].ravel() if "estimate" in x else None,
            "tauS": x["tau_s"][i],
            "tauT": x["tau_t"][i],
            "given": given_of(x, i),
        }
        for i in range(4)
    ]
    found = ask(tmp_path, tasks, jump.model)
    _, tokens, confidence, mean = computed(jump, x)
    clock = jump.portable.clock
    for i, one in enumerate(found):
        np.testing.assert_array_equal(one["tokens"], tokens[i])
        np.testing.assert_allclose(one["confidence"], confidence[i], atol=2e-5)
        np.testing.assert_allclose(one["mean"], mean[i].ravel(), atol=5e-5, rtol=1e-4)
        np.testing.assert_allclose(one["t"], clock.to_t(x["tau_s"][i]), atol=1e-6)
    assert len(np.unique(tokens)) > 1


def test_the_clock_is_that_of_the_library_to_the_last_digit(tmp_path):
    """Near both ends, too, where t changes 1e10 times as fast as tau."""
    jump = jump_lib.of_model(model(tmp_path))
    near = 2.0 ** -np.arange(1, 40)
    taus = np.concatenate([np.linspace(0, 1, 33), near, 1 - near]).astype(np.float32)
    [found] = ask(tmp_path, [{"what": "times", "taus": taus}], jump.model)
    np.testing.assert_allclose(found, jump.portable.clock.to_t(taus), atol=3e-6)


def library(made, rule, raw, given, steps_noise=None, steps=STEPS):
    """Tokens and confidence (S, L) of the library's sampler for one text."""
    net = made.portable.net(made.model.params, made.temperature)
    at = tiny.at({STUDENT: net}, lambda tables: made.space, made.portable.clock)
    options = dict(length=LENGTH, steps=steps, start=raw, noise=steps_noise, given=given)
    keys = jax.random.split(jax.random.key(0), 1)
    _, path = jax.jit(lambda: tiny.write(rule, at, keys, trajectory=True, **options))()
    return np.asarray(path.tokens_SBL[:, 0]), np.asarray(path.confidence_SBL[:, 0])


def check(frames, tokens, confidence):
    assert [frame["tokens"] for frame in frames] == tokens.tolist()
    np.testing.assert_allclose([frame["confidence"] for frame in frames], confidence, atol=1e-4)


WAYS = {
    "euler": (False, "flow", Euler(), {}),
    "churn": (False, "fresh", Churn(), {}),
    "flow_map": (True, "flow", FlowMap(), {}),
    "flow_map_fresh": (True, "fresh", FlowMap(gamma=1.0), {}),
    "estimate": (False, "flow", Euler(), {"model__self_conditioning": True}),
    "onehot": (True, "flow", FlowMap(), {"space": "onehot"}),
}


@pytest.mark.parametrize("some_given", [False, True], ids=["open", "given"])
@pytest.mark.parametrize("name", WAYS)
def test_steps_write_what_the_sampler_writes(tmp_path, name, some_given):
    two_times, way, rule, changes = WAYS[name]
    made = jump_lib.of_model(model(tmp_path, two_times, given=True, **changes))
    raw = noise(made, 1, LENGTH)
    fresh = noise(made, STEPS - 1, LENGTH, seed=1)
    told = {"tokens": np.arange(LENGTH) % tiny.V, "mask": np.arange(LENGTH) % 3 == 0}
    given = None
    if some_given:
        given = Given(*(jnp.asarray(value)[None] for value in told.values()))
    raws = {f"{START},0": raw.ravel()} | {f"{STEP},{i}": n.ravel() for i, n in enumerate(fresh)}
    task = {"what": "write", "way": way, "steps": STEPS, "raws": raws}
    [frames] = ask(tmp_path, [task | {"given": told if some_given else None}], made.model)
    tokens, confidence = library(made, rule, raw, given, fresh[:, None])
    assert len(np.unique(tokens)) > 1 and (tokens[0] != tokens[-1]).any()
    check(frames, tokens, confidence)


@pytest.mark.parametrize("two_times", [False, True], ids=["denoiser", "flow_map"])
def test_rounds_write_what_the_refinement_writes(tmp_path, two_times):
    """A denoiser once an evaluation, for the noise inside its rounds cannot be given."""
    steps = STEPS if two_times else ROUNDS
    made = jump_lib.of_model(model(tmp_path, two_times, given=True, sampler__threshold=0.6))
    raw, later = noise(made, 1, LENGTH), noise(made, ROUNDS - 1, LENGTH, seed=1)
    told = {"tokens": np.full(LENGTH, 5), "mask": np.arange(LENGTH) < 2}
    raws = {f"{START},0": raw.ravel()} | {f"{ROUND},{i}": n.ravel() for i, n in enumerate(later)}
    task = {"what": "write", "way": "rounds", "steps": steps, "rounds": ROUNDS, "seed": 0}
    [frames] = ask(tmp_path, [task | {"raws": raws, "given": told}], made.model)
    given = Given(*(jnp.asarray(value)[None] for value in told.values()))
    rule = Refinement(rounds=ROUNDS, threshold=0.6).suited(two_times)
    tokens, confidence = library(made, rule, raw, given, later[:, None], steps)
    assert len(np.unique(tokens)) > 1
    check(frames, tokens[: len(frames)], confidence[: len(frames)])
    open_at_last = [frame["given"].count(0) for frame in frames]
    assert open_at_last[0] == LENGTH - 2 and open_at_last == sorted(open_at_last, reverse=True)


def test_a_round_shares_its_steps_as_the_library_does(tmp_path):
    """Times of every evaluation, of rounds that do not divide the steps."""
    made = model(tmp_path, given=True, sampler__threshold=-1.0)
    task = {"what": "write", "way": "rounds", "steps": 7, "rounds": 3, "seed": 3}
    [frames] = ask(tmp_path, [task], made)
    assert [frame["round"] for frame in frames] == [0, 0, 0, 1, 1, 2, 2]
    expected = [0, 1 / 3, 2 / 3, 0, 1 / 2, 0, 1 / 2]
    np.testing.assert_allclose([frame["tau"] for frame in frames], expected)
    assert [sum(frame["given"]) for frame in frames] == [0, 0, 0, 4, 4, 8, 8]


def causal(folder, **changes):
    """An autoregressive model with nothing at zero."""
    loss = {"name": "autoregressive", "options": {}}
    fixed = {"model__causal": True, "model__depth": 2, "sampler__name": "autoregressive"}
    fixed |= {"sampler__steps": (11,), "space": "projected"}
    made = Experiment(tiny.run_config(folder, loss=loss, **fixed, **changes), tiny.V)
    return FlowModel(made, Letters(), tiny.params(made.model))  # pyright: ignore


@pytest.mark.parametrize("options", [{}, {"never": (3, 7), "top_p": 0.7}], ids=["plain", "nucleus"])
def test_token_by_token_is_the_library(tmp_path, options):
    modern = dict(model__norm="rms", model__mlp="swiglu", model__qk_norm=True)
    modern |= {"model__learned_positions": LENGTH, "model__tied_head": True}
    made = causal(tmp_path, sampler__options=options, sampler__denoiser_temperature=0.8, **modern)
    gumbel = np.random.default_rng(0).gumbel(size=(LENGTH - 1, tiny.V)).astype(np.float32)
    given = Given(jnp.arange(LENGTH)[None], jnp.arange(LENGTH)[None] < 3)
    told = {"tokens": given.tokens_BL[0], "mask": given.mask_BL[0]}
    raws = {f"{TOKENS},{i}": row for i, row in enumerate(gumbel)}
    task = {"what": "write", "way": "causal", "raws": raws, "given": told, "seed": 0}
    [frames] = ask(tmp_path, [task], made)
    net = made.net(made.params, 0.8)
    at = tiny.at({STUDENT: net}, lambda tables: made.space(), made.experiment.clock)
    rule = LeftToRight(never=options.get("never", ()))
    keys = jax.random.split(jax.random.key(0), 1)
    sizes = dict(length=LENGTH, steps=LENGTH - 1, bos_id=0, denoiser_temperature=0.8)
    tokens_BL, path = tiny.write(
        rule, at, keys, noise=jnp.asarray(gumbel)[:, None], trajectory=True, given=given, **sizes
    )
    written = np.array(frames[-1]["tokens"])
    if options:  # given noise leaves the nucleus out in the library; here it must not
        assert not set(written[3:]) & set(options["never"])
        return
    assert written.tolist() == np.asarray(tokens_BL)[0].tolist()
    confidence = np.asarray(path.confidence_SBL)[-1, 0]
    np.testing.assert_allclose(frames[-1]["confidence"], confidence, atol=2e-5)
    assert len(set(written[3:])) > 2


def test_the_nucleus_leaves_the_rest_out(tmp_path):
    """A nucleus of next to nothing is the arg max, whatever the noise."""
    made = causal(tmp_path, sampler__options={"top_p": 1e-6})
    [once, again] = ask(
        tmp_path, [{"what": "write", "way": "causal", "seed": seed} for seed in (1, 2)], made
    )
    assert once[-1]["tokens"] == again[-1]["tokens"]
    made = causal(tmp_path)
    [once, again] = ask(
        tmp_path, [{"what": "write", "way": "causal", "seed": seed} for seed in (1, 2)], made
    )
    assert once[-1]["tokens"] != again[-1]["tokens"]


def test_noise_of_a_seed_is_normal_and_its_own(tmp_path):
    """What the page draws: of two seeds, and of the start and the steps of one, all different."""
    made = model(tmp_path, given=True)
    tasks = [{"what": "write", "way": "fresh", "steps": 3, "seed": seed} for seed in (1, 1, 2)]
    same, again, other = ask(tmp_path, tasks, made)
    assert same == again
    assert same[0]["confidence"] != other[0]["confidence"]
