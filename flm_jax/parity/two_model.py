"""The kind two_model: both stages of the first version of the method, in both spaces.

The projected space has no state over the vocabulary, so it drops the share of about 1e-5 that the
official eps leaves of it in the target of stage 1. There it is compared with our own one-hot run
without that residue; the one-hot run with it is compared with the record.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.losses import Residual, SecondStage
from flm_jax.losses.base import Batch, Loss
from flm_jax.parity import networks
from flm_jax.parity.checks import FLOAT64, Checks, largest
from flm_jax.parity.goldens import Case, GoldenError
from flm_jax.parity.losses import SINGULAR32, SPACES, TABLE, gradients, jitter, projected

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


def compare(case: Case, checks: Checks, loss: Any, roles: dict[str, str]) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    tensors = {role: networks.state(case, prefix) for role, prefix in roles.items()}
    sizes = networks.sizes_of(tensors["student"])
    models = tuple(
        (role, networks.model(case, networks.sizes_of(found), networks.logit_cap(case)))
        for role, found in tensors.items()
    )
    joint = np.concatenate([found[TABLE] for found in tensors.values()], axis=1).astype(float)
    for bits in (64, 32):
        with checks.precision(bits), jitter(bits):
            clock = clock_lib.build(sizes.vocab_size)
            params = {role: networks.params(found) for role, found in tensors.items()}
            batch, draws = recorded(case)
            call = functools.partial(run, params, batch, draws, clock, models=models)
            found, gradient = call(loss=loss, space="onehot")
            for name, ours in found.items():
                checks.recorded(name, ours, space="onehot")
            gradients(case, checks, gradient, sizes, "onehot", None)
            clean = loss
            if isinstance(loss, Residual):
                clean = dataclasses.replace(loss, official_residue=False)
                found, gradient = call(loss=clean, space="onehot")
            expected = found, networks.official(gradient, sizes)
            found, gradient = call(loss=clean, space="projected")
            compare_spaces(checks, expected, found, networks.official(gradient, sizes), joint)


def compare_spaces(checks: Checks, expected, found, gradient, joint: np.ndarray) -> None:
    """The projected run against the one-hot run, both ours; the table's gradient through P."""
    floor = FLOAT64 if checks.bits == 64 else OWN32
    for name, ours in found.items():
        truth = np.asarray(expected[0][name])
        truth = truth @ joint if name == "mid/x_t_s" else truth
        checks.close(f"{name} projected = onehot", ours, truth, floor * largest(truth))
    for name, truth in expected[1].items():
        allowed = floor
        if name == TABLE:
            truth = projected(joint, truth, None)
            allowed = SINGULAR32 if checks.bits == 32 else 1e-6
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


@functools.partial(jax.jit, static_argnames=("models", "loss", "space"))
def run(
    params: dict[str, Any], batch: Batch, draws: dict[str, jax.Array], clock: clock_lib.Clock, *,
    models: tuple, loss: Loss, space: str,
) -> tuple[dict[str, jax.Array], Any]:  # fmt: skip
    """What is recorded of one loss, by recorded name, and the student's gradient of the mean."""

    def place(own):
        nets = {role: model.net((params | {"student": own})[role]) for role, model in models}
        return nets, SPACES[space]({role: net.table for role, net in nets.items()})

    draws = draws | {"noise": place(params["student"])[1].from_dense(draws["noise"])}

    def objective(own):
        nets, state_space = place(own)
        loss_BL, _ = loss.evaluate(nets, batch, draws, state_space, clock)
        total, count = jnp.sum(loss_BL * batch.mask_BL), jnp.sum(batch.mask_BL)
        return total / count, {
            "out/loss": total / count,
            "out/loss_per_token": loss_BL,
            "out/nll_sum": total,
            "out/num_tokens": count,
        }

    gradient, found = jax.grad(objective, has_aux=True)(params["student"])
    return found | observed(*place(params["student"]), batch, draws, clock, loss), gradient


def observed(nets, space, batch, draws, clock, loss) -> dict[str, jax.Array]:
    """The values on the way that the recorded set has too."""
    path = loss.path(draws, clock, batch)
    state = space.corrupt(draws["noise"], batch.tokens_BL, path.s)
    found = {"mid/tau_s": path.tau_s, "mid/d_tau": path.tau_t - path.tau_s, "mid/t_s": path.s}
    found |= {"mid/dt": path.t - path.s, "mid/x_t_s": state}
    output = nets["student"](space.view(state, "student"), path.tau_s, path.tau_t)
    if isinstance(loss, SecondStage):
        return found | {"mid/student_pred": output.posterior.dense()}
    halves = loss.halves(nets, space, state, path, (None, None))
    found |= {"mid/t_mid": path.u, "mid/t_e": path.t}
    found |= {"mid/f_theta_s": halves.f_s.dense(), "mid/f_theta_u": halves.f_u.dense()}
    found |= {
        f"mid/{name}": posterior.logits().dense()
        for name, posterior in {
            "g_theta_s_u": halves.g_su,
            "g_theta_u_t": halves.g_ut,
            "f_final_sc": output.posterior,
        }.items()
    }
    found["mid/x_boot"] = loss.target(halves, path, space, state).dense()
    if output.log_weight is not None:
        found["mid/loss_weight"] = output.log_weight
    return found
