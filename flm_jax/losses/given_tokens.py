"""Which tokens of a training sequence are given: its prompt, and others by chance.

    f ~ U(0, 1) per sequence, stratified over the global batch;   a token is given if u < f

so that every number of given tokens is as likely as any other (FMLM+, arXiv 2606.24773). A given
token is at time 1, clean, and has no loss. With ``given_none`` that share of the sequences has no
given token at all, f = 0, as where a whole text is written: f ~ U(0, 1) makes such rows rare.
"""

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow import times
from flm_jax.flow.randomness import uniforms
from flm_jax.losses.base import Batch

NONE, UNIFORM = "none", "uniform"


def check_none(given: str, none: float) -> None:
    """UserError unless ``given_none`` is a share of sequences and there are given tokens at all."""
    if not 0.0 <= none < 1.0:
        raise UserError(f"given_none={none} must be in [0, 1)")
    if none and given != UNIFORM:
        raise UserError(
            f"given_none={none} is a share of the sequences of given='uniform', but given="
            f"{given!r}; set given='uniform' or omit given_none"
        )


def draw(key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """The raw numbers of `by_chance`."""
    key_share, key_tokens = jax.random.split(key)
    share_N, permutation_N = times.draw_stratified(key_share, batch.global_size)
    chance_BL = uniforms(batch.keys(key_tokens), batch.length)
    return {"share": share_N, "share_permutation": permutation_N, "chance": chance_BL}


def by_chance(
    draws: dict[str, jax.Array], batch: Batch, stratified: bool, none: float = 0.0
) -> jax.Array:
    """Which tokens are given by chance, bool (B, L); in a share ``none`` of the sequences none."""
    permutation = draws["share_permutation"] if stratified else None
    share_N = times.in_range(0.0, 1.0, draws["share"], permutation)
    if none:
        share_N = jnp.maximum(0.0, (share_N - none) / (1.0 - none))
    return draws["chance"] < share_N[batch.index_B][:, None]


def with_prompt(chosen_BL: jax.Array | None, batch: Batch) -> jax.Array | None:
    """The tokens given by chance and those of the prompt; None if there are neither."""
    if chosen_BL is None or batch.prompt_BL is None:
        return batch.prompt_BL if chosen_BL is None else chosen_BL
    return chosen_BL | batch.prompt_BL


def open_count(batch: Batch, given_BL: jax.Array | None) -> jax.Array:
    """How much every token counts, float32 (B, L): the mask, and 0 for given tokens."""
    return batch.mask_BL if given_BL is None else batch.mask_BL * ~given_BL


def at_given(coefficient_B: jax.Array, given_BL: jax.Array | None, value: float) -> jax.Array:
    """A number of every sequence for its open tokens, ``value`` for given ones, (B, L).

    (B,), as it is, if nothing is given.
    """
    if given_BL is None:
        return coefficient_B
    return jnp.where(given_BL, value, coefficient_B[:, None])
