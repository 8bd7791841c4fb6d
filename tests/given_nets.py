"""A network of two times that is told of given tokens, small enough to compile in a moment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.net import Net

V, D = 7, 5


def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None, estimate_BLD=None):
    """tanh(h A + tau_s b + tau_t c + mean over positions + place) C; a time left out is 0.3.

    With an estimate, h is h + estimate M.
    """
    length = h_BLD.shape[1]
    if estimate_BLD is not None:
        h_BLD = h_BLD + estimate_BLD @ params["told"]
    tau_t = jnp.full_like(tau_s, 0.3) if tau_t is None else tau_t

    def told(tau):
        tau_BL = jnp.broadcast_to(tau[:, None] if tau.ndim == 1 else tau, h_BLD.shape[:2])
        return tau_BL if given_BL is None else jnp.where(given_BL, 1.0, tau_BL)

    own = h_BLD @ params["in"]
    times = jnp.stack([told(tau_s), told(tau_t)], axis=-1) @ params["times"]
    place = params["place"][None, :length]
    hidden = jnp.tanh(own + jnp.mean(own, axis=1, keepdims=True) + times + place)
    return hidden @ params["out"], None


def net(seed: int = 0, dtype=jnp.float32, seen_by=backbone, vocab_size: int = V) -> Net:
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(draw.standard_normal(shape), dtype)

    params = {
        "embed": {"table": normal(vocab_size, D)},
        "head": {"kernel": 2.0 * normal(6, vocab_size), "bias": normal(vocab_size)},
        "in": 0.7 * normal(D, 6),
        "times": normal(2, 6),
        "place": 0.5 * normal(64, 6),
        "out": normal(6, 6),
    }
    return Net(seen_by, params, head_chunk=16)


def told(made: Net, seed: int = 0, scale: float = 0.5) -> Net:
    """The same network with self-conditioning; ``scale`` of the map of estimates."""
    dtype = made.table.dtype
    kernel = scale * jnp.asarray(np.random.default_rng(seed).standard_normal((D, D)), dtype)
    params = made.params | {"told": kernel}
    return dataclasses.replace(made, params=params, self_conditioning=True)


def narrow(made: Net) -> Net:
    """A network with self-conditioning, its table cut to three columns."""
    params = made.params
    params = params | {"embed": {"table": params["embed"]["table"][:, :3]}, "in": params["in"][:3]}
    return dataclasses.replace(made, params=params | {"told": params["told"][:3, :3]})


def counted(made: Net, calls: list) -> Net:
    """The same network; the times of the first token of every evaluation are put into ``calls``."""

    def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None):
        jax.debug.callback(lambda tau: calls.append(float(tau)), tau_s[0])
        return made.backbone(params, h_BLD, tau_s, tau_t, key, given_BL)

    return Net(backbone, made.params, head_chunk=16)
