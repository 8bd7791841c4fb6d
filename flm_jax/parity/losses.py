"""The kind flm: the pretraining loss and its gradients, in both spaces."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import space as space_lib
from flm_jax.interop import layout
from flm_jax.losses import FlowMatching
from flm_jax.losses.base import Batch, Loss
from flm_jax.models import dit
from flm_jax.parity import networks
from flm_jax.parity.checks import Checks
from flm_jax.parity.forward import log_probs
from flm_jax.parity.goldens import Case, GoldenError

TABLE = "vocab_embed.embedding"
# In float32 the Gram matrix of a table with fewer rows than columns is singular but for eta, so its
# condition number is 1 / eta and solves lose that much. Nobody trains so (V > 2 D is projected).
SINGULAR32 = float(np.finfo(np.float32).eps) / space_lib.JITTER
NO_JITTER = 1e-13  # eta for float64: the projection is then the exact one to about 1e-9
OPTIONS = {
    "algo.learnable_loss_weighting": None,  # decided by the tensors
    "algo.t_min": "tau_min",
    "algo.t_max": "tau_max",
}


@dataclasses.dataclass(frozen=True)
class Held(space_lib.Projected):
    """The projected space with its noise handed over as the finished state eps @ T.

    No gradient then reaches the table through the noise: what is left is the part that comes
    through the clean tokens.
    """

    def from_dense(self, noise_BLV: jax.Array) -> jax.Array:
        return jnp.matmul(noise_BLV, self.joint_table, precision=space_lib.HIGHEST)

    def scatter(self, noise: jax.Array, scale: jax.Array | float = 1.0) -> jax.Array:
        return space_lib.per_token(scale) * noise


SPACES = {**space_lib.SPACES, "held": Held}


@contextlib.contextmanager
def jitter(bits: int) -> Iterator[None]:
    """In float64 the factor of the projected noise is computed without its safety margin."""
    before = space_lib.JITTER
    space_lib.JITTER = NO_JITTER if bits == 64 else before
    try:
        yield
    finally:
        space_lib.JITTER = before


@functools.partial(jax.jit, static_argnames=("model", "loss", "space"))
def run(
    params: Any, batch: Batch, draws: dict[str, jax.Array], clock: clock_lib.Clock, *,
    model: dit.Model, loss: Loss, space: str,
) -> tuple[dict[str, jax.Array], Any]:  # fmt: skip
    """What is recorded of one loss, by recorded name, and the gradient of the mean.

    ``draws`` are those of the loss, with dense noise (B, L, V).
    """

    def place(params):
        return SPACES[space]({"student": params["embed"]["table"]})

    draws = draws | {"noise": place(params).from_dense(draws["noise"])}

    def objective(params):
        nets = {"student": model.net(params)}
        loss_BL, _ = loss.evaluate(nets, batch, draws, place(params), clock)
        total, count = jnp.sum(loss_BL * batch.mask_BL), jnp.sum(batch.mask_BL)
        return total / count, {
            "out/loss": total / count,
            "out/loss_per_token": loss_BL,
            "out/nll_sum": total,
            "out/num_tokens": count,
        }

    gradient, found = jax.grad(objective, has_aux=True)(params)
    return found | observed(model, params, batch, draws, place(params), clock, loss), gradient


def observed(model, params, batch, draws, space, clock, loss) -> dict[str, jax.Array]:
    """The values on the way that the recorded set has too."""
    tau = loss.times(draws)[batch.index_B]
    t = clock.to_t(tau)
    state = space.corrupt(draws["noise"], batch.tokens_BL, t)
    output = model.net(params)(space.view(state, "student"), tau)
    found = {
        "mid/tau": tau,
        "mid/t": t,
        "mid/x_t": state,
        "mid/log_probs": log_probs(output.posterior),
        "mid/loss_weight": output.log_weight,
    }
    return {name: array for name, array in found.items() if array is not None}


def flow_matching(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    tensors = networks.state(case)
    sizes = networks.sizes_of(tensors)
    model = networks.model(case, sizes, networks.logit_cap(case))
    options = {"stratified": case.option("antithetic"), **overrides(case)}
    loss = FlowMatching(**options)
    call = functools.partial(run, model=model, loss=loss)
    clean = None
    for bits in (64, 32):
        with checks.precision(bits), jitter(bits):
            clock = clock_lib.build(sizes.vocab_size)
            params = networks.params(tensors)
            batch, draws = recorded_batch(case)
            if bits == 64 and projects(sizes):
                _, gradient = call(params, batch, draws, clock, space="held")
                clean = networks.official(gradient, sizes)[TABLE]
            for space in space_lib.SPACES:
                found, gradient = call(params, batch, draws, clock, space=space)
                table = tensors[TABLE].astype(np.float64)
                for name, array in found.items():
                    seen = name == "mid/x_t" and space == "projected"
                    view = (lambda x, table=table: x @ table) if seen else (lambda x: x)
                    checks.recorded(name, array, space=space, view=view)
                gradients(case, checks, gradient, sizes, space, clean)


def recorded_batch(case: Case) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of the loss, as recorded; the noise is dense."""
    tokens_BL, mask_BL = networks.wide(case["in/x0"]), networks.wide(case["in/attention_mask"])
    size = tokens_BL.shape[0]
    batch = Batch(tokens_BL, mask_BL, jnp.arange(size, dtype=jnp.int32), size)
    draws = {"uniform": networks.wide(case["draw/eps"]), "noise": networks.wide(case["draw/noise"])}
    if case.option("antithetic"):
        draws["permutation"] = networks.wide(case["draw/perm"])
    return batch, draws


