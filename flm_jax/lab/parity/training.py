"""The kind train: whole updates through the training step, and the EMA alone."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax import config
from flm_jax.contracts import Needs
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import STUDENT, At, MakeNet, MakeSpace
from flm_jax.flow.space import Space
from flm_jax.host import numerics
from flm_jax.interop import layout
from flm_jax.lab.parity import networks, objective
from flm_jax.lab.parity.checks import TIMES_RECORD, ULPS, Checks, case_record, largest
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.losses import FlowMatching
from flm_jax.losses.base import Batch, Loss, PerToken
from flm_jax.models import dit
from flm_jax.training import optim
from flm_jax.training import step as step_lib

# Where the manifest has no record: losses and gradient norms of float32 sums, and moments, which
# are mean gradients (and squares of gradients) at parameters that have drifted a little.
LOSS32, NORM32 = 1e-5, 1e-5
MOMENT32 = {"mu": 5e-5, "nu": 1e-4}
RATE32, EMA32 = 2e-7, 5e-7
TRAINED64 = 1e-7  # optax computes learning rates in float32, in float64 runs too
Update = Callable[..., tuple[step_lib.TrainState, dict[str, jax.Array]]]
CONSTANT = 10**9  # an update so late that the EMA's warm-up is over
MICRO = "micro_loss/"


@dataclasses.dataclass(frozen=True)
class Recorded(Loss):
    """A loss whose draws are those of one recorded update; every micro-batch has its own.

    ``draws``: uniform and permutation (k, n), dense noise (k, b, L, V). Recorded micro-batch j
    has its chunk of the global batch; the training step deals rows in turn, so row i of
    micro-batch j has index i * k + j there. The official code averages the means of the
    micro-batches, the training step all tokens alike: ``weights`` (k,) turns one into the other.
    """

    loss: FlowMatching
    draws: dict[str, jax.Array]
    weights: jax.Array

    @property
    def needs(self) -> Needs:
        return self.loss.needs

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        parts, rows = self.draws["noise"].shape[:2]
        micro = batch.index_B[0] % parts
        own = {name: array[micro] for name, array in self.draws.items()}
        noise = jax.lax.stop_gradient(space.from_dense(own["noise"]))
        # time of sample i * k + j in our order  =  time of sample j * b + i in the recorded one
        place = micro * rows + jnp.arange(rows, dtype=jnp.int32)
        if "permutation" in own:
            order = jnp.zeros((parts * rows,), jnp.int32)
            order = order.at[batch.index_B].set(own["permutation"][place])
            return {"uniform": own["uniform"], "permutation": order, "noise": noise}
        uniform = jnp.zeros_like(own["uniform"]).at[batch.index_B].set(own["uniform"][place])
        return {"uniform": uniform, "noise": noise}

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        loss_BL, count_BL, metrics = self.loss.evaluate(at, batch, draws)
        parts = self.draws["noise"].shape[0]
        micro_B = batch.index_B % parts
        loss_BL = loss_BL * self.weights[micro_B][:, None]
        for micro in range(parts):
            mine = (micro_B == micro)[:, None]
            metrics[f"{MICRO}{micro}"] = parts * jnp.where(mine, loss_BL, 0.0)
        return PerToken(loss_BL, count_BL, metrics)


def step(
    nets: Mapping[str, MakeNet],
    loss: Loss,
    make_space: MakeSpace,
    clock: clock_lib.Clock,
    settings: config.OptimConfig,
) -> Callable[
    [step_lib.TrainState, jax.Array, jax.Array], tuple[step_lib.TrainState, dict[str, jax.Array]]
]:
    """The optimizer step of a training run, for a loss that draws nothing."""
    train_step = step_lib.make_train_step(
        nets,
        loss,
        make_space,
        clock,
        optim.optimizer(settings),
        ema_decay=settings.ema_decay,
        accumulation_steps=settings.accumulation_steps,
        schedule=optim.schedule(settings),
    )
    return lambda state, tokens, mask: train_step(state, {}, tokens, mask, numerics.key(0))


@functools.partial(jax.jit, static_argnames=("model", "loss", "settings", "space"))
def update(
    state: step_lib.TrainState, tokens_BL: jax.Array, mask_BL: jax.Array, draws: dict,
    clock: clock_lib.Clock, *, model: dit.Model, loss: FlowMatching, settings: config.OptimConfig,
    space: str,
) -> tuple[step_lib.TrainState, dict[str, jax.Array]]:  # fmt: skip
    """One optimizer step."""
    recorded = Recorded(loss, draws, official_weights(mask_BL, settings.accumulation_steps))
    one = step({STUDENT: model.net}, recorded, space_lib.SPACES[space], clock, settings)
    return one(state, tokens_BL, mask_BL)


def official_weights(mask_BL: jax.Array, parts: int) -> jax.Array:
    """Mean of the micro-batches' means over the mean of all tokens, per micro-batch (parts,)."""
    tokens = jnp.sum(step_lib.split_batch(mask_BL, mask_BL, parts).mask_BL, axis=(1, 2))
    return jnp.sum(tokens) / (parts * tokens)


