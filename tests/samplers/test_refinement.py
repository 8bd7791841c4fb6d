"""Samplers in rounds: what they commit, in closed form; one round is the plain sampler."""

import given_nets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow.net import Net
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import OneHot, Projected
from flm_jax.samplers import BlockDiffusion, Churn, Euler, FlowMap, Refinement
from flm_jax.samplers.base import Given
from flm_jax.samplers.refinement import rank
from flm_jax.samplers.rounds import Schedule
from flm_jax.sampling import Sampling

V, B, L = given_nets.V, 3, 6
CLOCK = clock_lib.build(V)
KEYS = sequence_keys(jax.random.key(3), jnp.arange(B))
NET = given_nets.net()
NO_KEYS = jnp.zeros(0)


def write(sampler, net=NET, steps=4, make_space=Projected, given=None, length=L, **options):
    keys = options.pop("keys", KEYS)
    trajectory = options.pop("trajectory", False)
    sampling = Sampling(steps=steps, **options)

    @jax.jit
    def call(given):
        at = tiny.at({"student": net}, make_space, CLOCK)
        return sampler.run(at, keys, sampling, length, trajectory=trajectory, given=given)

    return jax.tree.map(np.asarray, call(given))


@pytest.mark.parametrize(
    "count, rounds, budgets",
    [
        (89, 4, [23, 22, 22, 22]),
        (128, 4, [32] * 4),
        (5, 11, [1] * 5 + [0] * 6),
        (7, 1, [7]),
    ],
)
def test_a_uniform_budget_writes_everything_in_its_rounds(count, rounds, budgets):
    """Without a threshold, commits are the budgets, most probable first."""
    p_1L = jnp.asarray(np.random.default_rng(0).permutation(count) + 1.0)[None] / (count + 1)
    sampler, open_1L, found = (
        Refinement(threshold=-1.0, rounds=rounds),
        jnp.ones((1, count), bool),
        [],
    )
    for r in range(rounds):
        chosen = sampler.commit(jnp.asarray(r), rounds, open_1L, p_1L, NO_KEYS)
        left = np.asarray(p_1L)[np.asarray(open_1L & ~chosen)]
        taken = np.asarray(p_1L)[np.asarray(chosen)]
        assert not (chosen & ~open_1L).any()
        if len(left) and len(taken):
            assert taken.min() > left.max()
        found.append(int(chosen.sum()))
        open_1L = open_1L & ~chosen
    assert found == budgets and not open_1L.any()


def test_a_threshold_and_a_budget_are_joined():
    p = jnp.asarray([[0.95, 0.5, 0.9, 0.2, 0.99, 0.6]])
    open_BL = jnp.asarray([[True, True, True, True, False, True]])

    def commit(**options):
        return np.flatnonzero(Refinement(**options).commit(jnp.asarray(0), 5, open_BL, p, NO_KEYS))

    assert commit().tolist() == [0, 2]  # both pass 0.9; the budget would be one
    assert commit(threshold=0.97).tolist() == [0]
    assert commit(threshold=0.97, top_k=3).tolist() == [0, 2, 5]
    assert commit(threshold=0.6, top_k=0).tolist() == [0, 2, 5]
    assert commit(threshold=-1.0, top_k=0).tolist() == []
    assert commit(threshold=0.0).tolist() == [0, 1, 2, 3, 5]
    assert commit(threshold=1.0, top_k=99).tolist() == [0, 1, 2, 3, 5]


def test_every_round_can_have_a_threshold():
    p = jnp.asarray([[0.95, 0.5, 0.9, 0.2]])
    sampler = Refinement(thresholds=(0.92, 0.4, -1.0), rounds=3, top_k=0)
    chosen = [
        np.flatnonzero(sampler.commit(jnp.asarray(r), 3, jnp.ones_like(p, bool), p, NO_KEYS))
        for r in range(3)
    ]
    assert [found.tolist() for found in chosen] == [[0], [0, 1, 2], []]


