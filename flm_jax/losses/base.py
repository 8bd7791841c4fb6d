"""What an objective is: raw numbers drawn first, then per-token values computed from them.

A loss is a frozen dataclass in two pure halves:

    draw(key, batch, space)         -> draws        a dict of raw random numbers
    evaluate(at, batch, draws)      -> PerToken     losses, counts and metrics per token

Because draws are data, recorded draws of another implementation go through the very function that
trains. Reduction over tokens happens in `flm_jax.training.step`, nowhere else.
"""

import abc
import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax

from flm_jax.contracts import Contract, Needs
from flm_jax.flow.at import At
from flm_jax.flow.net import Params
from flm_jax.flow.randomness import sequence_keys
from flm_jax.flow.space import Space

Key = jax.Array | None  # of dropout; without one there is none
State = dict[str, Params]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens_BL", "mask_BL", "index_B", "prompt_BL"],
    meta_fields=["global_size"],
)
@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences with their place in the global batch.

    ``tokens_BL`` int32; ``mask_BL`` float32, 1 where a token counts; ``index_B`` int32, the
    position of each sequence in the global batch of ``global_size``. Times and noise hang on
    the index, so that they depend neither on the devices nor on how the batch is cut for gradient
    accumulation. (Dropout masks do not depend on the devices, but on that cut they do.)

    ``prompt_BL``, bool, if there is one: tokens that are given, so that nothing is learned of
    them. Unlike tokens of mask 0, which only do not count, they are seen as they are.
    """

    tokens_BL: jax.Array
    mask_BL: jax.Array
    index_B: jax.Array
    global_size: int
    prompt_BL: jax.Array | None = None

    @property
    def length(self) -> int:
        return self.tokens_BL.shape[1]

    def keys(self, key: jax.Array) -> jax.Array:
        """One key per sequence, (B,)."""
        return sequence_keys(key, self.index_B)


class PerToken(NamedTuple):
    """What a loss says of a batch, (B, L) each, to be reduced over the whole batch by the step.

    ``loss_BL`` are the values; ``count_BL`` float32 says how much each counts, 0 where nothing is
    predicted or the mask is 0. The loss of the batch is sum(loss * count) / max(1, sum(count)), and
    so is every one of ``metrics``. What counts 0 may be anything, nan included.
    """

    loss_BL: jax.Array
    count_BL: jax.Array
    metrics: dict[str, jax.Array]


class Loss(Contract, unfinished=True):
    """An objective, a row of `flm_jax.losses.LOSSES`: a frozen dataclass, for jit a constant.

    Attributes:
      denoises: its network is a denoiser, which held-out losses at fixed times measure; others are
        measured by their own objective.
      is_correction: its network corrects a denoiser, starts at zero and writes with it.
      keeps_prompts: it sees the prompt of a batch as it is, and learns nothing of it.
      off_diagonal_share: share of a batch with targets made by other networks (for planning).
      projects: these targets are projected onto the simplex by entmax (for planning).
    """

    denoises: ClassVar[bool] = True
    is_correction: ClassVar[bool] = False
    keeps_prompts: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def needs(self) -> Needs:
        """The networks and the kind of student it is made for."""

    @property
    def off_diagonal_share(self) -> float:
        return 1.0

    @property
    def projects(self) -> bool:
        return False

    @abc.abstractmethod
    def draw(self, key: jax.Array, batch: Batch, space: Space) -> dict[str, jax.Array]:
        """Raw random numbers for `evaluate`; "dropout", a key, is left out where there is none."""

    @abc.abstractmethod
    def evaluate(self, at: At, batch: Batch, draws: dict[str, jax.Array]) -> PerToken:
        """The loss of every token, differentiable in the parameters of ``at.student``."""

    def notices(self, batch_size: int) -> list[str]:
        """What it does though its options seem to say something else, one sentence each."""
        return []

    def first_state(self, params: Params) -> State:
        """What training keeps for the loss beside the student: networks that it replaces itself.

        Role -> parameters; the network of that role is in ``at.nets``, without gradient, and the
        role may be one of `needs`. Saved in checkpoints and resumed exactly.
        """
        return {}

    def next_state(self, state: State, step: jax.Array, params: Params, ema: Params) -> State:
        """The state after an update; ``step`` int32 () counts updates, this one included."""
        return state


def dropout_keys(draws: dict[str, jax.Array], n: int) -> list[Key]:
    """As many keys of dropout, or None in their place where there is none."""
    key = draws.get("dropout")
    return [None] * n if key is None else list(jax.random.split(key, n))


def hint(count_BL: jax.Array, log_weight: jax.Array | None = None) -> jax.Array:
    """What training multiplies the losses of a batch with, up to one factor, (B, L).

    For `Posterior.log_prob`, `Combination.cross_entropy_to` and `Combination.squared_error_to`,
    whose gradient is cheap if they know it and right in any case (`flm_jax.flow.fused`).
    """
    if log_weight is None:
        return count_BL
    return jax.numpy.exp(-_per_token(log_weight)) * count_BL


def weighted(loss_BL: jax.Array, log_weight: jax.Array | None) -> jax.Array:
    """exp(-w) * loss + w with the learned log weight w, (B,) or (B, L); unchanged without one."""
    if log_weight is None:
        return loss_BL
    log_weight = _per_token(log_weight)
    return jax.numpy.exp(-log_weight) * loss_BL + log_weight


def _per_token(log_weight: jax.Array) -> jax.Array:
    return log_weight if log_weight.ndim == 2 else log_weight[:, None]
