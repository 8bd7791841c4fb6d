"""Guidance by a reward: every step begins with its gradient at the end of the map.

With r a function of the text that the map leads to from the state x at time t,

    x <- x + scale * weight * (1 - t)^2 * dr/dx

in the dense space, where noise is white. That is the mean of N(x, (1 - t)^2) times exp(scale * r),
r taken as linear: the noise at time t has the variance (1 - t)^2, and texts are drawn from about
p exp(scale * r). For a flow map the end is one jump, X_{t,1}(x); for a denoiser it is the posterior
mean. No other network is trained, and r is any differentiable function of the prediction.

The metric is that of the noise: in the projected space, h = x @ T, the same step is g T'T with g
the gradient with respect to h (`Space.steepest`), plain ascent in whitened coordinates h @ R^-T.
Both spaces write the same texts, and no array has a vocabulary axis.

``weight`` is 1 where a step draws all its noise anew (the mean of every step's noise is moved, as
in a conditioned Markov chain), and 1 / steps where noise is kept from step to step, because then
what is moved stays moved. With ``reward_length`` the gradient of every text is normalised:
x moves by that many standard deviations of the noise, whatever the units of r.

A gradient takes one evaluation and its backward pass, so a step takes two evaluations. At tau = 0 a
denoiser hardly knows where a text will go; a flow map does.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.at import At
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.space import per_token
from flm_jax.samplers.base import Carry, Given, Move
from flm_jax.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a reward sees: what is predicted of the texts at the end, p(token) at every position.

    Given tokens are certain.
    """

    posterior: Posterior
    table_VD: jax.Array
    given: Given | None = None

    @property
    def mean(self) -> jax.Array:
        """The mean embedding p @ E, (B, L, D)."""
        mean = self.posterior.mean(self.table_VD)
        if self.given is None:
            return mean
        return self.given.keep(self.table_VD[self.given.tokens_BL].astype(mean.dtype), mean)

    def probability(self, tokens: Sequence[int]) -> jax.Array:
        """The probability that the token at a position is one of these ids, (B, L)."""
        size = self.posterior.head.vocab_size
        among_V = jnp.zeros(size, jnp.float32).at[np.asarray(tokens)].set(1.0)
        p_BL = self.posterior.mean(among_V[:, None])[..., 0]
        if self.given is None:
            return p_BL
        return jnp.where(self.given.mask_BL, among_V[self.given.tokens_BL], p_BL)

    def log_prob(self, tokens_BL: jax.Array) -> jax.Array:
        """log p of one token for every position, (B, L); 0 at given positions."""
        log_p_BL = self.posterior.log_prob(tokens_BL)
        return log_p_BL if self.given is None else jnp.where(self.given.mask_BL, 0.0, log_p_BL)

    def dense(self) -> jax.Array:
        """p as an array (B, L, V): for small vocabularies."""
        p_BLV = self.posterior.dense()
        if self.given is None:
            return p_BLV
        return self.given.keep(jax.nn.one_hot(self.given.tokens_BL, p_BLV.shape[-1]), p_BLV)


class Reward(Protocol):
    """A differentiable function of what is predicted: one number for every text, (B,)."""

    def __call__(self, ending: Ending, /) -> jax.Array: ...


def shift(
    propose: Callable[[At, Carry, jax.Array, jax.Array], Move],
    at: At,
    carry: Carry,
    tau_B: jax.Array,
    sampling: Sampling,
    weight: float,
) -> Carry:
    """The state moved towards more reward; given tokens stay."""
    assert sampling.reward is not None
    reward, end_B = sampling.reward, jnp.ones_like(tau_B)

    def value(state: jax.Array) -> jax.Array:
        posterior = propose(at, carry._replace(state=state), tau_B, end_B).posterior
        value_B = reward(Ending(posterior, at.student.table, carry.given))
        if value_B.shape != tau_B.shape:
            raise ValueError(
                f"the reward has the shape {value_B.shape}; it must be one number for every text, "
                f"{tau_B.shape}"
            )
        return jnp.sum(value_B)

    gradient = jax.grad(value)(carry.state)
    if carry.given is not None:
        gradient = carry.given.keep(jnp.zeros_like(gradient), gradient)
    ascent, sigma_B = at.space.steepest(gradient), 1.0 - at.clock.to_t(tau_B)
    if sampling.reward_length:
        square_B = jnp.sum(gradient * ascent, axis=(1, 2))
        tiny = jnp.finfo(square_B.dtype).tiny
        size_B = sampling.reward_length * sigma_B / jnp.sqrt(jnp.maximum(square_B, tiny))
    else:
        size_B = sampling.reward_scale * sigma_B**2
    return carry._replace(state=carry.state + per_token(weight * size_B) * ascent)
