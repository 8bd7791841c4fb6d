"""What an objective is: raw numbers drawn first, then per-token values computed from them.

A loss is a frozen dataclass in two pure halves:

    draw(key, batch, space)                         -> draws     a dict of raw random numbers
    evaluate(nets, batch, draws, space, clock)      -> (loss_BL, metrics)

Because draws are data, recorded draws of another implementation go through the very function that
trains. Reduction over tokens happens in `flm_jax.step`, nowhere else. ``metrics`` maps names to
(B, L) arrays, reduced in the same way.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax

from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.flow.space import OneHot, Projected

Space = OneHot | Projected


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens_BL", "mask_BL", "index_B"],
    meta_fields=["global_size"],
)
@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences with their place in the global batch.

    ``tokens_BL`` int32; ``mask_BL`` float32, 1 where a token counts; ``index_B`` int32, the
    position of each sequence in the global batch of ``global_size``. Times and noise hang on
    the index, so that they depend neither on the devices nor on how the batch is cut for gradient
    accumulation. (Dropout masks do not depend on the devices, but on that cut they do.)
    """

    tokens_BL: jax.Array
    mask_BL: jax.Array
    index_B: jax.Array
    global_size: int

    @property
    def length(self) -> int:
        return self.tokens_BL.shape[1]

    def keys(self, key: jax.Array) -> jax.Array:
        """One key per sequence, (B,)."""
        return jax.vmap(jax.random.fold_in, (None, 0))(key, self.index_B)


class Loss(Protocol):
    """An objective; a row of `flm_jax.losses.LOSSES`. Frozen: jit sees it as a constant.

    Optional attributes, False unless said otherwise: ``needs_ema`` (a network "ema", the average),
    ``needs_residual`` (a network "residual"), ``needs_causal``, ``needs_mask_token`` (of the
    model), ``jvp`` (takes derivatives of the network forward), ``is_correction`` (its network
    starts at zero), and ``denoises`` (True: its network is a denoiser, which is what held-out
    losses at fixed times measure).
    """

    needs_teacher: bool
    needs_two_times: bool

    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]: ...

    def evaluate(
        self,
        nets: Mapping[str, Net],
        batch: Batch,
        draws: dict[str, jax.Array],
        space: Space,
        clock: Clock,
    ) -> tuple[jax.Array, dict[str, Any]]: ...


def hint(batch: Batch, log_weight: jax.Array | None = None) -> jax.Array:
    """What training multiplies the losses of a batch with, up to one factor, (B, L).

    For `Posterior.log_prob`, `Combination.cross_entropy_to` and `Combination.squared_error_to`,
    whose gradient is cheap if they know it and right in any case (`flm_jax.flow.fused`).
    """
    if log_weight is None:
        return batch.mask_BL
    return jax.numpy.exp(-_per_token(log_weight)) * batch.mask_BL


def weighted(loss_BL: jax.Array, log_weight: jax.Array | None) -> jax.Array:
    """exp(-w) * loss + w with the learned log weight w, (B,) or (B, L); unchanged without one."""
    if log_weight is None:
        return loss_BL
    log_weight = _per_token(log_weight)
    return jax.numpy.exp(-log_weight) * loss_BL + log_weight


def _per_token(log_weight: jax.Array) -> jax.Array:
    return log_weight if log_weight.ndim == 2 else log_weight[:, None]
