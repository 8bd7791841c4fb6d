"""The kind two_model: both stages of the first version of the method, in both spaces.

The projected space has no state over the vocabulary, so it drops the share of about 1e-5 that the
official eps leaves of it in the target of stage 1. There it is compared with our own one-hot run
without that residue; the one-hot run with it is compared with the record.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.lab.parity import networks, objective
from flm_jax.lab.parity.checks import FLOAT64, Checks, largest
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.lab.parity.networks import TABLE
from flm_jax.losses import Residual, SecondStage
from flm_jax.losses.base import Batch
from flm_jax.losses.two_model import TwoModelLoss

OWN32 = 2e-5  # ours against ours in float32, of the largest entry
RESIDUAL_ROLES = {"student": "param/", "teacher": "teacher_param/"}
SECOND_ROLES = {
    "student": "param/",
    "teacher": "teacher_f_param/",
    "residual": "teacher_g_param/",
}


def residual(case: Case, checks: Checks) -> None:
    """Stage 1."""
    compare(case, checks, Residual(**options(case), official_residue=True), RESIDUAL_ROLES)


def second_stage(case: Case, checks: Checks) -> None:
    """Stage 2."""
    compare(case, checks, SecondStage(**options(case)), SECOND_ROLES)


def options(case: Case) -> dict[str, float]:
    """The case's changes of official options, as options of our loss."""
    given = dict(o.lstrip("+").split("=") for o in case.config.get("overrides", []))
    known = {"algo.add_boundary", "algo.boundary_prob", "algo.learnable_loss_weighting"}
    if unknown := given.keys() - known:
        raise GoldenError(f"the options {sorted(unknown)} are not known here")
    if given.get("algo.add_boundary") != "True":
        return {"boundary_fraction": 0.0}
    return {"boundary_fraction": 1.0 / float(given["algo.boundary_prob"])}


def compare(case: Case, checks: Checks, loss: TwoModelLoss, roles: dict[str, str]) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    family = networks.Family.read(case, roles)
    observer = objective.Observer(
        tuple((type(loss), name) for name in observed_methods(loss)),
        observed,
    )
    for bits in (64, 32):
        with checks.precision(bits), objective.jitter(bits):
            clock = clock_lib.build(family.sizes.vocab_size)
            call = functools.partial(
                objective.run, family.params(), *recorded(case), clock,
                models=networks.chunked(family.models, bits), observer=observer,
            )  # fmt: skip
            found, gradient = call(loss=loss, space="onehot")
            for name, ours in found.items():
                checks.recorded(name, ours, space="onehot")
            objective.gradients(case, checks, gradient, family, "onehot")
            clean = loss
            if isinstance(loss, Residual):
                clean = dataclasses.replace(loss, official_residue=False)
                found, gradient = call(loss=clean, space="onehot")
            expected = found, family.official(gradient)
            found, gradient = call(loss=clean, space="projected")
            compare_spaces(checks, expected, found, family.official(gradient), family)


def compare_spaces(checks: Checks, expected, found, gradient, family: networks.Family) -> None:
    """The projected run against the one-hot run, both ours; the table's gradient through P."""
    floor = FLOAT64 if checks.bits == 64 else OWN32
    for name, ours in found.items():
        view = family.seen("projected" if name == "mid/x_t_s" else "onehot")
        truth = view(np.asarray(expected[0][name]))
        checks.close(f"{name} projected = onehot", ours, truth, floor * largest(truth))
    for name, truth in expected[1].items():
        allowed = floor
        if name == TABLE:
            truth = objective.projected(family.joint_VW, truth, None)
            allowed = objective.SINGULAR32 if checks.bits == 32 else 1e-6
        tolerance = allowed * max(largest(truth), 1e-12)
        checks.close(f"grad/{name} projected = onehot", gradient[name], truth, tolerance)


def recorded(case: Case) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of the loss, as recorded; the noise is dense."""
    wide = networks.wide
    tokens_BL, mask_BL = wide(case["in/x0"]), wide(case["in/attention_mask"])
    size = tokens_BL.shape[0]
    names = {"length": "eps_d", "length_permutation": "perm_d", "start": "u_s", "noise": "noise"}
    draws = {ours: wide(case[f"draw/{theirs}"]) for ours, theirs in names.items()}
    boundary = "draw/u_boundary"
    draws["boundary"] = wide(case[boundary]) if boundary in case else jnp.ones(size)
    return Batch(tokens_BL, mask_BL, jnp.arange(size, dtype=jnp.int32), size), draws


def observed_methods(loss: TwoModelLoss) -> tuple[str, ...]:
    """What to listen to."""
    return ("path", "halves", "target") if isinstance(loss, Residual) else ("path",)


def observed(listener, loss, batch, clock) -> dict[str, jax.Array]:
    """The values on the way that the recorded set has too."""
    output, path = listener.first("__call__"), listener.first("path")
    found = {"mid/tau_s": path.tau_s, "mid/d_tau": path.tau_t - path.tau_s, "mid/t_s": path.s}
    found |= {"mid/dt": path.t - path.s, "mid/x_t_s": listener.first("corrupt")}
    posterior = jax.lax.stop_gradient(output.posterior)
    if isinstance(loss, SecondStage):
        return found | {"mid/student_pred": posterior.dense()}
    halves = listener.first("halves")
    found |= {"mid/t_mid": path.u, "mid/t_e": path.t}
    found |= {"mid/f_theta_s": halves.f_s.dense(), "mid/f_theta_u": halves.f_u.dense()}
    found |= {
        f"mid/{name}": posterior.logits().dense()
        for name, posterior in {
            "g_theta_s_u": halves.g_su,
            "g_theta_u_t": halves.g_ut,
            "f_final_sc": posterior,
        }.items()
    }
    found["mid/x_boot"] = listener.first("target").dense()
    if output.log_weight is not None:
        found["mid/loss_weight"] = output.log_weight
    return found
