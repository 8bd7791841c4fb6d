"""Diffusion on tokens, for the baselines: the log-linear schedule and one step back in closed form.

Time runs the other way round here, as in that literature: t = 0 is data, t = 1 is noise. A token
keeps its value until time t with probability alpha(t); otherwise it has become the mask (masked
diffusion) or a token drawn uniformly (uniform-state diffusion).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net, Output
from flm_jax.flow.posterior import Posterior

EPS = 1e-3  # what is left of the data at t = 1, and the smallest time of the official losses
RATE = 1.0 - EPS  # -d alpha / dt


def alpha(t: jax.Array) -> jax.Array:
    """Probability that a token is still itself at time t: 1 at t = 0, 1e-3 at t = 1."""
    return 1.0 - RATE * t


def without_mask(posterior: Posterior) -> Posterior:
    """The posterior over all tokens but the last one, which is the mask."""
    head = posterior.head
    kept = dataclasses.replace(head, kernel_DV=head.kernel_DV[:, :-1], bias_V=head.bias_V[:-1])
    return dataclasses.replace(posterior, head=kept)


def predict_masked(
    net: Net, tokens_BL: jax.Array, masked_BL: jax.Array, key: jax.Array | None = None
) -> Output:
    """What a masked diffusion model says of tokens of which it does not see the masked ones.

    The posterior is without the mask, the last token of the network, whose time is 0 always.
    """
    seen_BL = jnp.where(masked_BL, net.table.shape[0] - 1, tokens_BL)
    zero_B = jnp.zeros(tokens_BL.shape[:1], net.table.dtype)
    output = net(net.table[seen_BL], zero_B, key=key)
    return output._replace(posterior=without_mask(output.posterior))


def unmask_probability(alpha_t: jax.Array, alpha_s: jax.Array) -> jax.Array:
    """Probability that a token masked at time t is so no more at an earlier time s."""
    return (alpha_s - alpha_t) / (1.0 - alpha_t)


def parts_of_latent(gamma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a, b) of a latent a * e_y + b * noise, a^2 + b^2 = 1 and log(b^2 / a^2) = gamma."""
    return jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))


def time_of_latent(gamma: jax.Array) -> jax.Array:
    """u where the flow's state (1 - u) * noise + u * e_y is a multiple of that latent."""
    return jax.nn.sigmoid(-0.5 * gamma)


def alpha_of_latent(gamma: jax.Array, clock: Clock) -> jax.Array:
    """The alpha of uniform diffusion that the arg max of that latent has: its decoding accuracy."""
    if clock.forward is None:
        raise UserError(
            "the noise of a Gaussian latent is measured by the clock of decoding accuracy; set "
            "clock.name=decoding_accuracy"
        )
    alpha = clock.to_tau(time_of_latent(gamma))
    return jnp.clip(alpha, 1e-6, 1.0 - 1e-6)  # finite logarithms


def largest_of_normals(uniform: jax.Array, count: int) -> jax.Array:
    """The largest of ``count`` standard normals, made of one uniform in [0, 1).

    Its distribution function is Phi(m)^count; the quantile is taken from the upper tail, which a
    large count needs exactly.
    """
    return -jax.scipy.special.ndtri(-jnp.expm1(jnp.log(uniform) / count))


class Mixture(NamedTuple):
    """Weights, not normalised, of where a token comes from one step of uniform diffusion ago.

    It was what it is now (``stay``), it is a draw of the prediction (``predict``), or a draw of
    the uniform distribution (``jump``).
    """

    stay: jax.Array
    predict: jax.Array
    jump: jax.Array

    @property
    def total(self) -> jax.Array:
        return self.stay + self.predict + self.jump

    def normalised(self) -> "Mixture":
        total = self.total
        return Mixture(self.stay / total, self.predict / total, self.jump / total)


def uniform_step_back(
    alpha_t: jax.Array, alpha_s: jax.Array, p_now: jax.Array, vocab_size: int
) -> Mixture:
    """q(x_s | x_t, x) with the clean token x replaced by a prediction p, as a mixture.

    q is proportional to [a e_{x_t} + (1 - a) / V] * [alpha_s p + (1 - alpha_s) / V] entry by entry,
    with a = alpha_t / alpha_s; the product has the three kinds of terms of a `Mixture`. ``p_now``
    is the predicted probability of the present token x_t.
    """
    ratio = alpha_t / alpha_s
    return Mixture(
        stay=alpha_t * vocab_size * p_now + (ratio - alpha_t),
        predict=alpha_s - alpha_t + jnp.zeros_like(p_now),
        jump=(1.0 - ratio) * (1.0 - alpha_s) + jnp.zeros_like(p_now),
    )


def unmask_and_mask(
    alpha_t: jax.Array, alpha_s: jax.Array, kappa: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Probabilities that a psi-step shows a masked token, and that it masks one that shows.

    kappa * q(x_s | x_t, p) + (1 - kappa) * [alpha_s q(x_0 | x_t, p) + (1 - alpha_s) mask]: at t = 0
    a masked token is one of the prediction, and any other is what it was.
    """
    show = kappa * unmask_probability(alpha_t, alpha_s) + (1.0 - kappa) * alpha_s
    return show, (1.0 - kappa) * (1.0 - alpha_s)


def uniform_psi_step(
    alpha_t: jax.Array,
    alpha_s: jax.Array,
    kappa: jax.Array | float,
    p_now: jax.Array,
    vocab_size: int,
) -> Mixture:
    """kappa * q(x_s | x_t, p) + (1 - kappa) * [alpha_s q(x_0 | x_t, p) + (1 - alpha_s) / V].

    Normalised; ``p_now`` as in `uniform_step_back`.
    """
    back = uniform_step_back(alpha_t, alpha_s, p_now, vocab_size).normalised()
    start = uniform_step_back(alpha_t, jnp.ones_like(alpha_s), p_now, vocab_size).normalised()
    return Mixture(
        stay=kappa * back.stay + (1.0 - kappa) * alpha_s * start.stay,
        predict=kappa * back.predict + (1.0 - kappa) * alpha_s * start.predict,
        jump=kappa * back.jump + (1.0 - kappa) * (1.0 - alpha_s),
    )