def train(case: Case, checks: Checks) -> None:
    """Several updates: losses, gradient norms, learning rates; parameters, EMA, moments."""
    family = networks.Family.read(case)
    ((_, model),), sizes = family.models, family.sizes
    loss = FlowMatching(stratified=case.option("antithetic"))
    settings = optimizer_settings(case)
    for bits in (64, 32):
        # With more tokens than columns the projected gradient is another, equally right one.
        spaces = ["onehot"] if bits == 32 or family.narrow else list(space_lib.SPACES)
        for space in spaces:
            with checks.precision(bits), objective.jitter(bits):
                params = family.params()["student"]
                state = step_lib.init_state(params, optim.optimizer(settings), loss)
                call = functools.partial(
                    update, model=model, loss=loss, settings=settings, space=space
                )
                state, history = run(case, call, state, sizes, settings.accumulation_steps)
                compare(case, checks, state, history, sizes, space)
        with checks.precision(bits):
            times(case, checks, loss, sizes)


def optimizer_settings(case: Case) -> config.OptimConfig:
    return config.OptimConfig(
        learning_rate=case.option("lr"),
        beta1=case.option("beta1"),
        beta2=case.option("beta2"),
        eps=case.option("eps"),
        weight_decay=case.option("weight_decay"),
        warmup_steps=case.option("num_warmup_steps"),
        schedule="constant",
        clip_norm=case.option("grad_clip_norm"),
        ema_decay=case.config.get("ema_decay", config.OptimConfig().ema_decay),
        accumulation_steps=case.option("accumulate"),
    )


def run(
    case: Case, call: Update, state: step_lib.TrainState, sizes: layout.Sizes, parts: int
) -> tuple[step_lib.TrainState, list[dict[str, float]]]:
    """The state after all recorded updates, and the metrics of each."""
    clock = clock_lib.build(sizes.vocab_size)
    names = {"uniform": "draw/eps", "permutation": "draw/perm", "noise": "draw/noise"}
    if not case.option("antithetic"):
        del names["permutation"]

    def updates(name):  # (update, micro-batch, ...)
        return case[name].reshape(-1, parts, *case[name].shape[1:])

    def dealt(array):  # (micro-batch, row, ...) -> the rows of one batch, as the step deals them
        return networks.wide(array.swapaxes(0, 1).reshape(-1, *array.shape[2:]))

    draws = {key: updates(name) for key, name in names.items()}
    tokens, masks = updates("in/x0"), updates("in/attention_mask")
    history = []
    for i in range(case.option("steps")):
        drawn = {key: networks.wide(array[i]) for key, array in draws.items()}
        state, metrics = call(state, dealt(tokens[i]), dealt(masks[i]), drawn, clock)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def compare(
    case: Case,
    checks: Checks,
    state: step_lib.TrainState,
    history: list[dict[str, float]],
    sizes: layout.Sizes,
    space: str,
    trees_at: int = 32,
) -> None:
    """``trees_at``: the precision in which parameters and EMA meet the recorded float32 ones."""
    parts = sum(name.startswith(MICRO) for name in history[0])
    micro = [row[f"{MICRO}{j}"] for row in history for j in range(parts)]
    checks.recorded("out/micro_loss", micro, floor=LOSS32, floor64=TRAINED64, space=space)
    trees = {"out/final_param": state.params, "out/final_ema": state.ema}
    if checks.bits == trees_at:
        for name, tree in trees.items():
            key = f"{name.removeprefix('out/')}_max_abs"
            compare_tree(case, checks, name, networks.official(tree, sizes), key)
    if checks.bits == 64:
        for name, tree in trees.items():
            _tree64(case, checks, name, networks.official(tree, sizes), space)
        return
    norms = [row["grad_norm"] for row in history]
    checks.recorded("out/grad_norm_before_clip", norms, floor=NORM32)
    rates = [row["learning_rate"] for row in history]
    checks.recorded("out/lr", rates, floor=RATE32)
    _moments(case, checks, state.opt_state, sizes)


