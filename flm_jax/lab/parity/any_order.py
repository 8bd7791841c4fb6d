"""The kinds plus_loss and plus_train: any-order flow maps, their losses, gradients and updates."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import config
from flm_jax.contracts import Needs
from flm_jax.flow import clock as clock_lib
from flm_jax.flow import maps
from flm_jax.flow import space as space_lib
from flm_jax.flow.at import MASKED_TEACHER, STUDENT, TEACHER, At
from flm_jax.flow.space import Space
from flm_jax.lab.parity import networks, objective, training
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.forward import log_probs
from flm_jax.lab.parity.goldens import Case
from flm_jax.losses import AnyOrder, given_tokens, psd
from flm_jax.losses.base import Batch, Loss, PerToken
from flm_jax.losses.given_tokens import at_given
from flm_jax.losses.kinds import Kinds
from flm_jax.models import dit
from flm_jax.training import optim
from flm_jax.training import step as step_lib

NO_CAP = 0.0  # of the masked teacher's logits
KINDS = {"diagonal": 1, "interior": 3, "boundary": 2, "at_zero": 0}  # the recorded numbers of ours
NO_KIND = -1
DRAWS = {"length": "d", "start": "s", "share": "clean"}
# Recorded for the whole batch; the others are of one group of rows, in the order of ours.
WHOLE_BATCH = {
    "out/loss_per_token", "mid/x_s", "mid/log_D_st", "mid/drawn_s", "mid/drawn_t", "mid/clean",
    "mid/active", *(f"mid/{name}" for name in ("tau_s", "tau_t", "s", "t")),
}  # fmt: skip
GROUPS = "idx_diag", "idx_offdiag", "idx_distill"  # which rows are of which group of kinds
ON_DIAGONAL, AT_ZERO = ("mid/diag", "mid/on_diagonal"), "mid/distill"  # others are off it


def loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    ours, family = built(case.option("options"), case), family_of(case)
    groups = [case[f"mid/{name}"].astype(int) for name in GROUPS]
    rows = np.concatenate(groups)
    kind_B = case["mid/kind"]
    if len(kind_B) == case.option("global_batch"):  # a chunk may lose some
        counts = [int(np.sum(kind_B == number)) for number in KINDS.values()]
        checks.exact("kinds", ours.kinds(len(kind_B)), counts)
    of_none = case["out/loss_per_token"][kind_B == NO_KIND]
    checks.exact("rows without a kind have no loss", np.any(of_none), False)
    open_BL = case["mid/active"].astype(bool)
    parts = ours.kinds(case.option("global_batch")).parts(len(rows))
    group_B = np.repeat(range(len(groups)), [len(group) for group in groups])
    of_a_term = checks.record_of("out/loss_per_token")
    of_terms = {"out/loss": of_a_term, "out/nll_sum": of_a_term * float(case["out/num_active"])}

    def check(name: str, found: jax.Array, space: str) -> None:
        if name == "out/num_tokens":  # what counts
            checks.exact("out/num_active", np.asarray(found, np.int64), case["out/num_active"])
            return
        if checks.bits == 32 and name.endswith("_loss"):
            return  # the same numbers as in out/loss_per_token, but the record of a few of them
        seen = family.seen(space if name in ("mid/x_s", "mid/X_su") else "onehot")
        mine, own, view = np.asarray(found), rows, seen
        if name in WHOLE_BATCH:
            view = lambda array: seen(array[rows])  # noqa: E731
        elif mine.ndim:
            group = 0 if name.startswith(ON_DIAGONAL) else 2 if name.startswith(AT_ZERO) else 1
            mine, own = mine[(group_B == group)[parts[group]]], groups[group]
            if not len(own):  # a part of one row that is of another group
                return
        if name.endswith("_loss"):  # given tokens have none
            mine = np.where(open_BL[own], mine, 0.0)
            view = lambda array: np.where(open_BL[own], array, 0.0)  # noqa: E731
        elif name == "out/loss_per_token":
            mine = np.where(open_BL[rows], mine, 0.0)
            view = lambda array: np.where(open_BL[rows], array[rows], 0.0)  # noqa: E731
        if np.issubdtype(mine.dtype, np.bool_):
            checks.exact(f"{name} {space}", mine, case[name][rows].astype(bool))
        else:
            checks.recorded(name, mine, space=space, view=view, at_least=of_terms.get(name, 0.0))

    identity = case.option("options")["skip_time_reparam"]
    make_clock = (lambda size: clock_lib.identity()) if identity else clock_lib.build
    recorded = functools.partial(recorded_batch, case, ours, rows)
    objective.compare(
        case, checks, family, ours, recorded, observer(ours), check, make_clock=make_clock
    )


def built(options: dict[str, Any], case: Case) -> AnyOrder:
    """The objective with recorded options."""
    return AnyOrder(
        official=True,
        stratified=case.option("antithetic"),
        on_diagonal="teacher" if case.config.get("diag_teacher") else "data",
        given=options["sample_clean"],
        off_diagonal_times=options["time_sampling"],
        diagonal_fraction=options["diagonal_fraction"],
        boundary_fraction=options["add_boundary"] / options["boundary_prob"],
        at_zero_fraction=options["p_distill"] if case.config.get("mdlm_teacher") else 0.0,
    )


def family_of(case: Case) -> networks.Family:
    """Student and diagonal teacher; the masked teacher, which sees no state, beside them."""
    prefixes = {STUDENT: "param/"}
    if case.option("diag_teacher"):
        prefixes[TEACHER] = "diag_teacher_param/"
    family = networks.Family.read(case, prefixes)
    if not case.option("mdlm_teacher"):
        return family
    tensors = networks.state(case, "teacher_param/")
    cap = float(case.option("teacher_softcap"))
    masked = masked_model(networks.model(case, networks.sizes_of(tensors), NO_CAP), cap)
    return dataclasses.replace(
        family,
        tensors=family.tensors | {MASKED_TEACHER: tensors},
        models=(*family.models, (MASKED_TEACHER, masked)),
    )


def masked_model(model: dit.Model, attention_cap: float) -> dit.Model:
    """A masked diffusion model has a cap of its own on attention scores."""
    return dataclasses.replace(model, module=model.module.clone(attention_cap=attention_cap))


def order(kind_B: np.ndarray) -> np.ndarray:
    """The recorded rows in our order, those without a kind left out."""
    return np.concatenate([np.flatnonzero(kind_B == number) for number in KINDS.values()])


def places(kinds: Kinds, kind_B: np.ndarray) -> np.ndarray:
    """Places in the global batch that give rows (in our order) the kinds that they have."""
    starts = np.cumsum([0, *kinds[:-1]])
    counts = [int(np.sum(kind_B == number)) for number in KINDS.values()]
    return np.concatenate(
        [start + np.arange(n) for start, n in zip(starts, counts, strict=True)]
    ).astype(np.int32)


def placed(
    array_N: np.ndarray, permutation_N: np.ndarray | None, index_B: np.ndarray, row_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """(numbers, permutation) that give the places ``index_B`` what the rows had in the record."""
    if permutation_N is None:
        moved_N = array_N.copy()
        moved_N[index_B] = array_N[row_B]
        return moved_N, None
    moved_N = permutation_N.copy()
    moved_N[index_B] = permutation_N[row_B]
    return array_N, moved_N


def recorded_batch(
    case: Case, ours: AnyOrder, rows: np.ndarray
) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of the loss in our order of rows; the noise is dense."""
    size, batch = case.option("global_batch"), len(case["mid/kind"])
    (count, process), (parts, part) = case.option("processes"), case.option("accumulate")
    del count
    first = (process * parts + part) * batch  # of this chunk in the global batch
    index_B = places(ours.kinds(size), case["mid/kind"])
    mask_BL = networks.wide(case["in/attention_mask"][rows].astype(np.float64))
    draws = {
        "noise": networks.wide(case["draw/noise"][rows]),
        "between": jnp.zeros(size),
    }
    draws |= recorded_draws(
        lambda name: case[name] if name in case else None, index_B, first + rows, rows
    )
    tokens_BL = networks.wide(case["in/x0"][rows])
    prompt_BL = mask_BL == 0
    return Batch(tokens_BL, mask_BL, jnp.asarray(index_B), size, prompt_BL), draws


