"""Given tokens in every sampler: the network is told time 1, the state is kept, they are read."""

import dataclasses

import given_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import SAMPLERS, Euler, FlowMap
from flm_jax.samplers.autoregressive import LeftToRight
from flm_jax.samplers.base import Given
from flm_jax.samplers.tokens import TokenSampler
from flm_jax.sampling import Sampling

V, B, L, STEPS = given_nets.V, 3, 6, 5
CLOCK = clock_lib.build(V)
KEYS = sequence_keys(jax.random.key(3), jnp.arange(B))
TOKENS = np.random.default_rng(1).integers(0, V, (B, L)).astype(np.int32)
SOME = np.asarray([[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]], bool)
MASKS = {"some": SOME, "none": SOME & False, "all": SOME | True}
OF_VECTORS = [name for name, row in SAMPLERS.items() if not issubclass(row, TokenSampler)]
NETS = {"student": given_nets.net(), "teacher": given_nets.net(1)}


def write(sampler, nets, make_space=Projected, trajectory=True, length=L, **knobs):
    """`Sampler.run` as one program: (given or None, start) -> Written."""
    sampling = Sampling(**({"steps": STEPS} | knobs))
    if isinstance(sampler, LeftToRight):
        sampling = Sampling(steps=length - 1)

    @jax.jit
    def call(given, start=None):
        at = tiny.at(nets, make_space, CLOCK)
        options = dict(start=start, trajectory=trajectory, given=given, bos_id=1)
        return sampler.run(at, KEYS, sampling, length, **options)

    return call


@pytest.mark.parametrize("name", OF_VECTORS)
def test_given_tokens_keep_time_one_their_state_and_are_read(name):
    told, row = [], SAMPLERS[name]()

    def telling(params, h_BLD, tau_s, tau_t, key, given_BL=None):
        jax.debug.callback(lambda given: told.append(np.asarray(given)), given_BL, ordered=True)
        return given_nets.backbone(params, h_BLD, tau_s, tau_t, key, given_BL)

    nets = {r: dataclasses.replace(net, backbone=telling) for r, net in NETS.items()}
    nets = nets if row.needs.teacher else {"student": nets["student"]}
    call = write(row, nets)
    written = call(Given(TOKENS, MASKS["some"]))
    jax.effects_barrier()
    assert len(told) == STEPS * len(nets) and all((mask >= SOME).all() for mask in told)
    assert (told[0] == SOME).all()
    space = tiny.at(nets, Projected, CLOCK).space
    clean = np.asarray(space.clean(jnp.asarray(TOKENS), jnp.float32))
    for state in np.asarray(written.trajectory.states):
        np.testing.assert_array_equal(state[SOME], clean[SOME])
    for tokens_BL in [written.tokens_BL, *written.trajectory.tokens_SBL]:
        np.testing.assert_array_equal(np.asarray(tokens_BL)[SOME], TOKENS[SOME])
    assert (np.asarray(written.trajectory.confidence_SBL)[:, SOME] == 1.0).all()
    # All given: nothing changes. Nothing given: what is written without given tokens.
    np.testing.assert_array_equal(call(Given(TOKENS, MASKS["all"])).tokens_BL, TOKENS)
    nothing, without = call(Given(TOKENS, MASKS["none"])), call(None)
    np.testing.assert_array_equal(nothing.tokens_BL, without.tokens_BL)
    np.testing.assert_allclose(nothing.trajectory.states, without.trajectory.states, atol=1e-5)
    moved = [np.asarray(one.trajectory.states)[1][~SOME] for one in (without, written)]
    assert np.abs(moved[0] - moved[1]).max() > 1e-3  # open tokens hear of the given ones