def compare_tree(
    case: Case, checks: Checks, name: str, ours: dict[str, np.ndarray], key: str
) -> None:
    """The arrays of all parameters, as float32 training left them; ``key`` of their record."""
    record = case_record(case, "fp32_vs_fp64")
    if key not in record:
        raise GoldenError(f"the manifest has no record {key!r}")
    for parameter, array in ours.items():
        expected = case[f"{name}/{parameter}"]
        tolerance = max(TIMES_RECORD * record[key], ULPS * largest(expected))
        checks.close(f"{name}/{parameter}", array, expected, tolerance)


def _tree64(case: Case, checks: Checks, name: str, ours: dict[str, np.ndarray], space: str) -> None:
    """The arrays that were recorded in float64 too, those of the small parameters."""
    prefix = name.replace("/", "64/", 1)
    for parameter, array in ours.items():
        if f"{prefix}/{parameter}" in case:
            checks.recorded(f"{name}/{parameter}", array, floor64=TRAINED64, space=space)


def _moments(case: Case, checks: Checks, opt_state: optax.OptState, sizes: layout.Sizes) -> None:
    for name, field in (("out/exp_avg/", "mu"), ("out/exp_avg_sq/", "nu")):
        ours = networks.official(optax.tree.get(opt_state, field), sizes)
        for parameter, expected in case.under(name).items():
            tolerance = MOMENT32[field] * largest(expected)
            checks.close(f"{name}{parameter}", ours[parameter], expected, tolerance)


def times(case: Case, checks: Checks, loss: FlowMatching, sizes: layout.Sizes) -> None:
    """The recorded times of every micro-batch: its chunk of a draw for the global batch."""
    uniform, clock = networks.wide(case["draw/eps"]), clock_lib.build(sizes.vocab_size)
    draws = {"uniform": uniform}
    if case.option("antithetic"):
        draws["permutation"] = networks.wide(case["draw/perm"])
    tau = np.asarray(jax.jit(jax.vmap(loss.times))(draws))
    rows, parts = case["in/x0"].shape[1], case.option("accumulate")
    mine = np.stack(
        [tau[i, (i % parts) * rows : (i % parts + 1) * rows] for i in range(tau.shape[0])]
    )
    checks.recorded("mid/tau", mine, floor=RATE32)
    checks.recorded("mid/t", jax.jit(clock_lib.Clock.to_t)(clock, mine), floor=RATE32)


def ema(case: Case, checks: Checks) -> None:
    """The EMA of a vector that follows a recorded path, with warm-up and without."""
    values, update = case["in/values"], jax.jit(optim.ema_update, static_argnames="decay")
    with checks.precision(32):
        for run_name in sorted({name.split("/")[0] for name in case.under("out/")}):
            decay = float(run_name.removeprefix("decay").removesuffix("_constant"))
            found = networks.wide(values[0])
            for n in range(1, len(values)):
                late = CONSTANT if run_name.endswith("_constant") else 0
                found = update(found, networks.wide(values[n]), jnp.asarray(n + late), decay=decay)
                name = f"out/{run_name}/after{n}"
                if name in case:
                    checks.recorded(name, found, floor=EMA32)
