"""Texts made better by the model that reads them: its least likely tokens are written again."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from flm_jax.errors import UserError
from flm_jax.inference import choose_sampler, scoring
from flm_jax.inference import given as given_lib
from flm_jax.samplers.base import Given

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel, Samples


def refine(
    model: "FlowModel",
    texts: str | Sequence[str] | Given,
    rounds: int,
    share: float,
    group: int,
    seed: int,
    options: dict[str, Any],
) -> "Samples":
    """See `FlowModel.refine`."""
    rounds = choose_sampler.whole("rounds", rounds)
    if rounds < 1:
        raise UserError(f"rounds={rounds} must be at least 1")
    if not 0.0 < share <= 1.0:
        raise UserError(f"share={share} of the tokens to write again must be above 0, at most 1")
    length = model.config.data.length
    rows = given_lib.whole(model.tokenizer, length, texts)
    evaluations, gradients, seconds, samples = 0.0, 0.0, 0.0, None
    for r in range(rounds):
        whole = Given(jnp.asarray(rows.tokens_NL), jnp.asarray(rows.mask_NL))
        scores = scoring.score(model, whole, group, seed + r)
        open_NL = doubtful(scores.log_probs, share * (rounds - r) / rounds)
        asked = dataclasses.replace(rows, mask_NL=rows.mask_NL & ~open_NL)
        samples = model.generate(1, seed=seed + r, given=asked, **options)
        evaluations += scores.evaluations + samples.evaluations
        gradients += samples.gradients
        seconds += samples.seconds
        tokens_NL = np.where(rows.mask_NL, samples.tokens, rows.tokens_NL)
        rows = dataclasses.replace(rows, tokens_NL=tokens_NL)
    assert samples is not None  # there is a round
    return dataclasses.replace(
        samples, evaluations=evaluations, gradients=gradients, seconds=seconds
    )


def doubtful(log_probs_NL: np.ndarray, share: float) -> np.ndarray:
    """The least likely ceil(share * scored) tokens of every row, bool (N, L); nan is not scored."""
    order_NL = np.argsort(np.where(np.isnan(log_probs_NL), np.inf, log_probs_NL), axis=1)
    rank_NL = np.argsort(order_NL, axis=1)
    scored_N = (~np.isnan(log_probs_NL)).sum(1)
    return rank_NL < np.ceil(share * scored_N)[:, None]
