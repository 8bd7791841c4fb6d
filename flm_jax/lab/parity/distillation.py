"""The kind fmlm: every flow-map objective and its gradients, in both spaces."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import maps
from flm_jax.flow.at import TEACHER
from flm_jax.lab.parity import networks, objective
from flm_jax.lab.parity.checks import FLOAT64, Checks
from flm_jax.lab.parity.forward import log_probs
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.losses import ESD, LSD, PSD, psd
from flm_jax.losses.base import Batch
from flm_jax.losses.flow_map import FlowMapLoss

PREFIXES = {"student": "param/", "teacher": "teacher_param/", "ema": "ema_param/"}
METHODS = {"PSD": PSD, "LSD": LSD, "ESD": ESD}
# official option -> our option and value
TRANSLATED = {
    "algo.diagonal_fraction": lambda x: {"diagonal_fraction": float(x)},
    "algo.boundary_prob": lambda x: {"boundary_fraction": 1.0 / float(x)},
    "algo.t_min": lambda x: {"tau_min": float(x)},
    "algo.t_max": lambda x: {"tau_max": float(x)},
    "algo.offdiagonal_sampling": lambda x: {"off_diagonal_times": x},
    "algo.set_midpoint": lambda x: {"intermediate": x},
    "algo.use_mse_loss_psd": lambda x: {"distance": "squared"} if x == "True" else {},
    "algo.rescale_offdiag_loss_psd": lambda x: {"rescale": x == "True"},
    "algo.use_ema_for_psd_target": lambda x: {"target": "ema"} if x == "True" else {},
    "algo.use_teacher_for_D_t_lsd": lambda x: {"end": "teacher"} if x == "True" else {},
    "algo.use_teacher_for_D_s_esd": lambda x: {"start": "teacher" if x == "True" else "self"},
    "algo.learnable_loss_weighting": lambda x: {},  # decided by the tensors
}
# In our order of rows once the recorded rows are permuted; the others have an order of their own.
WHOLE_BATCH = {
    "out/loss_per_token", "mid/loss_weight", "mid/log_D_st", "mid/x_s",
    *(f"mid/{name}" for name in ("tau_s", "tau_u", "tau_t", "s", "u", "t")),
}  # fmt: skip
# Where a coefficient of 1e8 multiplies a derivative of the clock, known to 1e-9 (see `clocks`).
AMPLIFIED64 = 1e-7


def flow_map(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    loss = built(case)
    roles = ["student", *(["teacher"] * loss.needs.teacher), *(["ema"] * loss.needs.ema)]
    family = networks.Family.read(case, {role: PREFIXES[role] for role in roles})
    rows = order(case)
    checks.exact("counts", loss.kinds(len(rows))[:3], recorded_counts(case))
    precisions = case_bits(case)
    floor64 = AMPLIFIED64 if precisions == (64,) else FLOAT64

    def check(name, ours, space):
        """Recorded arrays of the whole batch are brought into our order; the others are in it."""
        seen = family.seen(space if name == "mid/x_s" else "onehot")
        view = (lambda array: seen(array[rows])) if name in WHOLE_BATCH else seen
        checks.recorded(name, ours, space=space, view=view, floor64=floor64)

    recorded_rows = functools.partial(recorded, case, rows)
    objective.compare(
        case, checks, family, loss, recorded_rows, observer(loss), check, precisions
    )  # fmt: skip


def case_bits(case: Case) -> tuple[int, ...]:
    """float64 first; a case that the record calls dominated by rounding in float32 ends there."""
    return (64,) if "float64 arrays only" in case.entry.get("notes", "") else (64, 32)


def built(case: Case) -> FlowMapLoss:
    """The objective with the case's options."""
    options: dict[str, Any] = {"stratified": case.option("antithetic")}
    method, teacher = "PSD", bool(case.option("teacher"))
    options["on_diagonal"] = "teacher" if teacher else "data"
    alpha = None
    changes = {}
    for override in case.config.get("overrides", []):
        name, _, value = override.lstrip("+").partition("=")
        if name == "algo.distillation_method":
            method = value
        elif name == "algo.entmax_temp_lsd":
            alpha = float(value)
        elif name in TRANSLATED:
            changes |= TRANSLATED[name](value)
        else:
            raise GoldenError(f"the option {override!r} is not known here")
    if method not in METHODS:
        raise GoldenError(f"the method {method!r} is not known here")
    if method == "ESD":
        options |= {"official": True, "start": "teacher" if teacher else "self"}
    if alpha is not None:
        options |= {"official_alpha_1": True} if alpha == 1.0 else {"alpha": alpha}
    return METHODS[method](**options | changes)


