"""How well every token of a text fits the others: log-probabilities with the token open.

What a network says at a given token is not trained, because it sees the token there. So a token is
scored by an evaluation in which it is open and the others are given: the positions of a text are
dealt into groups, one token each by default, and every group costs one evaluation. Larger groups
are cheaper, and their tokens are scored without seeing each other. Autoregressive models are exact
with one evaluation: log p of every token given those before it.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.errors import UserError
from flm_jax.experiment import Experiment
from flm_jax.flow import discrete
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import sequence_keys
from flm_jax.host import numerics, progress
from flm_jax.inference import choose_sampler
from flm_jax.inference import given as given_lib
from flm_jax.inference.given import Asked
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.samplers.base import Given

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel

_ROWS = 64  # evaluated at one time


@dataclasses.dataclass(frozen=True)
class Scores:
    """Log-probabilities in nats of the tokens of some texts.

    Attributes:
      tokens: int32 (N, L).
      log_probs: float32 (N, L), nan where a token was not scored.
      evaluations: of the network per text.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    evaluations: float

    @property
    def nats(self) -> np.ndarray:
        """-log p per token of every text, (N,)."""
        return -np.nanmean(self.log_probs, axis=1)


def score(
    model: "FlowModel",
    texts: str | Sequence[str] | Given,
    group: int = 1,
    seed: int = 0,
    length: int | None = None,
) -> Scores:
    """See `FlowModel.score`."""
    length = model.config.data.length if length is None else length
    group = choose_sampler.whole("group", group)
    if group < 1:
        raise UserError(f"group={group} must be at least 1: tokens that are open at one time")
    rows, scored_NL = _what(model, texts, length)
    return of_places(model, rows.tokens_NL, rows.mask_NL | scored_NL, scored_NL, group, seed)


def of_places(
    model: "FlowModel",
    tokens_NL: np.ndarray,
    known_NL: np.ndarray,
    scored_NL: np.ndarray,
    group: int = 1,
    seed: int = 0,
) -> Scores:
    """Scores of some tokens of every row, bool (N, L), which are among the known ones."""
    experiment, (count, length) = model.experiment, tokens_NL.shape
    log_probs = np.full(tokens_NL.shape, np.nan, np.float32)
    if experiment.config.model.causal:
        if not np.logical_and.accumulate(known_NL, axis=1)[scored_NL].all():
            raise UserError("an autoregressive model scores texts without holes; give whole ones")
        jobs = [(i, scored_NL[i]) for i in range(count)]
    else:
        check(experiment)
        jobs = [(i, places) for i in range(count) for places in _groups(scored_NL[i], group)]
    program, key = model.programs.scorer, numerics.key(seed)
    size = min(_ROWS, 1 << max(0, len(jobs) - 1).bit_length())
    for first in progress.bar(range(0, len(jobs), size), desc="scoring", delay=2):
        part = jobs[first : first + size]
        row_B = np.asarray([row for row, _ in part] + [0] * (size - len(part)))
        open_BL = np.zeros((size, length), bool)
        open_BL[: len(part)] = [places for _, places in part]
        index_B = np.arange(first, first + size)
        keys_B = sequence_keys(key, jnp.asarray(index_B))
        params = {STUDENT: model.params}
        given = Given(jnp.asarray(tokens_NL[row_B]), jnp.asarray(known_NL[row_B] & ~open_BL))
        found = np.asarray(program(params, given, keys_B))
        for (row, places), values in zip(part, found, strict=False):
            log_probs[row, places] = values[places]
    return Scores(tokens_NL, log_probs, len(jobs) / count)


def check(experiment: Experiment) -> None:
    """UserError for models that cannot say how well a token fits the others."""
    if experiment.config.model.mask_token:
        return
    if not experiment.has_denoiser or experiment.loss.is_correction:
        raise UserError(
            f"a model trained by loss {experiment.config.loss.name!r} does not say how well a "
            "token fits the others; use a masked diffusion, an autoregressive model, or one "
            "trained with given tokens"
        )
    choose_sampler.check_trained(experiment, "all tokens but those that are scored are given")


def open_log_prob(at: At, experiment: Experiment, given: Given, keys_B: jax.Array) -> jax.Array:
    """log p of every token, float32 (B, L): of open ones given the others, and for a causal
    network given those before it (0 for the first). What is said at given tokens means nothing.
    """
    if experiment.config.model.causal:
        nll_BM = Autoregressive().next_token(at.student, given.tokens_BL)
        return jnp.pad(-nll_BM, ((0, 0), (1, 0)))
    return _posterior(at, experiment, given, keys_B).log_prob(given.tokens_BL)


def _posterior(at: At, experiment: Experiment, given: Given, keys_B: jax.Array) -> Posterior:
    """The prediction of the open tokens from nothing but the given ones."""
    net, (tokens_BL, mask_BL) = at.student, given
    if experiment.config.model.mask_token:
        return discrete.predict_masked(net, tokens_BL, ~mask_BL).posterior
    batch, length = tokens_BL.shape
    time_B = jnp.zeros(batch, net.table.dtype)
    state = given.clean(at.space, at.space.scatter(at.space.noise(keys_B, length)))
    to_B = jnp.ones_like(time_B) if experiment.config.model.two_times else None
    return at.given(mask_BL).ask(STUDENT, state, time_B, to_B)


def _what(
    model: "FlowModel", texts: str | Sequence[str] | Given, length: int
) -> tuple[Asked, np.ndarray]:
    """Rows of which the tokens to be scored are open, and where those are, bool (N, L)."""
    rows = given_lib.whole(model.tokenizer, length, texts)
    scored_NL = rows.mask_NL.copy()
    if model.tokenizer.bos_id is not None:
        scored_NL[:, :1] &= rows.tokens_NL[:, :1] != model.tokenizer.bos_id
    empty = np.flatnonzero(~scored_NL.any(1))
    if empty.size:
        raise UserError(f"text {empty[0]} has no token to score; omit it")
    mask_NL = rows.mask_NL & ~scored_NL
    return dataclasses.replace(rows, mask_NL=mask_NL), scored_NL


def _groups(scored_L: np.ndarray, size: int) -> list[np.ndarray]:
    """The places dealt into groups of at most ``size``, bool (L,) each; neighbours apart."""
    places = np.flatnonzero(scored_L)
    count = -(-len(places) // size)
    return [np.isin(np.arange(len(scored_L)), places[i::count]) for i in range(count)]
