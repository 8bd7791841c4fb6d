"""The kind flm: the pretraining loss and its gradients, in both spaces."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.lab.parity import networks, objective
from flm_jax.lab.parity.checks import Checks
from flm_jax.lab.parity.forward import log_probs
from flm_jax.lab.parity.goldens import Case, GoldenError
from flm_jax.losses import FlowMatching
from flm_jax.losses.base import Batch

OPTIONS = {
    "algo.learnable_loss_weighting": None,  # decided by the tensors
    "algo.t_min": "tau_min",
    "algo.t_max": "tau_max",
}


def observed(listener, loss, batch, clock) -> dict[str, jax.Array]:
    """The values on the way that the recorded set has too."""
    tau = listener.first("times")[batch.index_B]
    output = listener.first("__call__")
    found = {
        "mid/tau": tau,
        "mid/t": clock.to_t(tau),
        "mid/x_t": listener.first("corrupt"),
        "mid/log_probs": log_probs(jax.lax.stop_gradient(output.posterior)),
    }
    return found if output.log_weight is None else found | {"mid/loss_weight": output.log_weight}


OBSERVER = objective.Observer(((FlowMatching, "times"),), observed)


def flow_matching(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    family = networks.Family.read(case)
    loss = FlowMatching(stratified=case.option("antithetic"), **overrides(case))

    def check(name, ours, space):
        view = family.seen(space) if name == "mid/x_t" else family.seen("onehot")
        checks.recorded(name, ours, space=space, view=view)

    recorded = functools.partial(recorded_batch, case)
    objective.compare(case, checks, family, loss, recorded, OBSERVER, check)


def recorded_batch(case: Case) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of the loss, as recorded; the noise is dense."""
    tokens_BL, mask_BL = networks.wide(case["in/x0"]), networks.wide(case["in/attention_mask"])
    size = tokens_BL.shape[0]
    batch = Batch(tokens_BL, mask_BL, jnp.arange(size, dtype=jnp.int32), size)
    draws = {"uniform": networks.wide(case["draw/eps"]), "noise": networks.wide(case["draw/noise"])}
    if case.option("antithetic"):
        draws["permutation"] = networks.wide(case["draw/perm"])
    return batch, draws


def overrides(case: Case) -> dict[str, Any]:
    """The case's changes of official options, as options of our loss."""
    found = {}
    for override in case.config.get("overrides", []):
        name, _, value = override.partition("=")
        if name not in OPTIONS:
            raise GoldenError(f"the option {override!r} is not known here")
        if OPTIONS[name]:
            found[OPTIONS[name]] = float(value)
    return found
