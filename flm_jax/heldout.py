"""Held-out loss: the same rows, times and noise at every evaluation, for a curve with a meaning."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import metrics, numerics, sharding
from flm_jax import step as step_lib
from flm_jax.data import Rows, fixed_batch
from flm_jax.experiment import Experiment
from flm_jax.losses.psd import semigroup_defect

SEED = 0  # of the rows and their noise: the same in every run


class HeldOut:
    """Evaluates parameters on fixed rows; compiled once.

    A denoiser is measured by its cross-entropy at the times ``train.eval_taus``, a flow map by
    that of its diagonal and by its semigroup defect, any other network by its own objective.

    Args:
      make_nets: networks from parameters, by role, as for `step.make_train_step`.
      batch_size: rows at one time, rounded up to what the devices share.
      mesh: of the training run; None: one device.
    """

    def __init__(
        self,
        experiment: Experiment,
        rows: Rows,
        batch_size: int,
        make_nets: Mapping[str, step_lib.MakeNet],
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.experiment = experiment
        self.taus = experiment.config.train.eval_taus
        self.tokens_NL = fixed_batch(rows, experiment.config.train.eval_rows, SEED)["tokens"]
        self.mesh = mesh
        shared = 1 if mesh is None else sharding.batch_devices(mesh)
        shared = math.lcm(shared, jax.process_count())
        self.size = shared * -(-min(batch_size, len(self.tokens_NL)) // shared)
        common = experiment.space, experiment.clock
        if experiment.has_denoiser:
            defect = semigroup_defect if experiment.config.model.two_times else None
            step = step_lib.make_eval_step(experiment.denoiser, *common, defect)
        else:
            step = step_lib.make_loss_eval_step(make_nets, experiment.loss, *common)
        out = None if mesh is None else sharding.replicated(mesh)
        self._step = metrics.announced(
            jax.jit(step, out_shardings=out), "compiling the evaluation step"
        )

    def __call__(self, params: Any, frozen: Mapping[str, Any]) -> dict[str, float]:
        """Nats per token by name: "eval/loss", and at every time "eval/loss_tau_TAU"."""
        key, taus = numerics.key(SEED), jnp.asarray(self.taus, jnp.float32)
        total, defect = np.zeros(()), 0.0
        starts = range(0, len(self.tokens_NL), self.size)
        for first in metrics.bar(starts, desc="evaluating", unit="batch", delay=2, leave=False):
            rows = self._rows(first)
            if self.experiment.has_denoiser:
                sums, defects = self._step(params, *rows, taus, key)
                defect += float(defects)
            else:
                sums = self._step(params, frozen, *rows, key)
            total = total + np.asarray(sums, np.float64)
        if not self.experiment.has_denoiser:
            return {"eval/loss": float(total[0] / max(total[1], 1.0))}
        losses = total / self.tokens_NL.size
        values = {"eval/loss": float(losses.mean())}
        for tau, loss in zip(self.taus, losses, strict=True):
            values[f"eval/loss_tau_{tau:g}"] = float(loss)
        if self.experiment.config.model.two_times:
            values["eval/semigroup_defect"] = defect / self.tokens_NL.size
        return values

    def _rows(self, first: int) -> list[jax.Array]:
        """Tokens, mask and index of one batch; the last one is filled up with masked rows."""
        part = self.tokens_NL[first : first + self.size]
        padded = np.zeros((self.size, part.shape[1]), np.int32)
        padded[: len(part)] = part
        mask = (np.arange(self.size) < len(part)).astype(np.float32)
        mask = np.broadcast_to(mask[:, None], padded.shape)
        arrays = padded, mask, first + np.arange(self.size, dtype=np.int32)
        if self.mesh is None:
            return [jnp.asarray(x) for x in arrays]
        local = self.size // jax.process_count()
        mine = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
        return [sharding.global_rows(x[mine], self.mesh) for x in arrays]