def recorded_counts(case: Case) -> tuple[int, int, int]:
    boundary = len(case["mid/idx_offdiag_bndry"])
    return (
        len(case["mid/idx_diag"]),
        len(case["mid/idx_offdiag"]) - boundary,
        boundary,
    )


def order(case: Case) -> np.ndarray:
    """The recorded rows in our order: diagonal, interior, boundary."""
    return np.concatenate([case["mid/idx_diag"], case["mid/idx_offdiag"]]).astype(int)


def recorded(case: Case, rows: np.ndarray) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of the loss in our order of rows; the noise is dense."""
    wide = networks.wide
    tokens_BL, mask_BL = (wide(case[f"in/{n}"])[rows] for n in ("x0", "attention_mask"))
    draws = {"noise": wide(case["draw/noise"])[rows], "between": jnp.zeros(len(rows))}
    if "draw/eps_u" in case:
        draws["between"] = wide(case["draw/eps_u"])[rows]
    for ours, theirs in {"diagonal": "diag", "length": "d", "start": "s", "pair": "pair"}.items():
        if f"draw/eps_{theirs}" not in case:
            continue
        ranks = rows if ours != "pair" else np.stack([2 * rows, 2 * rows + 1], 1).reshape(-1)
        draws[ours] = wide(case[f"draw/eps_{theirs}"])
        if f"draw/perm_{theirs}" in case:
            draws[f"{ours}_permutation"] = wide(case[f"draw/perm_{theirs}"])[ranks]
        else:
            draws[ours] = draws[ours][ranks]
    index_B = jnp.arange(len(rows), dtype=jnp.int32)
    return Batch(tokens_BL, mask_BL, index_B, len(rows)), draws


def observer(loss: FlowMapLoss) -> objective.Observer:
    """Listens to the loss's own parts."""
    target = (psd, "semigroup") if isinstance(loss, PSD) else (type(loss), "target")
    names = ("path", "diagonal", "teacher_at_s", "off_diagonal")
    return objective.Observer((*((type(loss), name) for name in names), target), observed)


def observed(listener, loss, batch, clock) -> dict[str, jax.Array]:
    """The values on the way that the recorded set has too."""
    output, path = listener.first("__call__"), listener.first("path")
    found = {f"mid/{name}": x for name, x in path._asdict().items()}
    found["mid/x_s"] = listener.first("corrupt")
    found["mid/log_D_st"] = log_probs(jax.lax.stop_gradient(output.posterior))
    if output.log_weight is not None:
        found["mid/loss_weight"] = output.log_weight
    if listener.calls["diagonal"]:
        found["mid/diag_loss"] = listener.first("diagonal")
        if loss.on_diagonal == TEACHER:
            found["mid/on_diagonal_target"] = listener.first("teacher_at_s").dense()
    (_, here, _), found["mid/offdiag_loss"] = listener.calls["off_diagonal"][0]
    if isinstance(loss, PSD):
        s, u, t = here.path.s, here.path.u, here.path.t
        found["mid/lambda_sut"] = maps.semigroup_weight(s, u, t)
        found["mid/offdiag_target"] = listener.first("semigroup").dense()
    elif isinstance(loss, LSD) and not loss.official_alpha_1:
        target = listener.first("target")
        found["mid/d_tau_by_d_t"] = clock.dtau_dt(here.path.t)
        found["mid/offdiag_target_before_entmax"] = target.dense()
        found["mid/offdiag_target"] = target.entmax(loss.alpha).dense()
    elif isinstance(loss, ESD):
        found["mid/d_tau_s_by_d_s"] = clock.dtau_dt(here.path.s)
        found["mid/offdiag_target"] = listener.first("target").dense()
    return found
