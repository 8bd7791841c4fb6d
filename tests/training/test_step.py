"""The training step: accumulation, frozen networks, the EMA, metrics, held-out sums."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from flm_jax.contracts import Needs
from flm_jax.flow.at import At
from flm_jax.flow.space import OneHot, Projected
from flm_jax.inference import heldout
from flm_jax.losses.base import Loss, PerToken
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.training import optim
from flm_jax.training import step as step_lib
from flm_jax.training.selective import selective

B, L, V = 8, tiny.L, tiny.V
BATCH = tiny.batch(size=B)
KEY = jax.random.key(3)
CLOCK = tiny.clock()


def descend(accumulation: int = 1, loss=None, make_space=Projected, **changes):
    """A jitted step of plain gradient descent with rate 1: new = old - gradient."""
    model = tiny.model(**changes)
    step = step_lib.make_train_step(
        {"student": model.net},
        loss or FlowMatching(),
        make_space,
        CLOCK,
        optax.sgd(1.0),
        ema_decay=0.9,
        accumulation_steps=accumulation,
        schedule=lambda n, _: 0.5 * n,
    )
    return jax.jit(step), first_state(tiny.params(model), optax.sgd(1.0))


def first_state(params, optimizer, loss=FlowMatching()):  # noqa: B008
    return step_lib.init_state(params, optimizer, loss)


def gradient(state, new):
    return jax.tree.map(lambda a, b: a - b, state.params, new.params)


def assert_close(tree, reference, tolerance=2e-6):
    for mine, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=tolerance)


UNEVEN = BATCH.mask_BL.at[1::2, 2:].set(0.0).at[4].set(0.0)


@pytest.fixture(scope="module", params=["full mask", "uneven mask"])
def whole(request):
    mask_BL = BATCH.mask_BL if request.param == "full mask" else UNEVEN
    step, state = descend()
    new, metrics = step(state, {}, BATCH.tokens_BL, mask_BL, KEY)
    return mask_BL, gradient(state, new), metrics


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_gives_the_gradient_and_metrics_of_the_whole_batch(whole, parts):
    mask_BL, wanted, wanted_metrics = whole
    step, state = descend(parts)
    new, metrics = step(state, {}, BATCH.tokens_BL, mask_BL, KEY)
    assert_close(gradient(state, new), wanted)
    assert metrics.keys() == wanted_metrics.keys()
    assert_close(metrics, wanted_metrics)


def test_metrics_are_means_over_masked_tokens(whole):
    mask_BL, wanted, metrics = whole
    model = tiny.model()
    net = model.net(tiny.params(model))
    space = Projected({"student": net.table})
    draws = FlowMatching().draw(jax.random.fold_in(KEY, 0), BATCH, space)
    loss_BL, *_ = FlowMatching().evaluate(At({"student": net}, space, CLOCK), BATCH, draws)
    assert float(metrics["loss"]) == pytest.approx(
        float(np.average(loss_BL, weights=mask_BL)), rel=1e-5
    )
    squares = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(wanted))
    assert float(metrics["grad_norm"]) == pytest.approx(squares**0.5, rel=1e-4)
    assert float(metrics["learning_rate"]) == 0.0
    assert {x.shape for x in metrics.values()} == {()}


def test_the_state_counts_averages_and_draws_anew():
    step, state = descend()
    new, first = step(state, {}, BATCH.tokens_BL, BATCH.mask_BL, KEY)
    assert int(new.step) == 1 and new.step.dtype == jnp.int32
    expected = jax.tree.map(lambda a, b: a - 9 / 11 * (a - b), state.params, new.params)
    assert_close(new.ema, expected)
    again, same = step(state, {}, BATCH.tokens_BL, BATCH.mask_BL, KEY)
    assert_close((again.params, same), (new.params, first), tolerance=0.0)
    _, later = step(state.replace(step=jnp.int32(1)), {}, BATCH.tokens_BL, BATCH.mask_BL, KEY)
    assert float(later["loss"]) != float(first["loss"])
    assert float(later["learning_rate"]) == 0.5


def test_micro_batches_deal_rows_in_turn():
    tokens = jnp.arange(12, dtype=jnp.int32)[:, None]
    parts = step_lib.split_batch(tokens, jnp.ones((12, 1)), 3)
    np.testing.assert_array_equal(parts.index_B, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
    np.testing.assert_array_equal(parts.tokens_BL[..., 0], parts.index_B)
    assert parts.global_size == 12


@dataclasses.dataclass(frozen=True)
class Product(Loss):
    """mean(student's table * other's table): its gradient tells what was frozen."""

    other: str

    @property
    def needs(self):
        return Needs(teacher=self.other == "teacher", ema=self.other == "ema")

    def draw(self, key, batch, space):
        return {}

    def evaluate(self, at, batch, draws):
        value = jnp.sum(at.student.table * at.nets[self.other].table)
        return PerToken(jnp.broadcast_to(value, batch.tokens_BL.shape), batch.mask_BL, {})


@pytest.mark.parametrize("role", ["teacher", "ema"])
def test_other_networks_get_no_gradient_and_are_arguments(role):
    model = tiny.model()
    params, others = tiny.params(model), tiny.params(model, seed=1)
    step = jax.jit(
        step_lib.make_train_step(
            {"student": model.net, role: model.net}, Product(role), OneHot, CLOCK, optax.sgd(1.0),
            ema_decay=0.9,
        )
    )  # fmt: skip
    state = first_state(params, optax.sgd(1.0)).replace(ema=others)
    frozen = {"teacher": others} if role == "teacher" else {}
    for factor in (1.0, 2.0):  # the same compiled step follows its argument
        changed = jax.tree.map(lambda x, f=factor: f * x, others)
        if role == "teacher":
            frozen = {"teacher": changed}
        new, _ = step(state.replace(ema=changed), frozen, BATCH.tokens_BL, BATCH.mask_BL, KEY)
        moved = gradient(state, new)
        np.testing.assert_allclose(
            moved["embed"]["table"], factor * others["embed"]["table"], atol=1e-6
        )
        assert not any(leaf.any() for leaf in jax.tree.leaves(moved["blocks"]))
    assert step._cache_size() == 1


@dataclasses.dataclass(frozen=True)
class Spoiled(Loss):
    """The sum of the table, not finite for batches that begin with token 0 or (gradient) 1."""

    needs = Needs()

    def draw(self, key, batch, space):
        return {}

    def evaluate(self, at, batch, draws):
        first, total = batch.tokens_BL[0, 0], jnp.sum(at.student.table)
        flat = total - jax.lax.stop_gradient(total)
        steep = jnp.sqrt(jnp.where(first == 1, flat, 1.0))  # at 0 the slope is infinite
        value = total + jnp.where(first == 0, jnp.nan, 0.0) + steep
        return PerToken(jnp.broadcast_to(value, batch.tokens_BL.shape), batch.mask_BL, {})


def test_a_batch_that_is_not_finite_changes_nothing_and_the_limit_is_for_good():
    model, optimizer = tiny.model(), optax.adam(0.1)
    step = jax.jit(
        step_lib.make_train_step(
            {"student": model.net}, Spoiled(), OneHot, CLOCK, optimizer, ema_decay=0.9,
            schedule=lambda n, _: 1.0 * n, skip_limit=2,
        )
    )  # fmt: skip

    def after(state, *firsts):
        for first in firsts:
            tokens_BL = BATCH.tokens_BL.at[0, 0].set(first)
            state, values = step(state, {}, tokens_BL, BATCH.mask_BL, KEY)
        return state, values

    def what_learns(state):
        return state.params, state.opt_state, state.ema

    start = first_state(tiny.params(model), optimizer)
    good, values = after(start, 5)
    assert (int(values["skipped"]), int(values["in_a_row"])) == (0, 0)
    for first in (0, 1):
        bad, values = after(good, first)
        assert_close(what_learns(bad), what_learns(good), tolerance=0.0)
        assert (int(bad.step), int(bad.skipped), int(bad.in_a_row)) == (2, 1, 1)
        assert not np.isfinite(float(values["loss"] if first == 0 else values["grad_norm"]))
    assert np.isfinite(float(values["loss"]))
    # A good batch in between: counted anew, and learnt as if the bad one had not been.
    mended, values = after(good, 0, 5, 0)
    assert (int(mended.skipped), int(mended.in_a_row)) == (2, 1)
    assert_close(what_learns(mended), what_learns(after(good, 5)[0]), tolerance=0.0)
    assert float(after(mended, 5)[1]["learning_rate"]) == 2.0  # two updates were done
    stopped, values = after(good, 0, 1, 5, 0)
    assert (int(stopped.skipped), int(values["in_a_row"])) == (2, 2)
    assert_close(what_learns(stopped), what_learns(good), tolerance=0.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_donated_state_is_updated_in_place(name):
    """No copy of an old array beside the new one: see the top of optim.py."""
    from flm_jax.config import OptimConfig

    model, optimizer = tiny.model(vocab_size=10_000), optim.optimizer(OptimConfig(name=name))
    assert selective(optimizer) is optimizer
    step = step_lib.make_train_step(
        {"student": model.net}, Spoiled(), OneHot, CLOCK, optimizer, ema_decay=0.9
    )
    state = jax.eval_shape(lambda: first_state(model.init(KEY), optimizer))
    arguments = state, {}, BATCH.tokens_BL, BATCH.mask_BL, KEY
    memory = jax.jit(step, donate_argnums=0).lower(*arguments).compile().memory_analysis()
    gradients, whole = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state)
    )
    assert memory.alias_size_in_bytes >= whole > 3.9 * gradients
    assert memory.temp_size_in_bytes < 1.2 * gradients


def test_the_first_update_of_a_warm_up_changes_nothing_but_the_moments():
    from flm_jax.config import OptimConfig

    model, settings = tiny.model(), OptimConfig(warmup_steps=10)
    optimizer = optim.optimizer(settings)
    step = step_lib.make_train_step(
        {"student": model.net}, FlowMatching(), OneHot, CLOCK, optimizer, ema_decay=0.9
    )
    state = first_state(tiny.params(model), optimizer)
    new, _ = jax.jit(step)(state, {}, BATCH.tokens_BL, BATCH.mask_BL, KEY)
    assert_close(new.params, state.params, tolerance=0.0)
    assert_close(new.ema, state.params, tolerance=0.0)
    moments = optax.tree.get(new.opt_state, "mu")
    assert any(leaf.any() for leaf in jax.tree.leaves(moments))


def test_held_out_sums_are_additive_and_fixed():
    model = tiny.model()
    params = tiny.params(model)
    step = jax.jit(heldout.make_eval_step(model.net, Projected, CLOCK))

    def call(*arguments):
        sums, defect = step(*arguments)
        assert defect == 0.0  # no diagnostic was asked for
        return sums

    taus = jnp.asarray([0.1, 0.5, 0.9])
    rows = (BATCH.tokens_BL, UNEVEN, BATCH.index_B)
    total = call(params, *rows, taus, KEY)
    halves = [call(params, *(x[i : i + 4] for x in rows), taus, KEY) for i in (0, 4)]
    np.testing.assert_allclose(sum(halves), total, rtol=1e-5)
    np.testing.assert_array_equal(call(params, *rows, taus, KEY), total)
    assert np.abs(call(params, *rows, taus, jax.random.key(9)) - total).max() > 1e-3
    fresh = jax.jit(model.init)(KEY)
    uniform = call(fresh, *rows, taus, KEY)
    np.testing.assert_allclose(uniform, float(UNEVEN.sum()) * np.log(V), rtol=1e-5)