def recorded_draws(get, index_B: np.ndarray, row_B: np.ndarray, local_B: np.ndarray) -> dict:
    """Times and given tokens; ``get`` finds a recorded array or None."""
    draws = {}
    for mine, theirs in DRAWS.items():
        numbers_N, permutation_N = get(f"draw/eps_{theirs}"), get(f"draw/perm_{theirs}")
        if numbers_N is None:
            continue
        numbers_N, permutation_N = placed(numbers_N, permutation_N, index_B, row_B)
        draws[mine] = networks.wide(numbers_N)
        if permutation_N is not None:
            draws[f"{mine}_permutation"] = networks.wide(permutation_N)
    chance_BL = get("draw/u_clean")
    return draws if chance_BL is None else draws | {"chance": networks.wide(chance_BL[local_B])}


def observer(ours: AnyOrder) -> objective.Observer:
    """Listens to the loss's own parts."""
    own = ("path", "drawn_times", "given_BL", "diagonal", "teacher_at_s", "off_diagonal",
           "at_zero", "masked_teacher")  # fmt: skip
    others = (psd, "semigroup"), (given_tokens, "by_chance"), (space_lib.Space, "advance")
    return objective.Observer((*((type(ours), name) for name in own), *others), observed)


def observed(listener, ours, batch, clock) -> dict[str, jax.Array]:
    """The values on the way that the recorded set has too."""
    path, given_BL = listener.first("path"), listener.first("given_BL")
    _, drawn_s, drawn_t = listener.first("drawn_times")
    posterior = jax.lax.stop_gradient(listener.first("__call__").posterior)
    found = {f"mid/{name}": at_given(x, given_BL, 1.0) for name, x in path._asdict().items()}
    del found["mid/tau_u"], found["mid/u"]
    found |= {
        "mid/drawn_s": at_given(drawn_s[batch.index_B], given_BL, 1.0),
        "mid/drawn_t": at_given(drawn_t[batch.index_B], given_BL, 1.0),
        "mid/active": ~given_BL,
        "mid/x_s": listener.first("corrupt"),
        "mid/log_D_st": log_probs(posterior),
    }
    if listener.calls["by_chance"]:
        found["mid/clean"] = listener.first("by_chance") & ~batch.prompt_BL
    asked = [call.returned.posterior for call in listener.calls["__call__"]]
    if listener.calls["diagonal"]:
        found["mid/diag_loss"] = listener.first("diagonal")
    if listener.calls["teacher_at_s"]:
        found["mid/on_diagonal_target"] = listener.first("teacher_at_s").dense()
        asked.pop(1)
    if listener.calls["off_diagonal"]:
        (_, here, _), found["mid/offdiag_loss"] = listener.calls["off_diagonal"][0]
        path, weight = here.path, maps.semigroup_weight(here.path.s, here.path.u, here.path.t)
        found |= {
            "mid/tau_u": at_given(path.tau_u, here.given_BL, 1.0),
            "mid/u": at_given(path.u, here.given_BL, 1.0),
            "mid/lambda_sut": at_given(weight, here.given_BL, 0.0),
            "mid/D_su_offdiag": asked[1].dense(),
            "mid/X_su": listener.first("advance"),
            "mid/D_ut_offdiag": asked[2].dense(),
            "mid/offdiag_target": listener.first("semigroup").dense(),
        }
    if listener.calls["at_zero"]:
        found["mid/distill_loss"] = listener.first("at_zero")
        found["mid/distill_target"] = listener.first("masked_teacher").dense()
    return found


