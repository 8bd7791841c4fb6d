"""The kinds sdtt_loss, dcd_loss, sdtt_train, dcd_train: diffusions distilled into themselves."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import EMA, STUDENT, TEACHER, At
from flm_jax.flow.net import Net, Output, Params
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import Space
from flm_jax.lab.parity import networks, objective, training
from flm_jax.lab.parity.baselines import FLOAT32, NO_CAP, TINY, last_is_mask
from flm_jax.lab.parity.checks import FLOAT64, TIMES_RECORD, ULPS, Checks, case_record, largest
from flm_jax.lab.parity.forward import log_probs
from flm_jax.lab.parity.goldens import Case
from flm_jax.losses.base import Batch, Loss, PerToken, State
from flm_jax.losses.dcd import DCD
from flm_jax.losses.divergence import FORWARD, REVERSE
from flm_jax.losses.rounds import UPDATES, Compared, Rounds
from flm_jax.losses.sdtt import OFFICIAL, SDTT
from flm_jax.models import dit
from flm_jax.training import optim
from flm_jax.training import step as step_lib

DIRECTIONS = {"kl-bwd": REVERSE, "kl-fwd": FORWARD}
POWERS = {"mse": 2, "tvd": 1}
MANY = 10_000  # more rounds than any case has
NEVER = -1e6  # what the official code adds to the logit of the mask
RACE = "u_teacher"
# The recorded float64 networks have rotary frequencies that were never rounded to float32.
UNROUNDED64 = 1e-8
# Float32 training: AdamW divides gradients near zero by themselves and so multiplies rounding.
# In float64 our parameters are as near to the recorded ones as those to their own float64 run.
LOSS32, NORM32 = 2e-5, 5e-5


def race(q_BLV: jax.Array, u_BLV: jax.Array) -> jax.Array:
    """The official draw from weights that need not be normalised, int32 (B, L)."""
    return jnp.argmax(q_BLV / (TINY - jnp.log(u_BLV + TINY)), axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class RacedSDTT(SDTT):
    """The teacher's tokens are those of the recorded race between all of them."""

    def show(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        masked_BL: jax.Array,
        share_B: jax.Array,
        k: int,
        draws: dict[str, jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        drawn_BL = race(weights(posterior, share_B, draws[RACE].shape[-1]), draws[RACE][k])
        left_BL = masked_BL & (drawn_BL == draws[RACE].shape[-1] - 1)
        return jnp.where(masked_BL & ~left_BL, drawn_BL, tokens_BL), left_BL


def weights(posterior: Posterior, share_B: jax.Array, vocab_size: int) -> jax.Array:
    """Where a masked token goes, (B, L, V), the mask being the last; its own may be negative."""
    share_B11 = share_B[:, None, None]
    q_BLV = share_B11 * posterior.dense()[..., : vocab_size - 1]
    stay_BL1 = jnp.broadcast_to(1.0 - share_B11, (*q_BLV.shape[:2], 1))
    return jnp.concatenate([q_BLV, stay_BL1], axis=-1)


@dataclasses.dataclass(frozen=True)
class LogDifference(RacedSDTT):
    """Powers of differences of log-probabilities, the mask's among them: for parity only.

    The official code adds -1e6 to the mask's logit and compares that with the others.
    """

    power: int = 2

    def ask(
        self, net: Net, tokens_BL: jax.Array, masked_BL: jax.Array, key: jax.Array | None = None
    ) -> Output:
        output = super().ask(net, tokens_BL, masked_BL, key)
        bias_V = net.head.bias_V.at[-1].add(NEVER)
        whole = dataclasses.replace(
            output.posterior, head=net.head.replace(net.head.kernel_DV, bias_V)
        )
        return output._replace(posterior=whole)

    def diverge(self, found: Compared, hint_BL: jax.Array) -> jax.Array:
        ours, theirs = (jax.nn.log_softmax(dense_logits(p)) for p in found[:2])
        difference = jnp.sum(jnp.abs(ours - theirs) ** self.power, axis=-1)
        return difference / (ours.shape[-1] if self.power == 2 else 1)


def dense_logits(posterior: Posterior) -> jax.Array:
    return posterior.each_chunk(lambda logits: logits)


def sdtt(case: Case, rounds: int, every: int) -> SDTT:
    """The objective with recorded options."""
    last_is_mask(case)
    mode = case.option("distill_mode")
    make = functools.partial(RacedSDTT, divergence=DIRECTIONS.get(mode, REVERSE))
    if mode in POWERS:
        make = functools.partial(LogDifference, power=POWERS[mode])
    return make(
        t_min=case.option("sampling_eps"),
        every=every,
        rounds=rounds,
        first_steps=case.option("orig_num_sampling_steps"),
        teacher_steps=case.option("num_distill_steps"),
        spacing=OFFICIAL,
    )


def sdtt_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, the teacher's steps, and every gradient."""
    loss, size = sdtt(case, case.option("round") + 1, every=1), case.option("vocab_size")
    masked_BL = case["mid/is_mask"].astype(bool)
    names = "times", "dt", "start", "show", "target", "compare"

    def observed(listener, loss, batch, clock):
        student, target, where_BL = listener.first("compare")
        steps = [(*call.given[1:5], *call.returned) for call in listener.calls["show"]]
        starts = jnp.stack([call.returned for call in listener.calls["start"]])
        hidden = [step[2] for step in steps] + [steps[-1][5]]
        tokens = [step[1] for step in steps] + [steps[-1][4]]
        t = listener.first("times")
        q_KBLV = jnp.stack([weights(step[0], step[3], size) for step in steps])
        return {
            "mid/dt": listener.first("dt"),
            "mid/t": t,
            "mid/move_chance": 1.0 - discrete.alpha(t),
            "mid/sigma": -jnp.log(discrete.alpha(t)),
            "mid/xt": jnp.where(where_BL, size - 1, batch.tokens_BL),
            "mid/is_mask": where_BL.astype(jnp.int32),
            "mid/ts": starts,
            "mid/teacher_x": jnp.stack(
                [jnp.where(h, size - 1, x) for h, x in zip(hidden, tokens, strict=True)]
            ),
            "mid/updated": jnp.stack(
                [(a & ~b).astype(jnp.int32) for a, b in zip(hidden, hidden[1:], strict=False)]
            ),
            "mid/q_xs": q_KBLV * (1.0 - discrete.alpha(starts))[..., None, None],
            "mid/teacher_log_p": jnp.stack([log_probs(step[0]) for step in steps]),
            "mid/target": log_probs(target),
            "mid/student_log_p": log_probs(student),
            "hidden": jnp.stack(hidden[:-1]),
        }  # fmt: skip

    def recorded():
        batch = batch_of(case["in/x0"], np.ones(case["in/x0"].shape))
        size = case["in/x0"].shape[0]
        draws = {
            "uniform": networks.wide(np.repeat(size * case["draw/eps"].astype(float), size)),
            "permutation": batch.index_B,
            "mask": networks.wide(case["draw/u_mask"]),
            RACE: networks.wide(case["draw/u_teacher"]),
        }
        return batch, draws

    family = networks.Family.read(case, {STUDENT: "param/", TEACHER: "teacher_param/"}, NO_CAP)
    params = functools.partial(with_teacher, family, updates=case.option("round"))
    of_log_differences = isinstance(loss, LogDifference)

    def check(found):
        checks.close("mid/dt", found.pop("mid/dt"), case.option("dt"), ULPS * case.option("dt"))
        hidden_KBL = found.pop("hidden")
        checks.exact("out/num_masked", found.pop("out/num_tokens"), case["out/num_masked"])
        del found["out/nll_sum"]  # not recorded
        found["out/loss_per_token"] = jnp.where(masked_BL, found["out/loss_per_token"], 0.0)
        # Of the mask itself nobody asks; elsewhere only masked tokens count.
        seen = {
            "mid/teacher_log_p": hidden_KBL[..., None],
            "mid/target": masked_BL[..., None],
            "mid/student_log_p": masked_BL[..., None],
            "mid/q_xs": hidden_KBL[..., None],
        }
        for name, array in found.items():
            if name not in case:  # the weights of the analytic steps
                continue
            if name not in seen:
                compare(checks, name, array)
                continue
            last = size if name == "mid/q_xs" else size - 1
            counted = np.asarray(seen[name])

            def view(x, counted=counted, last=last):
                return np.where(counted, np.asarray(x, float)[..., :last], 0.0)

            wide = case[name.replace("/", "64/", 1)]
            close_in_part(checks, name, *(view(x) for x in (array, case[name], wide)))

    objective.compare_on_tokens(
        case, checks, family, params, loss, recorded, names, observed, check,
        precisions=(64,) if of_log_differences else (64, 32),
    )  # fmt: skip


def close_in_part(
    checks: Checks, name: str, ours: np.ndarray, theirs: np.ndarray, wide: np.ndarray
) -> None:
    """Compares the entries that count of an array, all others being zeros.

    ``wide``: theirs of the float64 run. The manifest's record is of all entries, among which the
    -1e6 of the mask decides.
    """
    if checks.bits == 64:
        checks.close(name, ours, wide, UNROUNDED64 * largest(wide))
    else:
        record = largest(theirs - wide)
        checks.close(name, ours, theirs, max(TIMES_RECORD * record, ULPS * largest(wide)))


def compare(checks: Checks, name: str, array: Any) -> None:
    if np.issubdtype(array.dtype, np.integer):
        checks.exact(name, array, checks.case[name])
        return
    of_network = name.endswith("log_p") or name.startswith("out/")
    checks.recorded(name, array, floor64=UNROUNDED64 if of_network else FLOAT64)


def batch_of(tokens_BL: np.ndarray, mask_BL: np.ndarray, first: int = 0, size: int = 0) -> Batch:
    """A part of a global batch of that size, all of it if none is given."""
    rows = len(tokens_BL)
    index_B = first + jnp.arange(rows, dtype=jnp.int32)
    return Batch(
        networks.wide(tokens_BL), networks.wide(np.asarray(mask_BL, float)), index_B, size or rows
    )


def with_teacher(family: networks.Family, updates: int) -> dict[str, Params]:
    """The networks after so many updates."""
    params = family.params()
    return params | {TEACHER: {**params[TEACHER], UPDATES: jnp.asarray(updates, jnp.int32)}}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["alpha_P"], meta_fields=["low", "high"]
)
class Table(clock_lib.Clock):
    """The official schedule: alpha of the latent's log noise at the nearest of many points."""

    def __init__(self, alpha_P: jax.Array, low: float, high: float):
        super().__init__(None, None)
        self.alpha_P, self.low, self.high = alpha_P, low, high

    @classmethod
    def read(cls, case: Case) -> "Table":
        size, ends = case.option("vocab_size"), ("integral_gamma_min", "integral_gamma_max")
        alpha_P = (size * case["in/integral_pt"] - 1.0) / (size - 1.0)
        return cls(networks.wide(alpha_P), *(case.option(end) for end in ends))

    def at(self, gamma_B: jax.Array) -> jax.Array:
        last = len(self.alpha_P) - 1
        place_B = jnp.rint(last * (gamma_B - self.low) / (self.high - self.low))
        return self.alpha_P[jnp.clip(place_B, 0, last).astype(jnp.int32)]


@dataclasses.dataclass(frozen=True)
class LookedUp(DCD):
    """DCD on a `Table`."""

    def alpha(self, t_B: jax.Array, clock: clock_lib.Clock) -> jax.Array:
        assert isinstance(clock, Table)
        return clock.at(self.gamma(t_B))


def dcd(case: Case) -> DCD:
    """The objective with recorded options."""
    growing = case.config.get("linear_growth_dt", False)
    steps = case.option("T")
    return LookedUp(
        t_min=case.option("sampling_eps"),
        every=case.option("update_teacher_every"),
        rounds=steps.bit_length(),  # until dt is 1
        first_steps=steps,
        divergence=DIRECTIONS[case.option("loss_type")],
        next_teacher=EMA if case.option("teacher_ema") else STUDENT,
        gamma_min=case.option("gamma_min"),
        gamma_max=case.option("gamma_max"),
        linear_over=case.option("max_steps") if growing else 0,
        dt_min=case.option("linear_growth_min") if growing else 0.0,
        dt_max=case.option("linear_growth_max") if growing else 1.0,
    )


def three_numbers(noise_BLV: np.ndarray, tokens_BL: np.ndarray) -> dict[str, np.ndarray]:
    """What DCD draws, of noise for all the vocabulary."""
    size, here = noise_BLV.shape[-1], tokens_BL[..., None]
    others_BLV = noise_BLV.astype(float).copy()
    np.put_along_axis(others_BLV, here, -np.inf, axis=-1)
    rival_BL = others_BLV.argmax(-1)
    return {
        "signal": np.take_along_axis(noise_BLV, here, axis=-1)[..., 0],
        "largest": others_BLV.max(-1),
        "rival": ((rival_BL - tokens_BL - 1) % size).astype(np.int32),
    }


def dcd_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient; the schedule by itself."""
    loss, size = dcd(case), case.option("vocab_size")
    low, high = case.option("integral_gamma_min"), case.option("integral_gamma_max")
    gammas = np.linspace(low, high, case.option("integral_points"))
    table = clock_lib.decoding_accuracy(1.0 / (1.0 + np.exp(0.5 * gammas)), size, "exact")
    accuracy = (table * (size - 1) + 1.0) / size
    checks.close("in/integral_pt", accuracy, case["in/integral_pt"], FLOAT32)
    nearest = 0.51 * largest(np.diff(table))  # half a step of the table

    prefixes = {STUDENT: "param/", TEACHER: "teacher_param/"}
    updated = case_record(case, "teacher_updated_in_this_call")
    if updated:
        prefixes[EMA] = "ema_param/"
    family = networks.Family.read(case, prefixes, NO_CAP)
    updates = case.option("global_step")

    def params():
        found = with_teacher(family, updates)
        if updated:
            state, step = {TEACHER: found[TEACHER]}, jnp.asarray(updates, jnp.int32)
            found |= loss.next_state(state, step, found[STUDENT], found.pop(EMA))
        return found

    chunk, whole = case.option("chunk"), case.option("global_batch")
    rows = len(case["in/x0"])
    first = (chunk["rank"] * chunk["accumulate"] + chunk["micro_step"]) * rows

    def recorded():
        batch = batch_of(case["in/x0"], case["in/attention_mask"], first, whole)
        draws = {
            "uniform": networks.wide(case["draw/eps"]),
            "permutation": jnp.arange(whole, dtype=jnp.int32),
        }
        numbers = three_numbers(case["draw/noise"], case["in/x0"])
        return batch, draws | {name: networks.wide(x) for name, x in numbers.items()}

    def observed(listener, loss, batch, clock):
        student, target, _ = listener.first("compare")
        (t, xt), (s, xs) = ((call.given[3], call.returned) for call in listener.calls["seen"])
        alpha_t, alpha_s = (call.returned for call in listener.calls["alpha"])
        return {
            "mid/dt": listener.first("dt"),
            "mid/t": t,
            "mid/gamma_t": loss.gamma(t),
            "mid/gamma_s": loss.gamma(s),
            "mid/alpha_t": alpha_t,
            "mid/alpha_s": alpha_s,
            "mid/sigma_t": -jnp.log(alpha_t),
            "mid/sigma_s": -jnp.log(alpha_s),
            "mid/xt": xt,
            "mid/xs": xs,
            "mid/student_log_p": log_probs(student),
            "mid/teacher_log_p": log_probs(target),
        }

    def check(found):
        for name, array in found.items():
            compare(checks, name, array)
        for gamma, alpha in (("mid/gamma_t", "mid/alpha_t"), ("mid/gamma_s", "mid/alpha_s")):
            ours = discrete.alpha_of_latent(found[gamma], clock_lib.build(size, "exact"))
            checks.close(f"{alpha} of the clock", ours, found[alpha], nearest)

    family = dataclasses.replace(family, models=family.models[:2])
    objective.compare_on_tokens(
        case, checks, family, params, loss, recorded, ("times", "dt", "seen", "alpha", "compare"),
        observed, check, functools.partial(Table.read, case),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Replayed(Loss):
    """A loss on the recorded numbers of one update; every micro-batch has its own.

    The official code averages the means of the micro-batches: each of them counts 1 here. ``whole``
    is the size of the batch that the times of a micro-batch are drawn for.
    """

    loss: Rounds
    draws: dict[str, jax.Array]
    whole: int

    @property
    def needs(self):
        return self.loss.needs

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        micro = batch.index_B[0] % len(self.draws["uniform"])
        return {name: array[micro] for name, array in self.draws.items()}

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        parts, rows = len(self.draws["uniform"]), batch.tokens_BL.shape[0]
        micro = batch.index_B[0] % parts
        first = micro * rows if self.whole > rows else 0
        own = dataclasses.replace(
            batch, index_B=first + jnp.arange(rows, dtype=jnp.int32), global_size=self.whole
        )
        loss_BL, count_BL, _ = self.loss.evaluate(at, own, draws)
        metrics = {
            f"{training.MICRO}{j}": parts * jnp.where(micro == j, loss_BL, 0.0)
            for j in range(parts)
        }
        return PerToken(loss_BL, count_BL / jnp.sum(count_BL), metrics)

    def first_state(self, params: Params) -> State:
        return self.loss.first_state(params)

    def next_state(self, state: State, step: jax.Array, params: Params, ema: Params) -> State:
        return self.loss.next_state(state, step, params, ema)


@functools.partial(jax.jit, static_argnames=("model", "loss", "settings", "whole"))
def update(
    state: step_lib.TrainState, tokens_BL: jax.Array, mask_BL: jax.Array, draws: dict,
    clock: clock_lib.Clock, *, model: dit.Model, loss: Rounds, settings: config.OptimConfig,
    whole: int,
) -> tuple[step_lib.TrainState, dict[str, jax.Array]]:  # fmt: skip
    """One optimizer step."""
    nets = {STUDENT: model.net, TEACHER: model.net}
    one = training.step(nets, Replayed(loss, draws, whole), space_lib.OneHot, clock, settings)
    return one(state, tokens_BL, mask_BL)


def sdtt_train(case: Case, checks: Checks) -> None:
    """Several updates over three rounds; parameters, average and teacher at the end."""
    rows, steps = case["in/x0"].shape[1], case.option("orig_num_sampling_steps")
    loss = sdtt(case, steps.bit_length(), case.option("grow_dt_every"))
    draws = {
        "uniform": np.repeat(rows * case["draw/eps"].astype(float), rows, axis=1),
        "permutation": np.tile(np.arange(rows, dtype=np.int32), (len(case["draw/eps"]), 1)),
        "mask": case["draw/u_mask"],
        RACE: case["draw/u_teacher"],
    }
    train(case, checks, loss, draws, rows, clock_lib.identity, case.option("ema_decay"), 0)


def dcd_train(case: Case, checks: Checks) -> None:
    """Several updates over three rounds; parameters, average and teacher at the end."""
    whole, loss = case["draw/eps"].shape[1], dcd(case)
    numbers = [three_numbers(*pair) for pair in zip(case["draw/noise"], case["in/x0"], strict=True)]
    draws = {name: np.stack([found[name] for found in numbers]) for name in numbers[0]}
    draws |= {
        "uniform": case["draw/eps"],
        "permutation": np.tile(np.arange(whole, dtype=np.int32), (len(numbers), 1)),
    }
    start = case_record(case, "ema_at_start")
    make_clock = functools.partial(Table.read, case)
    train(case, checks, loss, draws, whole, make_clock, start["decay"], start["num_updates"])


def train(
    case: Case,
    checks: Checks,
    loss: Rounds,
    draws: dict[str, np.ndarray],
    whole: int,
    make_clock: Callable[[], clock_lib.Clock],
    decay: float,
    averaged: int,
) -> None:
    """``decay`` and ``averaged``: of the average, which has seen so many updates at the start."""
    prefixes = {STUDENT: "param/", EMA: "ema_param/" if averaged else "param/"}
    family = networks.Family.read(case, prefixes, NO_CAP)
    (_, model), parts = family.models[0], case.option("accumulate")
    settings = dataclasses.replace(training.optimizer_settings(case), ema_decay=decay)
    average = jax.jit(functools.partial(optim.ema_update, decay=decay))

    def updates(array):  # (update, micro-batch, ...)
        return array.reshape(-1, parts, *array.shape[1:])

    for bits in (64, 32):
        with checks.precision(bits):
            params = family.params()
            ema = params[EMA]
            state = step_lib.init_state(params[STUDENT], optim.optimizer(settings), loss)
            clock, history, lengths = make_clock(), [], []
            for i, tokens in enumerate(updates(case["in/x0"])):
                tokens_BL = networks.wide(tokens.swapaxes(0, 1).reshape(-1, tokens.shape[-1]))
                mask_BL = jnp.ones(tokens_BL.shape)
                lengths += [float(loss.dt(state.loss[TEACHER][UPDATES]))] * parts
                state, metrics = update(
                    state, tokens_BL, mask_BL,
                    {name: networks.wide(updates(array)[i]) for name, array in draws.items()},
                    clock, model=model, loss=loss, settings=settings, whole=whole,
                )  # fmt: skip
                ema = average(ema, state.params, jnp.asarray(averaged + i + 1))
                history.append({name: float(value) for name, value in metrics.items()})
            checks.close("mid/dt", lengths, case["mid/dt"], ULPS)
            found = [row[f"{training.MICRO}{j}"] for row in history for j in range(parts)]
            checks.recorded("out/micro_loss", found, floor64=training.TRAINED64, at_least=LOSS32)
            if bits == 32:
                norms, rates = ([row[n] for row in history] for n in ("grad_norm", "learning_rate"))
                checks.recorded("out/grad_norm_before_clip", norms, floor=NORM32)
                checks.recorded("out/lr", rates, floor=training.RATE32)
                continue
            trees = {"final_param": state.params, "final_ema": ema}
            teacher = {n: x for n, x in state.loss[TEACHER].items() if n != UPDATES}
            trees["final_teacher"] = teacher
            for name, tree in trees.items():
                ours = networks.official(tree, family.sizes)
                training.compare_tree(case, checks, f"out/{name}", ours, name)
