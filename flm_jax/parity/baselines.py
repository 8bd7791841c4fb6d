"""The kinds baselines/*: autoregressive, masked and uniform diffusion on tokens."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import clock as clock_lib
from flm_jax.flow import discrete
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import OneHot
from flm_jax.losses.base import Batch, Loss
from flm_jax.losses.masked_diffusion import MaskedDiffusion
from flm_jax.models import dit
from flm_jax.parity import networks
from flm_jax.parity.checks import Checks
from flm_jax.parity.goldens import Case, GoldenError
from flm_jax.samplers.discrete import Ancestral, AncestralMasked

NO_CAP = 0.0  # the baselines' logits are not capped
TINY = 1e-10  # of the official draw


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def run(
    params: Any, batch: Batch, draws: dict, clock: Any, *, model: dit.Model, loss: Loss
) -> tuple[dict[str, jax.Array], Any]:
    """What is recorded of every loss, by recorded name, and the gradient of the mean."""

    def objective(params):
        net = model.net(params)
        space = OneHot({"student": net.table})
        loss_BL, _ = loss.evaluate({"student": net}, batch, draws, space, clock)
        total, count = jnp.sum(loss_BL * batch.mask_BL), jnp.sum(batch.mask_BL)
        return total / count, {
            "out/loss": total / count,
            "out/loss_per_token": loss_BL,
            "out/nll_sum": total,
        }

    gradient, found = jax.grad(objective, has_aux=True)(params)
    return found, gradient


def masked_loss(case: Case, checks: Checks) -> None:
    """Loss per token and reduced, what led to it, and every gradient."""
    last_is_mask(case)

    def observe(loss, draws, batch):
        t = loss.times(draws)
        seen = jnp.where(loss.masked(draws, t), case.option("mask_index"), batch.tokens_BL)
        return {"mid/t": t, "mid/alpha_t": discrete.alpha(t), "mid/xt": seen}

    loss = MaskedDiffusion(t_min=case.option("sampling_eps"))
    compare_loss(case, checks, loss, {"mask": "draw/u_mask"}, observe)


def compare_loss(
    case: Case,
    checks: Checks,
    loss: Loss,
    names: dict[str, str],
    observe: Callable[..., dict[str, jax.Array]],
) -> None:
    """A loss on recorded draws, ``names`` ours to theirs; ``observe`` has the values on the way."""
    tensors = networks.state(case)
    sizes = networks.sizes_of(tensors)
    model = networks.model(case, sizes, NO_CAP)
    for bits in (64, 32):
        with checks.precision(bits):
            batch, draws = recorded(case, names)
            clock = clock_lib.identity()
            params = networks.params(tensors)
            found, gradient = run(params, batch, draws, clock, model=model, loss=loss)
            found |= observe(loss, draws, batch)
            for name, array in found.items():
                if np.issubdtype(array.dtype, np.integer):
                    checks.exact(name, array, case[name])
                else:
                    checks.recorded(name, array)
            for name, ours in networks.official(gradient, sizes).items():
                checks.gradient(name, ours, case[f"grad/{name}"].astype(np.float64))


def recorded(case: Case, names: dict[str, str]) -> tuple[Batch, dict[str, jax.Array]]:
    """The batch and the raw numbers of a loss. The official times are not permuted."""
    tokens_BL, mask_BL = networks.wide(case["in/x0"]), networks.wide(case["in/attention_mask"])
    index_B = jnp.arange(tokens_BL.shape[0], dtype=jnp.int32)
    draws = {"uniform": networks.wide(case["draw/eps"]), "permutation": index_B}
    draws |= {ours: networks.wide(case[theirs]) for ours, theirs in names.items()}
    return Batch(tokens_BL, mask_BL, index_B, tokens_BL.shape[0]), draws


def masked_step(case: Case, checks: Checks) -> None:
    """One step back, and the last one."""
    last_is_mask(case)

    def dense(posterior: Posterior, tokens_BL, alpha_t, alpha_s):
        """(p, q not normalised), both with the mask as last entry; shown tokens are certain."""
        mask = posterior.head.vocab_size
        p_BLV = jnp.pad(posterior.dense(), ((0, 0), (0, 0), (0, 1)))
        shown_BLV = jax.nn.one_hot(tokens_BL, mask + 1, dtype=p_BLV.dtype)
        p_BLV = jnp.where((tokens_BL == mask)[..., None], p_BLV, shown_BLV)
        show = discrete.unmask_probability(alpha_t, alpha_s)
        q_BLV = (show * p_BLV).at[..., mask].set(1.0 - show) * (1.0 - alpha_t)
        return p_BLV, q_BLV

    def keep(tokens_BL, drawn_BL):
        return np.where(tokens_BL == case.option("mask_index"), drawn_BL, tokens_BL)

    compare_step(case, checks, AncestralMasked(), dense, keep)


def compare_step(
    case: Case,
    checks: Checks,
    sampler: Ancestral,
    dense: Callable[..., tuple[jax.Array | None, jax.Array]],
    keep: Callable[..., np.ndarray] = lambda tokens_BL, drawn_BL: drawn_BL,
) -> None:
    """The distribution of a step, and the recorded draw from it by the official rule."""
    tensors = networks.state(case)
    sizes = networks.sizes_of(tensors)
    model = networks.model(case, sizes, NO_CAP)
    t, dt = case.option("t"), case.option("dt")
    s = 0.0 if case.stem.endswith("last_step") else t - dt

    @jax.jit
    def predict(params, tokens_BL, alpha_t, alpha_s):
        posterior = sampler.posterior(model.net(params), tokens_BL, alpha_t)
        return dense(posterior, tokens_BL, alpha_t, alpha_s)

    for bits in (64, 32):
        with checks.precision(bits):
            tokens_BL, u_BLV = networks.wide(case["in/xt"]), networks.wide(case["draw/u"])
            alphas = (discrete.alpha(networks.wide(np.float64(time))) for time in (t, s))
            p_BLV, q_BLV = predict(networks.params(tensors), tokens_BL, *alphas)
            checks.recorded("out/q_xs", q_BLV)
            if p_BLV is not None:
                checks.recorded("out/p_x0", p_BLV)
            drawn = np.argmax(np.asarray(q_BLV) / (TINY - np.log(np.asarray(u_BLV) + TINY)), -1)
            checks.exact("out/x_next", keep(np.asarray(tokens_BL), drawn), case["out/x_next"])


def last_is_mask(case: Case) -> None:
    """GoldenError unless the mask is the last token: ours always is."""
    vocab_size, mask = case.option("vocab_size"), case.option("mask_index")
    if mask != vocab_size - 1:
        raise GoldenError(f"the mask is token {mask}, not the last one of {vocab_size}")
