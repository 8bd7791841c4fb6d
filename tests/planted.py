"""Relative errors of a thousandth, planted one at a time, that the parity run must find.

    python tests/planted.py DIRECTORY

prints the table of docs/numerics.md: for every plant the recorded cases that pass through the
changed function, and those of them that failed.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax

from flm_jax.evals import gpt2
from flm_jax.flow import clock, discrete, head, maps, noise
from flm_jax.lab.parity import goldens, runner
from flm_jax.lab.parity.checks import Row
from flm_jax.losses import DCD, SDTT, AnyOrder, FlowMatching, flow_map, psd
from flm_jax.losses.divergence import Divergence
from flm_jax.losses.rounds import Rounds
from flm_jax.models import attention, conditioning, dit, transfer
from flm_jax.samplers import psi
from flm_jax.samplers.ancestral import AncestralUniform
from flm_jax.training import optim

ERROR = 1.001


@dataclasses.dataclass(frozen=True)
class Plant:
    """A function of ours (by owner and name) that is replaced by ``change(function)``.

    ``cases``: recorded cases through it, the cheapest one first.
    """

    what: str
    owner: Any
    name: str
    change: Callable[[Callable], Callable]
    cases: tuple[str, ...]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """The error is in the code inside ``with``, and in no compiled program after it."""
        right = vars(self.owner)[self.name]
        setattr(self.owner, self.name, functools.wraps(right)(self.change(right)))
        jax.clear_caches()
        try:
            yield
        finally:
            setattr(self.owner, self.name, right)
            jax.clear_caches()


def result(pick: int | None = None) -> Callable[[Callable], Callable]:
    """What a function returns, times `ERROR`; of a tuple only the part ``pick``."""

    def change(right):
        def wrong(*given, **options):
            found = right(*given, **options)
            if pick is None:
                return jax.tree.map(lambda x: x * ERROR, found)
            changed = [*found[:pick], found[pick] * ERROR, *found[pick + 1 :]]
            return type(found)(*changed) if hasattr(found, "_fields") else tuple(changed)

        return wrong

    return change


def setting(name: str, of_complement: bool = False) -> Callable[[Callable], Callable]:
    """A function of a settings object sees one number of it (or 1 minus it) times `ERROR`."""

    def change(right):
        def wrong(settings, *given):
            value = getattr(settings, name)
            value = 1.0 - (1.0 - value) * ERROR if of_complement else value * ERROR
            return right(dataclasses.replace(settings, **{name: value}), *given)

        return wrong

    return change


def sine(right):
    """Rotary positions with the sine times `ERROR`."""
    return lambda x, cos, sin: right(x, cos, sin * ERROR)


def rate(right):
    """1 - decay of the moving average times `ERROR`."""

    def wrong(ema, params, updates, decay):
        found = right(ema, params, updates, decay)
        return jax.tree.map(lambda old, new: old + (new - old) * ERROR, ema, found)

    return wrong


LOSSES = ("flm/flm_large_logits", "flm/flm_main", "fmlm/psd_teacher")
PSD = ("fmlm/psd_no_teacher", "fmlm/psd_mse")
EULER = ("sampler/flm_sampler", "sampler/two_model_sampler_apr")
JUMPS = ("sampler/fmlm_sampler_gamma0.5", "sampler/two_stage_sampler_apr_gamma0.5")
TRAIN = ("train/adamw_warmup_5steps", "train/adamw_accumulate_wd")
NETWORKS = ("dit/double_hd8_odd7_b1", "dit/double_hd16", "dit/dense_hd64_h64")

PLANTS = {
    "clock": Plant(
        "clock: t of tau and tau of t",
        clock.Spline,
        "__call__",
        result(),
        ("time/time_K27", "time/time_K50258", "flm/flm_large_logits", *EULER[:1]),
    ),
    "clock_rate": Plant(
        "clock: dtau/dt",
        clock.Spline,
        "derivative",
        result(),
        ("time/time_K27", "fmlm/lsd_entmax2_self", "fmlm/esd_self"),
    ),
    "rotary": Plant(
        "rotary embedding: frequencies", attention, "rotary_frequencies", result(), NETWORKS
    ),
    "rotary_sine": Plant("rotary embedding: sine", dit, "rotate", sine, NETWORKS),
    "loss": Plant("loss: its value", FlowMatching, "evaluate", result(0), LOSSES[:2]),
    "loss_cap": Plant("loss: logits after the cap", head.Head, "capped", result(), LOSSES),
    "loss_gradient": Plant(
        "loss: gradient of the output layer only",
        head.Head,
        "outer_product",
        result(),
        LOSSES,
    ),
    "noise_gradient": Plant(
        "loss: noise that the projected space draws",
        noise,
        "project_noise",
        result(),
        LOSSES,
    ),
    "semigroup": Plant(
        "loss: weight of the semigroup target", maps, "semigroup_weight", result(), PSD
    ),
    "sampler": Plant("sampler: share of the prediction", maps, "euler", result(1), EULER),
    "sampler_noise": Plant("sampler: fresh noise", maps, "gamma_noise", result(3), JUMPS),
    "learning_rate": Plant(
        "optimizer: learning rate", optim, "schedule", setting("learning_rate"), TRAIN
    ),
    "beta1": Plant("optimizer: 1 - beta1", optim, "optimizer", setting("beta1", True), TRAIN),
    "beta2": Plant("optimizer: 1 - beta2", optim, "optimizer", setting("beta2", True), TRAIN),
    "clip": Plant("optimizer: clipping norm", optim, "optimizer", setting("clip_norm"), TRAIN),
    "average": Plant(
        "optimizer: rate of the average", optim, "ema_update", rate, ("train/ema_vector", *TRAIN)
    ),
    "scorer": Plant(
        "generative perplexity: attention of the scorer",
        gpt2,
        "_attention",
        result(),
        ("text/generative_perplexity",),
    ),
}


# In the recorded runs of any-order flow maps, which are another set.
ANY_ORDER = ("plus_loss/psd_script_options",)
ANY_ORDER_PLANTS = {
    "given_state": Plant(
        "any order: share of the state that given tokens keep",
        flow_map,
        "at_given",
        lambda right: lambda x, given, value: right(x, given, value * ERROR),
        ANY_ORDER,
    ),
    "given_time": Plant(
        "any order: what given tokens hear of their time",
        conditioning,
        "take",
        lambda right: (
            lambda values, given: right(
                values if given is None else values.at[-1].multiply(ERROR), given
            )
        ),
        ANY_ORDER,
    ),
    "any_order_loss": Plant(
        "any order: loss off the diagonal", psd.PSD, "off_diagonal", result(), ANY_ORDER
    ),
    "masked_teacher": Plant(
        "any order: loss at zero", AnyOrder, "at_zero", result(), ("plus_loss/distill",)
    ),
    "without_mask": Plant(
        "start from a masked model", transfer, "without_mask", result(), ("plus_init/from_mdlm",)
    ),
}

# In the recorded runs of diffusions on tokens in few steps, a third set.
FEW_STEPS_PLANTS = {
    "divergence": Plant(
        "few steps: divergence from the teacher",
        Divergence,
        "value_and_slope",
        result(0),
        ("dcd_loss/kl_bwd", "sdtt_loss/kl_fwd_4_teacher_steps"),
    ),
    "divergence_gradient": Plant(
        "few steps: its gradient",
        Divergence,
        "value_and_slope",
        result(1),
        ("sdtt_loss/kl_bwd_round5", "dcd_loss/kl_fwd_clipped_masked"),
    ),
    "teacher_step": Plant(
        "few steps: step of the teacher",
        Rounds,
        "dt",
        result(),
        ("sdtt_loss/kl_bwd_round5", "dcd_loss/kl_bwd", "sdtt_train/raw_teacher"),
    ),
    "teacher_start": Plant(
        "few steps: times of the teacher's steps",
        SDTT,
        "start",
        result(),
        ("sdtt_loss/kl_bwd_round5", "sdtt_loss/kl_bwd_analytic_round6"),
    ),
    "next_teacher": Plant(
        "few steps: the teacher of a new round",
        Rounds,
        "next_state",
        lambda right: (
            lambda loss, state, step, params, ema: right(
                loss, state, step, *(jax.tree.map(lambda x: x * ERROR, x) for x in (params, ema))
            )
        ),
        ("dcd_loss/update_from_average", "dcd_train/finetune"),
    ),
    "latent": Plant(
        "few steps: log noise of the latent", DCD, "gamma", result(), ("dcd_loss/kl_bwd",)
    ),
    "unmask": Plant(
        "few steps: share of masked tokens that a step shows",
        discrete,
        "unmask_and_mask",
        result(0),
        ("mdlm_sample/analytic", "sdtt_sample/ancestral", "psi_sample/mdlm_max_rescale_nucleus"),
    ),
    "stay": Plant(
        "few steps: weight of staying what it is",
        discrete,
        "uniform_step_back",
        result(0),
        ("duo_sample/greedy_tail", "psi_sample/duo_max_capped"),
    ),
    "jump": Plant(
        "few steps: weight of a fresh token of a psi-step",
        discrete,
        "uniform_psi_step",
        result(2),
        ("psi_sample/duo_loop_remdm",),
    ),
    "kappa": Plant(
        "few steps: share of the ancestral step",
        psi.Rule,
        "kappas",
        result(),
        ("psi_sample/duo_loop_remdm",),
    ),
    "p_now": Plant(
        "few steps: probability of the present token in its nucleus",
        AncestralUniform,
        "p_now",
        result(),
        ("duo_sample/nucleus",),
    ),
}


class Found(BaseException):
    """Ends a case at its first failure; no Exception, because those become rows."""


def found(plant: Plant, case: goldens.Case) -> Row | None:
    """The first comparison of a case that fails with the plant, if there is one."""

    def emit(row: Row) -> None:
        if not row.ok:
            raise Found(row)

    with plant():
        try:
            runner.run_case(case, emit)
        except Found as failure:
            return failure.args[0]
    return None


def main(directory: str) -> int:
    """Prints the table; 1 if a plant was found by no case at all."""
    cases = {case.name: case for case in goldens.read(directory)}
    print(
        "| planted | failed | passed | first comparison beyond its tolerance |\n|---|---|---|---|"
    )
    missed = 0
    for plant in (PLANTS | ANY_ORDER_PLANTS | FEW_STEPS_PLANTS).values():
        if not cases.keys() & set(plant.cases):  # of another set
            continue
        rows = {name: found(plant, cases[name]) for name in plant.cases}
        failed = [name for name, row in rows.items() if row is not None]
        passed = [name for name, row in rows.items() if row is None]
        missed += not failed
        said = f"`{rows[failed[0]].quantity}`: {numbers(rows[failed[0]])}" if failed else "none"
        print(f"| {plant.what} | {', '.join(failed)} | {', '.join(passed)} | {said} |", flush=True)
    return 1 if missed else 0


def numbers(row: Row) -> str:
    """How wrong it is."""
    return row.reason or f"{row.max_abs:.1e}, tolerance {row.tolerance:.1e}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
