"""The training step as a pure function; it receives callables, not names."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flm_jax.flow.at import MakeNet, MakeSpace, evaluated_at
from flm_jax.flow.clock import Clock
from flm_jax.losses.base import Batch, Loss
from flm_jax.training import optim
from flm_jax.training.selective import choose, selective


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes. Keys are not stored: they derive from seed and step."""

    step: jax.Array  # int32 (), batches used
    params: Any
    opt_state: Any
    ema: Any
    loss: dict[str, Any]  # the state of the loss, networks by role; see `losses.base.Loss`
    skipped: jax.Array  # int32 (), batches that changed nothing because they were not finite
    in_a_row: jax.Array  # int32 (), of these the newest ones without a good one between
    horizon: jax.Array  # int32 (), the step at which a learning rate that decays has done so
    emas: dict[str, Any] = flax.struct.field(default_factory=dict)  # more EMAs, by name


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    loss: Loss,
    horizon: int = optim.NO_END,
    more_emas: Iterable[str] = (),
) -> TrainState:
    """The state before the first update; the EMA starts at the parameters, others do, too."""
    ema, kept = (jax.tree.map(jnp.array, x) for x in (params, loss.first_state(params)))
    emas = {name: jax.tree.map(jnp.array, params) for name in more_emas}
    step, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # buffers of their own
    end = jnp.asarray(horizon, jnp.int32)
    first = optimizer.init(params)
    return TrainState(step, params, first, ema, kept, skipped, in_a_row, end, emas)


def split_batch(
    tokens_BL: jax.Array, mask_BL: jax.Array, parts: int, prompts: bool = False
) -> Batch:
    """``parts`` micro-batches stacked along a new first axis.

    Rows are dealt in turn, so that each device keeps its own rows. With ``prompts`` the tokens of
    mask 0 are given.
    """
    size = tokens_BL.shape[0]

    def deal(x):
        return jnp.moveaxis(x.reshape(size // parts, parts, *x.shape[1:]), 1, 0)

    mask_NBL, index_NB = deal(mask_BL), deal(jnp.arange(size, dtype=jnp.int32))
    prompt_NBL = mask_NBL == 0.0 if prompts else None
    return Batch(deal(tokens_BL), mask_NBL, index_NB, size, prompt_NBL)


def make_gradients(
    make_nets: Mapping[str, MakeNet],
    loss: Loss,
    make_space: MakeSpace,
    clock: Clock,
    accumulation_steps: int = 1,
    prompts: bool = False,
) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """gradients(params, others, tokens_BL, mask_BL, key) -> (gradient, metrics) of a whole batch.

    ``others`` are the parameters of the other networks by role; they get no gradient. With
    ``prompts`` what the mask leaves out is given: seen as it is, never learnt. Metrics are
    those of the loss, "loss" and "grad_norm".
    """

    def objective(params, others, batch, key):
        at = evaluated_at(make_nets, make_space, clock, params, others)
        loss_BL, count_BL, metrics = loss.evaluate(at, batch, loss.draw(key, batch, at.space))
        count = jnp.sum(count_BL)
        # One part is divided here, in the loss; several are, when all of them are counted.
        whole = jnp.maximum(count, 1.0) if accumulation_steps == 1 else 1.0
        means = {
            # Chosen first: what does not count stays out even if it is not finite.
            name: jnp.sum(jnp.where(count_BL > 0, value, 0.0) * count_BL) / whole
            for name, value in {"loss": loss_BL, **metrics}.items()
        }
        return means["loss"], (means, count)

    def gradients(params, others, tokens_BL, mask_BL, key):
        batches = split_batch(tokens_BL, mask_BL, accumulation_steps, prompts)
        gradient = jax.grad(objective, has_aux=True)
        first = jax.tree.map(lambda x: x[0], batches)
        if accumulation_steps == 1:
            grads, (means, _) = gradient(params, others, first, key)
            return grads, means

        def add(total, batch):
            return jax.tree.map(jnp.add, total, gradient(params, others, batch, key)), None

        shapes = jax.eval_shape(gradient, params, others, first, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        grads, (sums, count) = jax.lax.scan(add, zeros, batches)[0]
        return jax.tree.map(lambda x: x / jnp.maximum(count, 1.0), (grads, sums))

    def with_norm(*arguments):
        grads, metrics = gradients(*arguments)
        return grads, metrics | {"grad_norm": optax.tree.norm(grads)}

    return with_norm


def make_train_step(
    make_nets: Mapping[str, MakeNet],
    loss: Loss,
    make_space: MakeSpace,
    clock: Clock,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float,
    accumulation_steps: int = 1,
    schedule: optim.Schedule | None = None,
    skip_limit: int = 1,
    prompts: bool = False,
    more_emas: Mapping[str, float] = MappingProxyType({}),
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """train_step(state, frozen, tokens_BL, mask_BL, key) -> (state, metrics); jit it.

    ``make_nets`` has a row for the student, for every role in ``frozen`` (a dict of parameters
    that are arguments, not constants), for every role that the loss keeps in its state, and for
    "ema" where the loss needs it: that network gets the EMA. Metrics are scalars:
    float32 means over what counts in the whole batch, and "skipped" and "in_a_row" of the new
    state. For ``prompts`` see `make_gradients`. ``more_emas`` are decays of more EMAs by name, for
    nothing but to be saved.

    A batch whose loss or gradient norm is not finite leaves parameters, optimizer and EMA as they
    were. After ``skip_limit`` such batches in a row the state stays as it is for good, so that
    a loop which looks at the metrics one step late finds what was there before the first of them.
    """

    gradients = make_gradients(make_nets, loss, make_space, clock, accumulation_steps, prompts)
    optimizer = selective(optimizer)

    def train_step(state, frozen, tokens_BL, mask_BL, key):
        key = jax.random.fold_in(key, state.step)
        others = {**frozen, **state.loss}
        if loss.needs.ema:
            others["ema"] = state.ema
        grads, metrics = gradients(state.params, others, tokens_BL, mask_BL, key)
        done = state.step - state.skipped  # updates, as the optimizer counts them
        if schedule is not None:
            metrics["learning_rate"] = schedule(done, state.horizon)
        good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        stopped = state.in_a_row >= skip_limit
        accept, bad = good & ~stopped, (~good & ~stopped).astype(jnp.int32)
        # Every array is chosen before it is read: updates in place, see optim.py.
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, accept=accept, horizon=state.horizon
        )
        params = choose(accept, optax.apply_updates(state.params, updates), state.params)
        seen = jax.lax.optimization_barrier(params)
        ema = optim.ema_update(state.ema, seen, done + 1, ema_decay)
        ema = choose(accept, ema, state.ema)
        emas = {
            name: choose(accept, optim.ema_update(old, seen, done + 1, more_emas[name]), old)
            for name, old in state.emas.items()
        }
        kept = loss.next_state(state.loss, done + 1, seen, ema)
        kept = choose(accept, kept, state.loss)
        skipped = state.skipped + bad
        in_a_row = jnp.where(accept, 0, state.in_a_row + bad)
        metrics |= {"skipped": skipped, "in_a_row": in_a_row}
        changed = params, opt_state, ema, kept
        counts = skipped, in_a_row, state.horizon
        return TrainState(state.step + 1, *changed, *counts, emas), metrics

    return train_step