@pytest.mark.parametrize("name", ["euler", "flow_map", "refinement", "block_diffusion"])
def test_both_spaces_agree(name):
    with jax.enable_x64(True):
        nets = {"student": given_nets.net(dtype=jnp.float64)}
        row = SAMPLERS[name]()
        if name == "refinement":
            row = dataclasses.replace(row, inside="euler", fresh_noise=False, rounds=2)
        elif name == "block_diffusion":
            row = dataclasses.replace(row, inside="jump", block_length=3)
        dense = jax.random.normal(jax.random.key(0), (B, L, V), jnp.float64)
        found = []
        for make in OneHot, Projected:
            at = tiny.at(nets, make, CLOCK)
            call = write(row, nets, make)
            written = call(Given(TOKENS, SOME), at.space.from_dense(dense))
            seen = jax.vmap(lambda x, at=at: at.space.view(x, "student"))(written.trajectory.states)
            found.append((written.tokens_BL, seen))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=2e-4)  # the jitter of the noise


@pytest.mark.parametrize("sampler", [Euler(), FlowMap(0.7)])
def test_with_a_patience_given_tokens_are_no_change(sampler):
    plain = write(sampler, {"student": NETS["student"]})
    early = write(sampler, {"student": NETS["student"]}, trajectory=False, patience=2)
    given = Given(TOKENS, MASKS["some"])
    path, found = plain(given).trajectory, early(given)
    tokens_SBL = np.asarray(path.tokens_SBL)
    for b in range(B):
        same = [
            n for n in range(2, STEPS) if (tokens_SBL[n - 2 : n + 1, b] == tokens_SBL[n, b]).all()
        ]
        last = same[0] if same else STEPS - 1
        assert found.evaluations_B[b] == last + 1
        np.testing.assert_array_equal(found.tokens_BL[b], tokens_SBL[last, b])
    everything = early(Given(TOKENS, MASKS["all"]))
    np.testing.assert_array_equal(everything.evaluations_B, 3)


def token_net(mask_token: bool):
    made = given_nets.net(vocab_size=V + mask_token)
    return {"student": made}


@pytest.mark.parametrize("name", ["ancestral_masked", "ancestral_uniform"])
def test_samplers_of_tokens_keep_what_is_given(name):
    row = SAMPLERS[name]()
    call = write(row, token_net(row.needs.mask_token))
    written = call(Given(TOKENS, SOME))
    for tokens_BL in [*written.trajectory.states, *written.trajectory.tokens_SBL]:
        np.testing.assert_array_equal(np.asarray(tokens_BL)[SOME], TOKENS[SOME])
    assert (np.asarray(written.trajectory.confidence_SBL)[:, SOME] == 1.0).all()
    np.testing.assert_array_equal(call(Given(TOKENS, MASKS["all"])).tokens_BL, TOKENS)
    without = call(None).tokens_BL
    np.testing.assert_array_equal(call(Given(TOKENS, MASKS["none"])).tokens_BL, without)
    assert (np.asarray(written.tokens_BL) < V).all()


@pytest.fixture(scope="module")
def causal():
    model = tiny.model(V, causal=True)
    return {"student": model.net(tiny.params(model))}


def test_an_autoregressive_model_goes_on_from_a_beginning(causal):
    lengths = np.asarray([0, 2, L])
    mask_BL = np.arange(L)[None] < lengths[:, None]
    call = write(LeftToRight(), causal)
    written, without = call(Given(TOKENS, mask_BL)), call(None)
    tokens_BL = np.asarray(written.tokens_BL)
    np.testing.assert_array_equal(tokens_BL[mask_BL], TOKENS[mask_BL])
    np.testing.assert_array_equal(tokens_BL[0], without.tokens_BL[0])  # the same draws after BOS
    np.testing.assert_array_equal(tokens_BL[2], TOKENS[2])
    confidence_SBL = np.asarray(written.trajectory.confidence_SBL)
    assert confidence_SBL[-1, 1, 1] == 1.0 and 0.0 < confidence_SBL[-1, 1, 3] < 1.0
    # Given as the prompt, its own text goes on as it did.
    own = Given(np.asarray(without.tokens_BL), mask_BL)
    np.testing.assert_array_equal(call(own).tokens_BL, without.tokens_BL)


def test_only_a_beginning_can_be_given_to_it():
    LeftToRight().check_given(MASKS["none"])
    LeftToRight().check_given(np.asarray([[True, True, False], [False, False, False]]))
    with pytest.raises(UserError, match="position 3 of sequence 0 comes after an open one"):
        LeftToRight().check_given(SOME)
