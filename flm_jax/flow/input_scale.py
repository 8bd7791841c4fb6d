"""What a network sees, brought to one variance at every time (c_in of EDM, arXiv 2206.00364).

The state x_t = (1 - t) * eps + t * e_y is seen as h = x_t @ E, whose entries have the variance

    v(t) = |E|^2 / D * ((1 - t)^2 + t^2 / V),        |E|^2 the sum of all squares of E (V, D),

on average over them and over tokens that are all as likely: tr(E'E) / D is that of the noise, and
the mean square of E that of the clean part. The network then sees h * deviation / sqrt(v). An
estimate p @ E of the clean sequence is taken for a state at t = 1. The table has its gradient
through v, too.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.flow.net import Net
from flm_jax.flow.noise import wide
from flm_jax.flow.space import per_token

TINY = 1e-30  # a table of zeros stays one


def variance(table_VD: jax.Array, t: jax.Array) -> jax.Array:
    """v(t) of a table, in the shape of the times and at least float32."""
    vocab_size, width = table_VD.shape
    power = jnp.sum(wide(table_VD) ** 2) / width
    return power * ((1.0 - t) ** 2 + t**2 / vocab_size) + TINY


def scaled(net: Net, to_t: Callable[[jax.Array], jax.Array], deviation: float) -> Net:
    """The same network, which sees h with that standard deviation.

    ``to_t`` is `Clock.to_t`: networks are told the other time.
    """
    backbone = net.backbone

    def seeing(params, h_BLD, tau_s, tau_t=None, key=None, given_BL=None, estimate_BLD=None):
        table_VD, t = params["embed"]["table"], to_t(tau_s)
        if given_BL is not None:  # clean, whatever the time of their sequence is
            t = jnp.where(given_BL, jnp.ones((), t.dtype), t[:, None])
        scale = per_token(deviation * jax.lax.rsqrt(variance(table_VD, t)))
        h_BLD = (h_BLD * scale).astype(h_BLD.dtype)
        if estimate_BLD is None:
            told = () if given_BL is None else (given_BL,)
        else:
            at_one = jax.lax.stop_gradient(variance(table_VD, jnp.ones((), t.dtype)))
            factor = (deviation * jax.lax.rsqrt(at_one)).astype(estimate_BLD.dtype)
            told = given_BL, estimate_BLD * factor
        return backbone(params, h_BLD, tau_s, tau_t, key, *told)

    return dataclasses.replace(net, backbone=seeing)