def overrides(case: Case) -> dict[str, float]:
    """The case's changes of official options, as options of our loss."""
    found = {}
    for override in case.config.get("overrides", []):
        name, _, value = override.partition("=")
        if name not in OPTIONS:
            raise GoldenError(f"the option {override!r} is not known here")
        if OPTIONS[name]:
            found[OPTIONS[name]] = float(value)
    return found


def gradients(
    case: Case,
    checks: Checks,
    gradient: Any,
    sizes: layout.Sizes,
    space: str,
    clean_VD: np.ndarray | None,
    joint_VW: np.ndarray | None = None,
) -> None:
    """Every gradient by its official name; the table's noise part is seen through P in Projected.

    ``clean_VD`` is the part of the table's gradient that comes through the clean tokens; only
    needed where P is not the identity. ``joint_VW``: the tables of all networks side by side, if
    there are several.
    """
    silent = case.entry.get("params_without_gradient", [])
    for name, ours in networks.official(gradient, sizes).items():
        if name in silent:
            checks.exact(f"grad/{name} is zero, {space}", np.any(ours), False)
            continue
        expected = case[f"grad/{name}"].astype(np.float64)
        if name == TABLE and space == "projected":
            table = case[f"param/{TABLE}"].astype(np.float64) if joint_VW is None else joint_VW
            expected = projected(table, expected, clean_VD)
            if checks.bits == 32 and table.shape[1] >= table.shape[0]:
                tolerance = SINGULAR32 * np.max(np.abs(expected))
                checks.close(f"grad/{name} {space}", ours, expected, tolerance)
                continue
        checks.gradient(name, ours, expected, space)


def projects(sizes: layout.Sizes) -> bool:
    """Whether P differs from the identity: there are directions that no network sees."""
    return sizes.vocab_size > sizes.hidden_size


def projected(
    table_VD: np.ndarray, gradient_VD: np.ndarray, clean_VD: np.ndarray | None
) -> np.ndarray:
    """clean + P (gradient - clean), P the projection onto the columns of the table (with eta)."""
    gram = table_VD.T @ table_VD
    eta = space_lib.JITTER * np.trace(gram) / len(gram)
    clean_VD = 0.0 if clean_VD is None else clean_VD
    noise = table_VD.T @ (gradient_VD - clean_VD)
    return clean_VD + table_VD @ np.linalg.solve(gram + eta * np.eye(len(gram)), noise)