def test_equal_scores_are_ranked_by_position():
    open_BL = jnp.asarray([[True, False, True, True]])
    assert rank(open_BL, jnp.asarray([[1.0, 9.0, 2.0, 2.0]])).tolist() == [[2, 3, 0, 1]]


def test_noise_on_the_confidence_ranks_in_proportion():
    """Gumbel noise of scale 1 on log p: the first one is drawn with probability p / sum(p)."""
    p_BL = jnp.tile(jnp.asarray([[0.1, 0.3, 0.6]]), (4000, 1))
    sampler = Refinement(threshold=-1.0, top_k=1, confidence_noise=1.0)
    keys = sequence_keys(jax.random.key(0), jnp.arange(4000))
    chosen = sampler.commit(jnp.asarray(0), 3, jnp.ones_like(p_BL, bool), p_BL, keys)
    share = np.asarray(chosen).mean(0)
    assert (np.abs(share - np.asarray([0.1, 0.3, 0.6])) < 4 * np.sqrt(0.25 / 4000)).all()


def test_the_schedule_gives_every_round_its_evaluations():
    schedule = Schedule.of(7, 3, 1.0)
    assert schedule.round_S.tolist() == [0, 0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(schedule.tau_S, [0, 1 / 3, 2 / 3, 0, 0.5, 0, 0.5], rtol=1e-6)
    np.testing.assert_allclose(schedule.tau_next_S, [1 / 3, 2 / 3, 1, 0.5, 1, 0.5, 1], rtol=1e-6)
    assert schedule.last_S.tolist() == [0, 0, 1, 0, 1, 0, 1]
    assert Schedule.of(3, 3, 1.0).last_S.all() and not schedule.look_S.any()


def test_looks_between_the_rounds_are_evaluations():
    schedule = Schedule.of(7, 3, 1.0, looks=True)  # 2 + look + 2 + look + 1
    assert schedule.round_S.tolist() == [0, 0, 0, 1, 1, 1, 2]
    np.testing.assert_allclose(schedule.tau_S, [0, 0.5, 0, 0, 0.5, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(schedule.tau_next_S, [0.5, 1, 1, 0.5, 1, 1, 1], rtol=1e-6)
    assert schedule.last_S.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert schedule.look_S.tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert Schedule.of(3, 2, 1.0, looks=True).look_S.tolist() == [0, 1, 0]
    assert Refinement(reopen=0.1).rounds_for(6, L) == 3


@pytest.mark.parametrize("steps", [1, 4])
def test_one_round_is_the_plain_sampler(steps):
    """The same first noise, so the same tokens: jumps, or Euler steps."""
    plain = write(FlowMap(), steps=steps).tokens_BL
    np.testing.assert_array_equal(write(Refinement("jump", rounds=1), steps=steps).tokens_BL, plain)
    block = BlockDiffusion("jump", block_length=L)
    np.testing.assert_array_equal(write(block, steps=steps).tokens_BL, plain)
    euler = write(Euler(), steps=steps).tokens_BL
    np.testing.assert_array_equal(
        write(Refinement("euler", rounds=1), steps=steps).tokens_BL, euler
    )


def by_place(p_LV: np.ndarray) -> Net:
    """A denoiser that answers p of the position, whatever it sees."""
    log_p = jnp.log(jnp.asarray(p_LV, jnp.float32))
    params = {
        "embed": {"table": NET.params["embed"]["table"]},
        "head": {"kernel": jnp.eye(V), "bias": jnp.zeros(V)},
    }

    def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None):
        return jnp.broadcast_to(log_p[None], (h_BLD.shape[0], *log_p.shape)), None

    return Net(backbone, params, logit_cap=0.0)


PLACES = np.random.default_rng(2).dirichlet(np.full(V, 0.7), L)


def test_positions_are_committed_in_the_order_of_their_confidence():
    written = write(
        Refinement(threshold=-1.0, rounds=3), by_place(PLACES), 6, OneHot, trajectory=True
    )
    np.testing.assert_array_equal(written.tokens_BL, np.tile(PLACES.argmax(1), (B, 1)))
    clean = np.eye(V)[PLACES.argmax(1)]
    committed_SL = (written.trajectory.states == clean).all((1, 3))
    order = np.argsort(-PLACES.max(1))
    for evaluations, count in (0, 0), (1, 0), (2, 2), (3, 2), (4, 4), (6, 6):
        assert set(np.flatnonzero(committed_SL[evaluations])) == set(order[:count])
    first, after = written.trajectory.states[0], written.trajectory.states[2]
    still_open = order[2:]
    assert (first[:, still_open] != after[:, still_open]).all()  # fresh noise
    kept = write(
        Refinement(threshold=-1.0, rounds=3, fresh_noise=False),
        by_place(PLACES), 6, OneHot, trajectory=True,
    ).trajectory.states  # fmt: skip
    np.testing.assert_array_equal(kept[0][:, still_open], kept[2][:, still_open])


def test_what_was_committed_and_is_improbable_is_opened_again():
    """Of the committed tokens half are looked at; those below ``reopen`` start from noise again."""
    keys = sequence_keys(jax.random.key(7), jnp.arange(200))
    given = Given(np.zeros((200, L), np.int32), np.arange(L)[None] == np.zeros((200, 1), int))
    order = 1 + np.argsort(-PLACES.max(1)[1:])  # without the given one
    p = PLACES.max(1)
    reopen = float(p[order[:2]].mean())  # of the two committed first, one is below it
    written = write(
        Refinement(threshold=-1.0, top_k=2, rounds=2, reopen=reopen),
        by_place(PLACES), 3, OneHot, keys=keys, given=given, trajectory=True,
    )  # fmt: skip
    clean = np.eye(V)[np.where(np.arange(L) == 0, 0, PLACES.argmax(1))]
    before_BL, after_BL = ((written.trajectory.states[s] == clean).all(-1) for s in (1, 2))
    assert (before_BL.sum(0) > 0).nonzero()[0].tolist() == sorted([0, *order[:2]])
    share = after_BL.mean(0)
    assert share[0] == 1.0 and share[order[0]] == 1.0 and not share[order[2:]].any()
    assert abs(share[order[1]] - 0.5) < 5 * 0.5 / np.sqrt(200)
    np.testing.assert_array_equal(written.tokens_BL, np.tile(clean.argmax(1), (200, 1)))


def test_looks_are_counted_and_needed_only_where_something_is_committed():
    calls = []
    net = given_nets.counted(by_place(PLACES), calls)
    given = Given(np.zeros((B, L), np.int32), np.asarray([[False] * L, [True] * L, [False] * L]))
    sure = Refinement(threshold=0.0, rounds=3, reopen=1e-6)  # one round, two looks, no doubt
    written = write(sure, net, 5, given=given)
    jax.effects_barrier()
    np.testing.assert_array_equal(written.evaluations_B, [3, 0, 3])
    assert len(calls) == 3


def test_it_stops_when_everything_is_committed_and_counts_what_it_took():
    calls = []
    net = given_nets.counted(by_place(PLACES), calls)
    given = Given(np.zeros((B, L), np.int32), np.asarray([[False] * L, [True] * L, [False] * L]))
    written = write(Refinement(threshold=0.0, rounds=3), net, 6, given=given)
    jax.effects_barrier()
    np.testing.assert_array_equal(written.evaluations_B, [2, 0, 2])
    assert len(calls) == 2
    tokens = np.tile(PLACES.argmax(1), (B, 1))
    tokens[1] = 0
    np.testing.assert_array_equal(written.tokens_BL, tokens)
    whole = write(Refinement(threshold=-1.0, rounds=3), net, 6)
    np.testing.assert_array_equal(whole.evaluations_B, 6)


def test_a_temperature_draws_the_tokens_that_are_committed():
    keys = sequence_keys(jax.random.key(5), jnp.arange(300))
    drawn = write(Refinement(rounds=2), by_place(PLACES), 2, keys=keys, temperature=1.0).tokens_BL
    for position in range(L):
        share = np.bincount(drawn[:, position], minlength=V) / 300
        p = PLACES[position]
        assert (np.abs(share - p) < 5 * np.sqrt(p * (1 - p) / 300) + 1e-3).all()


def test_blocks_are_written_from_left_to_right_and_given_ones_are_skipped():
    calls = []
    given = Given(np.ones((B, L), np.int32), np.tile(np.arange(L)[None] >= 4, (B, 1)))
    block = BlockDiffusion("jump", block_length=2)
    net = given_nets.counted(NET, calls)
    written = write(block, net, 6, given=given)
    jax.effects_barrier()
    np.testing.assert_array_equal(written.evaluations_B, 4)
    assert len(calls) == 4
    path = write(block, NET, 6, OneHot, given=given, trajectory=True).trajectory
    one_hot_SL = ((path.states == 1.0).sum(-1) == 1).all(1) & (path.states.max(-1) == 1.0).all(1)
    assert one_hot_SL[2].tolist() == [True, True, False, False, True, True]
    np.testing.assert_array_equal(path.states[2][:, 2:4], path.states[0][:, 2:4])
    with pytest.raises(
        UserError, match="in blocks of block_length=2 takes at least 3 steps, not 2"
    ):
        write(block, NET, 2)


def test_churn_forgets_the_old_noise():
    """x <- t' p + (1 - t') xi: mean and spread of the second state of a known denoiser."""
    keys = sequence_keys(jax.random.key(1), jnp.arange(500))
    path = write(Churn(), by_place(PLACES), 2, OneHot, keys=keys, trajectory=True).trajectory
    t = float(CLOCK.to_t(jnp.asarray(0.5)))
    state = path.states[1]
    error = np.abs(state.mean(0) - t * PLACES)
    assert (error < 5 * (1 - t) / np.sqrt(500) + 1e-3).all()
    assert abs(state.std(0).mean() / (1 - t) - 1) < 0.02
    first, second = path.states[0] - path.states[0].mean(0), state - state.mean(0)
    assert abs((first * second).mean()) < 0.02
    # A small share keeps most of the old noise, and the level of the noise is the same.
    path = write(
        Churn(share=0.3), by_place(PLACES), 2, OneHot, keys=keys, trajectory=True
    ).trajectory
    state = path.states[1]
    assert abs(state.std(0).mean() / (1 - t) - 1) < 0.02
    second = state - state.mean(0)
    expected = (1 - t) * np.sqrt(1 - 0.3**2)
    assert abs((first * second).mean() / expected - 1) < 0.03


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Refinement(inside="walk"), "inside='walk' is unknown; choose auto or jump"),
        (lambda: Refinement(top_k=-2), "top_k=-2 must be at least -1"),
        (lambda: Refinement(thresholds=(0.9,)), "has 1 values, but there are rounds=4; give one"),
        (lambda: Refinement(thresholds=(0.9, 2.0), rounds=2), "must have values from -1"),
        (lambda: Refinement(reopen=1.0), "reopen=1.0 must be a probability in .0, 1"),
        (lambda: BlockDiffusion(block_length=0), "block_length=0 must be at least 1"),
        (lambda: Churn(share=0.0), r"share=0.0 must be in \(0, 1\]"),
    ],
)
def test_a_wrong_option_is_one_sentence(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_the_rule_inside_a_round_is_that_of_the_network():
    assert Refinement().suited(two_times=True).needs.two_times
    assert Refinement().suited(two_times=False).inside == "fresh"
    assert Refinement("euler").suited(two_times=True) == Refinement("euler")


def test_the_official_jump_has_a_small_number_in_its_denominator():
    keep, add = maps.jump(jnp.asarray([0.0, 1.0]), jnp.asarray([0.5, 1.0]), maps.EPS_MAP)
    np.testing.assert_allclose([keep, add], [[0.5, 1.0], [0.5, 0.0]], rtol=1e-6)