@dataclasses.dataclass(frozen=True)
class Replayed(Loss):
    """A loss on the raw numbers of one recorded update, with dense noise; mask 0 is a prompt."""

    loss: AnyOrder
    draws: dict[str, jax.Array]

    @property
    def needs(self) -> Needs:
        return self.loss.needs

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        return self.draws | {"noise": space.from_dense(self.draws["noise"])}

    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        batch = dataclasses.replace(batch, prompt_BL=batch.mask_BL == 0)
        found = self.loss.evaluate(at, batch, draws)
        return found._replace(metrics={f"{training.MICRO}0": found.loss_BL})


@functools.partial(jax.jit, static_argnames=("model", "loss", "settings", "space"))
def update(
    state: step_lib.TrainState, tokens_BL: jax.Array, mask_BL: jax.Array, draws: dict,
    *, model: dit.Model, loss: AnyOrder, settings: config.OptimConfig, space: str,
) -> tuple[step_lib.TrainState, dict[str, jax.Array]]:  # fmt: skip
    """One optimizer step."""
    clock, make_space = clock_lib.identity(), space_lib.SPACES[space]
    one = training.step({STUDENT: model.net}, Replayed(loss, draws), make_space, clock, settings)
    return one(state, tokens_BL, mask_BL)


def train(case: Case, checks: Checks) -> None:
    """Several updates: losses, gradient norms, learning rates; parameters, EMA, moments."""
    family, ours = networks.Family.read(case), built(case.option("options"), case)
    ((_, model),), settings = family.models, training.optimizer_settings(case)
    for bits in (64, 32):
        with checks.precision(bits):
            params = family.params()["student"]
            state = step_lib.init_state(params, optim.optimizer(settings), ours)
            history = []
            for step, kind_B in enumerate(case["mid/kind"]):
                rows = order(kind_B)

                def get(name: str, step: int = step) -> np.ndarray | None:
                    return case[name][step] if name in case else None

                draws = recorded_draws(get, np.arange(len(rows)), rows, rows)
                draws |= {
                    "noise": networks.wide(case["draw/noise"][step][rows]),
                    "between": jnp.zeros(len(rows)),
                }
                tokens_BL = networks.wide(case["in/x0"][step][rows])
                mask_BL = networks.wide(case["in/attention_mask"][step][rows].astype(np.float64))
                state, metrics = update(
                    state, tokens_BL, mask_BL, draws,
                    model=model, loss=ours, settings=settings, space="onehot",
                )  # fmt: skip
                history.append({name: float(value) for name, value in metrics.items()})
            # AdamW multiplies the rounding of gradients near zero, in another order of rows than
            # the recorded one; our float64 parameters are as near to the recorded as its own.
            training.compare(case, checks, state, history, family.sizes, "onehot", trees_at=64)
