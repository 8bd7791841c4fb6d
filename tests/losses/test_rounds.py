"""Diffusions on tokens distilled into themselves: targets, laws, teachers, on tiny vocabularies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flm_jax.errors import UserError
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow.at import STUDENT, TEACHER
from flm_jax.flow.head import Head
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot
from flm_jax.losses.dcd import DCD
from flm_jax.losses.divergence import FORWARD, REVERSE, Divergence
from flm_jax.losses.rounds import UPDATES
from flm_jax.losses.sdtt import SDTT
from flm_jax.training import step as step_lib

V, B, L = 5, 4, 6
CLOCK = clock_lib.build(V)
LOSSES = {"sdtt": SDTT(every=2, rounds=3, first_steps=8), "dcd": DCD(every=2, rounds=3)}


def model_of(loss):
    return tiny.model(V, logit_cap=0.0, **tiny.needs(loss))


def evaluated(loss, updates=0, seed=0, batch=None, student=None, teacher=None, draws=None, **told):
    """(what the loss says, its draws) for two tiny networks, or given ones, at some update."""
    model = model_of(loss)
    student = model.net(tiny.params(model)) if student is None else student
    teacher = model.net(tiny.params(model, 1)) if teacher is None else teacher
    kept = {**teacher.params, UPDATES: jnp.asarray(updates, jnp.int32)}
    nets = {STUDENT: student, TEACHER: dataclasses.replace(teacher, params=kept)}
    at = tiny.at(nets, OneHot, CLOCK)
    batch = tiny.batch(size=B, length=L, vocab_size=V) if batch is None else batch
    draws = loss.draw(jax.random.key(seed), batch, at.space) | (draws or {})
    draws.pop("dropout")
    return loss.evaluate(at, batch, draws), draws


def posterior_of(p_BLV) -> Posterior:
    size = p_BLV.shape[-1]
    return Posterior(jnp.log(p_BLV), Head(jnp.eye(size), jnp.zeros(size), cap=0.0, chunk=8))


def mean_of(found) -> float:
    return float(jnp.sum(found.loss_BL * found.count_BL) / jnp.maximum(jnp.sum(found.count_BL), 1))


@pytest.mark.parametrize("direction", [REVERSE, FORWARD])
def test_a_divergence_and_its_gradient_are_those_of_the_formula(direction):
    draw = np.random.default_rng(0)
    s, a = (jnp.asarray(draw.dirichlet(np.ones(V), (B, L)), jnp.float32) for _ in "sa")

    def ours(features):
        posterior = dataclasses.replace(posterior_of(s), features_BLD=features)
        return jnp.sum(posterior.loss(Divergence(posterior_of(a), direction), None))

    def formula(features):
        log_s, log_a = jax.nn.log_softmax(features), jnp.log(a)
        p, difference = (jnp.exp(log_s), log_s - log_a)
        return jnp.sum(p * difference if direction == REVERSE else -a * difference)

    values = [jax.value_and_grad(f)(jnp.log(s)) for f in (ours, formula)]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-5)
    np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_left_to_learn_from_oneself_without_a_step(name):
    loss = dataclasses.replace(LOSSES[name], first_steps=10**9)
    model = model_of(loss)
    net = model.net(tiny.params(model))
    found, _ = evaluated(loss, student=net, teacher=net)
    assert abs(mean_of(found)) < 1e-5
    other, _ = evaluated(loss, student=net)
    assert mean_of(other) > 0.1


def test_the_target_is_what_the_teacher_said_when_it_showed_the_token():
    """Every step by hand, of a teacher that the shown tokens matter to."""
    loss = SDTT(rounds=1, teacher_steps=3)
    model = model_of(loss)
    teacher = model.net(tiny.params(model, 1))
    batch = tiny.batch(size=B, length=L, vocab_size=V)
    draws = loss.draw(jax.random.key(3), batch, OneHot({STUDENT: teacher.table}))
    t_B, dt = jnp.full(B, 0.4), jnp.asarray(0.12)
    masked = np.ones((B, L), bool)
    masked[:, 2] = False
    target = loss.target(teacher, batch.tokens_BL, jnp.asarray(masked), t_B, dt, draws)
    tokens, wanted = np.asarray(batch.tokens_BL).copy(), np.zeros((B, L, V))
    hidden = masked.copy()
    for k in range(3):
        answer = discrete.predict_masked(
            teacher, jnp.asarray(tokens), jnp.asarray(hidden)
        ).posterior
        wanted[hidden] = np.asarray(answer.dense())[hidden]  # until a later step says more
        chance = 0.12 / (0.4 - k * 0.12)
        shown = hidden & (np.asarray(draws["show"][k]) < chance)
        assert shown.any()
        tokens = np.where(shown, answer.sample(draws["which"][k]), tokens)
        hidden &= ~shown
    np.testing.assert_allclose(np.asarray(target.dense())[masked], wanted[masked], rtol=1e-5)
    first = discrete.predict_masked(teacher, batch.tokens_BL, jnp.asarray(masked)).posterior
    assert np.abs(np.asarray(first.dense()) - wanted)[masked].max() > 0.01  # later steps differ
    # With one step only it is the answer to what the student sees.
    alone = dataclasses.replace(loss, teacher_steps=1)
    once = alone.target(teacher, batch.tokens_BL, jnp.asarray(masked), t_B, dt, draws)
    np.testing.assert_array_equal(once.features_BLD, first.features_BLD)


def test_where_the_step_reaches_beyond_the_data_all_is_shown():
    loss = SDTT(every=1, first_steps=2, rounds=1)
    model = model_of(loss)
    batch, teacher = tiny.batch(size=B, length=L, vocab_size=V), model.net(tiny.params(model, 1))
    draws = loss.draw(jax.random.key(0), batch, OneHot({STUDENT: teacher.table}))
    posterior = posterior_of(jnp.full((B, L, V), 1 / V))
    alphas = (discrete.alpha(jnp.full(B, t)) for t in (0.3, 0.3 - 0.5))
    share_B = discrete.unmask_probability(*alphas)
    assert (share_B > 1).all()
    all_masked = jnp.ones((B, L), bool)
    _, left = loss.show(posterior, batch.tokens_BL, all_masked, share_B, 0, draws)
    assert not left.any()


def test_official_times_are_another_line():
    t_B, dt = jnp.asarray([0.5, 0.02]), jnp.asarray(0.125)
    even, official = (SDTT(spacing=spacing) for spacing in ("even", "official"))
    np.testing.assert_allclose(even.start(1, t_B, dt), [0.375, 1e-5], rtol=1e-5)
    np.testing.assert_allclose(official.start(0, t_B, dt), [0.625, 1e-5], rtol=1e-5)
    np.testing.assert_allclose(official.start(1, t_B, dt), [0.125, 1e-5], rtol=1e-5)


def test_only_masked_tokens_count_and_prompts_are_never_masked():
    batch = tiny.batch(size=64, length=L, vocab_size=V)
    prompt = jnp.arange(L)[None, :] < jnp.full((64, 1), 2)
    batch = dataclasses.replace(batch, prompt_BL=prompt, mask_BL=batch.mask_BL.at[0].set(0.0))
    found, draws = evaluated(LOSSES["sdtt"], batch=batch)
    t_B1 = np.asarray(LOSSES["sdtt"].times(draws))[:, None]
    masked = (np.asarray(draws["mask"]) < 0.999 * t_B1) & ~np.asarray(prompt)
    masked[0] = False
    np.testing.assert_array_equal(found.count_BL, masked)
    assert 0.2 < masked.mean() < 0.5 and np.isfinite(mean_of(found))


def test_three_numbers_have_the_law_of_all_the_noise():
    """(x_t, x_s) of DCD against arg max of latents, cell by cell; alpha is the clock's."""
    rows, size, loss = 20, 60_000, DCD(gamma_min=-1.5, gamma_max=1.0)
    tokens = jnp.zeros((rows, size // rows), jnp.int32)
    keys = jax.random.split(jax.random.key(0), rows)
    draws = loss.draw_tokens(keys, size // rows, OneHot({STUDENT: jnp.eye(V)}))
    noise = np.random.default_rng(0).standard_normal((size, V))
    times = (0.8, 0.3)
    ours, dense = [], []
    for t in times:
        seen = loss.seen(draws, tokens, jnp.full(rows, t), V)
        ours.append(np.asarray(seen).ravel())
        a, b = (float(x) for x in discrete.parts_of_latent(loss.gamma(jnp.asarray(t))))
        dense.append(np.argmax(a * np.eye(V)[0] + b * noise, axis=-1))
        alpha = float(loss.alpha(jnp.asarray([t]), CLOCK)[0])
        p = alpha + (1 - alpha) / V
        assert abs((ours[-1] == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / size)
    counts = [np.bincount(V * t + s, minlength=V * V) / size for t, s in (ours, dense)]
    deviation = np.sqrt((counts[0] + counts[1]) / size)
    assert (np.abs(counts[0] - counts[1]) < 5 * deviation + 1e-12).all()
    moved_t, moved_s = ours[0] != 0, ours[1] != 0
    assert (moved_t | ~moved_s).all()  # what is itself at t is so at s
    np.testing.assert_array_equal(ours[0][moved_s], ours[1][moved_s])  # and moves once


@pytest.mark.parametrize("count", [1, 7, 50_000])
def test_the_largest_of_many_normals(count):
    """Quantiles against Phi(m)^count, far in the tail, too."""
    from scipy import stats

    uniform = np.asarray([1e-3, 0.3, 0.9, 0.9999])
    found = discrete.largest_of_normals(jnp.asarray(uniform, jnp.float32), count)
    expected = stats.norm.isf(-np.expm1(np.log(uniform) / count))
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_what_the_two_networks_of_dcd_are_shown():
    """The student the later tokens and time, the teacher the earlier ones by dt; both may clip."""
    loss, seen = DCD(every=1, rounds=1, first_steps=4), []

    def net(role):
        def backbone(params, h_BLD, tau_s, tau_t, key):
            seen.append((role, np.asarray(h_BLD).argmax(-1), np.asarray(tau_s)))
            return jnp.zeros_like(h_BLD), None

        params = {
            "embed": {"table": jnp.eye(V)},
            "head": {"kernel": jnp.eye(V), "bias": jnp.ones(V)},
        }
        return Net(backbone, params, logit_cap=0.0)

    batch = tiny.batch(size=16, length=L, vocab_size=V)
    _, draws = evaluated(loss, batch=batch, student=net(STUDENT), teacher=net(TEACHER))
    t = np.minimum(np.asarray(loss.times(draws)) + 0.25, 1.0)
    assert (t == 1.0).any()
    for (role, tokens, sigma), time, wanted in zip(
        seen, (t, t - 0.25), (STUDENT, TEACHER), strict=True
    ):
        assert role == wanted
        time_B = jnp.asarray(time, jnp.float32)
        np.testing.assert_array_equal(tokens, loss.seen(draws, batch.tokens_BL, time_B, V))
        np.testing.assert_allclose(sigma, -np.log(loss.alpha(time_B, CLOCK)), rtol=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_rounds_double_the_step_and_replace_the_teacher(name):
    """Update by update: dt, which parameters teach, and that the last round has no end."""
    loss, model = LOSSES[name], model_of(LOSSES[name])

    def trained(next_teacher):
        made = dataclasses.replace(loss, next_teacher=next_teacher)
        state = made.first_state({"w": jnp.asarray(0.0)})
        for step in range(1, 9):
            yield float(made.dt(state[TEACHER][UPDATES])), float(state[TEACHER]["w"])
            w = jnp.asarray(float(step))
            state = made.next_state(state, jnp.asarray(step), {"w": w}, {"w": -w})

    first = loss.longest / loss.first_steps
    dts = [first, first, 2 * first, 2 * first, *[4 * first] * 4]
    found = list(trained("student"))
    np.testing.assert_allclose([dt for dt, _ in found], dts, rtol=1e-6)
    assert [w for _, w in found] == [0, 0, 2, 2, 4, 4, 4, 4]
    assert [w for _, w in trained("ema")] == [0, 0, -2, -2, -4, -4, -4, -4]
    assert set(loss.first_state(tiny.params(model))) == {TEACHER}


def test_a_step_that_grows_steadily():
    loss = DCD(every=10, linear_over=100)
    dts = [float(loss.dt(jnp.asarray(n))) for n in (0, 40, 100, 250)]
    np.testing.assert_allclose(dts, [0.001, 0.1006, 0.25, 0.25], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.slow
def test_draws_hang_on_the_place_in_the_global_batch(name):
    loss, whole = LOSSES[name], tiny.batch(size=8, length=L, vocab_size=V)
    part = dataclasses.replace(
        whole, tokens_BL=whole.tokens_BL[2::4], mask_BL=whole.mask_BL[2::4],
        index_B=whole.index_B[2::4],
    )  # fmt: skip
    (all_found, all_draws), (found, draws) = (evaluated(loss, 3, batch=b) for b in (whole, part))
    np.testing.assert_array_equal(loss.times(draws), loss.times(all_draws))
    np.testing.assert_array_equal(found.count_BL, all_found.count_BL[2::4])
    counted = np.asarray(found.count_BL) > 0
    assert counted.any()
    expected = np.asarray(all_found.loss_BL)[2::4]
    np.testing.assert_allclose(np.asarray(found.loss_BL)[counted], expected[counted], rtol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_a_learned_weight_is_refused(name):
    loss = LOSSES[name]
    model = tiny.model(V, loss_weighting=True, **tiny.needs(loss))
    with pytest.raises(UserError, match=f"loss '{name}' .*set model.loss_weighting=False"):
        evaluated(loss, student=model.net(tiny.params(model)))


def test_the_clock_must_measure_accuracy():
    with pytest.raises(UserError, match="set clock.name=decoding_accuracy"):
        DCD().alpha(jnp.ones(1), clock_lib.identity())


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (SDTT, {"every": 0}, "every=0 must be at least 1"),
        (SDTT, {"teacher_steps": 0}, "teacher_steps=0 must be at least 1"),
        (SDTT, {"spacing": "uneven"}, "spacing='uneven' is unknown; choose 'even' or 'official'"),
        (SDTT, {"divergence": "tvd"}, "divergence='tvd' is unknown"),
        (SDTT, {"next_teacher": "best"}, "choose 'student' or 'ema'"),
        (SDTT, {"rounds": 12}, "grow from 1/1024 to 2048/1024, which is longer than all"),
        (SDTT, {"t_min": 0.0}, "t_min=0.0 must be above 0"),
        (DCD, {"gamma_min": 0.0}, "gamma_min=0.0 must be below gamma_max=-1.0"),
        (DCD, {"linear_over": -1}, "linear_over=-1 must be a number of updates"),
        (DCD, {"dt_min": 0.5}, "dt_min=0.5, dt_max=0.25: need 0 <= dt_min <= dt_max <= 1"),
    ],
)
def test_bad_options_are_explained(make, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(**options)


@pytest.mark.slow
def test_one_update_moves_the_student_towards_its_teacher():
    """Through the training step: the teacher of the state stays while the round lasts."""
    loss, model = SDTT(every=3, rounds=2, first_steps=8), model_of(SDTT())
    params, batch = tiny.params(model), tiny.batch(size=16, length=L, vocab_size=V)
    optimizer = optax.adam(3e-3)
    state = step_lib.init_state(params, optimizer, loss)
    kept = {TEACHER: {**tiny.params(model, 1), UPDATES: jnp.zeros((), jnp.int32)}}
    state = state.replace(loss=kept)
    step = jax.jit(step_lib.make_train_step(
        {STUDENT: model.net, TEACHER: model.net}, loss, OneHot, CLOCK, optimizer, ema_decay=0.9,
    ))  # fmt: skip
    losses = []
    for i in range(3):
        same = jax.tree.map(jnp.array_equal, state.loss[TEACHER]["embed"], kept[TEACHER]["embed"])
        assert all(jax.tree.leaves(same)) and int(state.loss[TEACHER][UPDATES]) == i
        state, metrics = step(state, {}, batch.tokens_BL, batch.mask_BL, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    taught = {name: tree for name, tree in state.loss[TEACHER].items() if name != UPDATES}
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), taught, state.params))
    assert np.isfinite(losses).all() and losses[2] < losses[0]
