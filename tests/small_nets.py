"""Two-time networks of a few numbers, written out: small enough for dense reference formulas."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.net import Net


def backbone(params, h_BLD, tau_s, tau_t, key, given_BL=None, estimate_BLD=None):
    """tanh(h A + tau_s b + tau_t c + mean over positions) C; a second time left out is the first.

    Times are (B,), or (B, L); both are 1 where tokens are given. With a key, "dropout" adds a
    constant, so that a test sees where it is on. An estimate is added to h by a linear map, "told".
    """
    if estimate_BLD is not None:
        h_BLD = h_BLD + estimate_BLD @ params["told"]
    tau_t = tau_s if tau_t is None else tau_t
    own = h_BLD @ params["in"]
    times = jnp.stack([tau_s, tau_t], axis=-1) @ params["times"]
    times = times[:, None, :] if times.ndim == 2 else times
    if given_BL is not None:
        times = jnp.where(given_BL[..., None], jnp.sum(params["times"], axis=0)[None, None], times)
    hidden = jnp.tanh(own + jnp.mean(own, axis=1, keepdims=True) + times)
    features = hidden @ params["out"]
    return features + (0.0 if key is None else 0.5), None


def params(
    seed: int, vocab_size: int, width: int, hidden: int = 6, dtype=jnp.float64, told: bool = False
) -> dict:
    """Parameters of `backbone`; with ``told`` those of the map of estimates, too."""
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(0.7 * draw.standard_normal(shape), dtype)

    return {
        "embed": {"table": normal(vocab_size, width)},
        "head": {"kernel": normal(width, vocab_size), "bias": normal(vocab_size)},
        "in": normal(width, hidden),
        "times": normal(2, hidden),
        "out": normal(hidden, width),
    } | ({"told": normal(width, width)} if told else {})


def net(parameters: dict, chunk: int = 16, seen_by=backbone, **options) -> Net:
    return Net(seen_by, parameters, head_chunk=chunk, **options)


def probabilities(parameters: dict, x_BLV, tau_s, tau_t=None, estimate_BLV=None) -> jax.Array:
    """What the network says at a dense state, (B, L, V), by the formula."""
    table = parameters["embed"]["table"]
    estimate_BLD = None if estimate_BLV is None else jax.lax.stop_gradient(estimate_BLV @ table)
    features, _ = backbone(parameters, x_BLV @ table, tau_s, tau_t, None, None, estimate_BLD)
    raw = features @ parameters["head"]["kernel"] + parameters["head"]["bias"][None, None, :]
    return jax.nn.softmax(30.0 * jnp.tanh(raw / 30.0))


def sparsemax(scores: jax.Array) -> jax.Array:
    """The nearest point of the simplex, by sorting."""
    descending = jnp.sort(scores, axis=-1)[..., ::-1]
    rank = jnp.arange(1, scores.shape[-1] + 1).reshape((1,) * (scores.ndim - 1) + (-1,))
    excess = jnp.cumsum(descending, axis=-1) - 1.0
    support = jnp.sum(rank * descending > excess, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(excess, support - 1, axis=-1) / support
    return jnp.maximum(scores - threshold, 0.0)
