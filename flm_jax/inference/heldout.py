"""Held-out loss: the same rows, times and noise at every evaluation, for a curve with a meaning."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.data import Rows, fixed_batch
from flm_jax.experiment import Experiment
from flm_jax.flow.at import STUDENT, At, MakeNet, MakeSpace, evaluated_at
from flm_jax.flow.clock import Clock
from flm_jax.host import numerics, progress, sharding
from flm_jax.losses.base import Batch, Loss
from flm_jax.losses.psd import semigroup_defect

SEED = 0  # of the rows and their noise: the same in every run


class HeldOut:
    """Evaluates parameters on fixed rows; compiled once.

    A denoiser is measured by its cross-entropy at the times ``train.eval_taus``, a flow map by
    that of its diagonal and by its semigroup defect, any other network by its own objective.

    Args:
      make_nets: networks from parameters, by role, as for `training.step.make_train_step`.
      batch_size: rows at one time, rounded up to what the devices share.
      mesh: of the training run; None: one device.
    """

    def __init__(
        self,
        experiment: Experiment,
        rows: Rows,
        batch_size: int,
        make_nets: Mapping[str, MakeNet],
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.experiment = experiment
        self.taus = experiment.config.train.eval_taus
        batch = fixed_batch(rows, experiment.config.train.eval_rows, SEED)
        self.tokens_NL, prompts = batch["tokens"], rows.has_given
        self.counted_NL = ~batch["given"] if prompts else np.ones(self.tokens_NL.shape, bool)
        self.mesh = mesh
        shared = 1 if mesh is None else sharding.batch_devices(mesh)
        shared = math.lcm(shared, jax.process_count())
        self.size = shared * -(-min(batch_size, len(self.tokens_NL)) // shared)
        common = experiment.space, experiment.clock
        if experiment.has_denoiser:
            self.has_defect = experiment.config.model.two_times and not prompts
            defect = semigroup_defect if self.has_defect else None
            step = make_eval_step(experiment.denoiser, *common, defect, prompts)
        else:
            step = make_loss_eval_step(make_nets, experiment.loss, *common, prompts)
        out = None if mesh is None else sharding.replicated(mesh)
        self._step = progress.announced(
            jax.jit(step, out_shardings=out), "compiling the evaluation step"
        )

    def __call__(self, params: Any, frozen: Mapping[str, Any]) -> dict[str, float]:
        """Nats per token by name: "eval/loss", and at every time "eval/loss_tau_TAU"."""
        key, taus = numerics.key(SEED), jnp.asarray(self.taus, jnp.float32)
        total, defect = np.zeros(()), 0.0
        starts = range(0, len(self.tokens_NL), self.size)
        for first in progress.bar(starts, desc="evaluating", unit="batch", delay=2, leave=False):
            rows = self._rows(first)
            if self.experiment.has_denoiser:
                sums, defects = self._step(params, *rows, taus, key)
                defect += float(defects)
            else:
                sums = self._step(params, frozen, *rows, key)
            total = total + np.asarray(sums, np.float64)
        if not self.experiment.has_denoiser:
            return {"eval/loss": float(total[0] / max(total[1], 1.0))}
        losses = total / self.counted_NL.sum()
        values = {"eval/loss": float(losses.mean())}
        for tau, loss in zip(self.taus, losses, strict=True):
            values[f"eval/loss_tau_{tau:g}"] = float(loss)
        if self.has_defect:
            values["eval/semigroup_defect"] = defect / self.tokens_NL.size
        return values

    def _rows(self, first: int) -> list[jax.Array]:
        """Tokens, mask and index of one batch; the last one is filled up with masked rows."""
        part = self.tokens_NL[first : first + self.size]
        padded = np.zeros((self.size, part.shape[1]), np.int32)
        padded[: len(part)] = part
        mask = np.zeros(padded.shape, np.float32)
        mask[: len(part)] = self.counted_NL[first : first + self.size]
        arrays = padded, mask, first + np.arange(self.size, dtype=np.int32)
        if self.mesh is None:
            return [jnp.asarray(x) for x in arrays]
        local = self.size // jax.process_count()
        mine = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
        return [sharding.global_rows(x[mine], self.mesh) for x in arrays]


def make_eval_step(
    make_net: MakeNet,
    make_space: MakeSpace,
    clock: Clock,
    defect: Callable[..., jax.Array] | None = None,
    prompts: bool = False,
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """eval_step(params, tokens_BL, mask_BL, index_B, taus_T, key) -> sums (T,) and (); jit it.

    The cross-entropy at fixed times with noise that depends on ``key`` and the row's index only:
    the same rows, times and noise at every evaluation make a curve that means something. The second
    sum is that of ``defect(at, state, tau_s, tau_u, tau_t)``, a diagnostic of flow maps per token,
    for two half jumps from pure noise to the end; 0 without it. With ``prompts`` the tokens of mask
    0 are given.
    """

    def eval_step(params, tokens_BL, mask_BL, index_B, taus_T, key):
        net = make_net(params)
        space = make_space({STUDENT: net.table})
        batch = Batch(tokens_BL, mask_BL, index_B, tokens_BL.shape[0])
        noise = space.noise(batch.keys(key), batch.length)

        def summed(tau):
            tau_B = jnp.full(index_B.shape, tau)
            t, given_BL = clock.to_t(tau_B), None
            if prompts:
                given_BL = mask_BL == 0.0
                t = jnp.where(given_BL, 1.0, t[:, None])
            state = space.corrupt(noise, tokens_BL, t)
            output = net(space.view(state, STUDENT), tau_B, given_BL=given_BL)
            return -jnp.sum(output.posterior.log_prob(tokens_BL) * mask_BL)

        if defect is None:
            return jax.lax.map(summed, taus_T), jnp.zeros(())
        tau_s, tau_u, tau_t = (jnp.full(index_B.shape, tau) for tau in (0.0, 0.5, 1.0))
        at = At({STUDENT: net}, space, clock)
        defect_BL = defect(at, space.scatter(noise), tau_s, tau_u, tau_t)
        return jax.lax.map(summed, taus_T), jnp.sum(defect_BL * mask_BL)

    return eval_step


def make_loss_eval_step(
    make_nets: Mapping[str, MakeNet],
    loss: Loss,
    make_space: MakeSpace,
    clock: Clock,
    prompts: bool = False,
) -> Callable[..., jax.Array]:
    """eval_step(params, others, tokens_BL, mask_BL, index_B, key) -> sums (2,); jit it.

    The summed loss and the summed counts of networks that are no denoisers: their own objective
    with fixed draws, as far as ``key`` and the row's index fix them.
    """

    def eval_step(params, others, tokens_BL, mask_BL, index_B, key):
        at = evaluated_at(make_nets, make_space, clock, params, others)
        size = tokens_BL.shape[0]
        key = jax.random.fold_in(key, index_B[0])
        prompt_BL = mask_BL == 0.0 if prompts else None
        batch = Batch(tokens_BL, mask_BL, jnp.arange(size, dtype=jnp.int32), size, prompt_BL)
        draws = loss.draw(key, batch, at.space)
        draws.pop("dropout", None)
        loss_BL, count_BL, _ = loss.evaluate(at, batch, draws)
        counted_BL = jnp.where(count_BL > 0, loss_BL, 0.0) * count_BL
        return jnp.stack([jnp.sum(counted_BL), jnp.sum(count_BL)])

    return eval_step
