"""-log p of rows under the baselines: bounds of diffusions on tokens, the exact value of a chain.

The first token of a row is given to masked diffusion and to autoregressive models; uniform
diffusion cannot be told, so that its bound is that of the whole row, which is not smaller.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import discrete
from flm_jax.flow.importance import systematic
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import folded, random_tokens, sequence_keys, two_each, uniforms
from flm_jax.host import numerics
from flm_jax.inference.by_rows import by_rows
from flm_jax.losses import uniform_diffusion
from flm_jax.losses.autoregressive import Autoregressive

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel

_PLAIN = 0.25  # share of the draws of uniform diffusion in which no token is surely another


def exact(model: "FlowModel", tokens_NL: np.ndarray) -> np.ndarray:
    """-log p of every row given its first token, (N,)."""

    @jax.jit
    def nats(params, tokens_BL):
        return Autoregressive().next_token(model.net(params), tokens_BL).sum(axis=1)

    def of_batch(tokens_BL, index_B):
        return nats(model.params, tokens_BL)

    return by_rows(of_batch, model.config.sampler.batch_size, "scoring", tokens_NL)


def masked(model: "FlowModel", tokens_NL: np.ndarray, times: int, seed: int) -> np.ndarray:
    """An unbiased estimate of the bound of every row given its first token, (N,).

    With m = 1 - alpha for the time, the bound of any schedule from all to nothing is

        integral over m from 0 to 1 of E[sum of -log p over masked tokens] / m
            =  M * mean over k = 1 ... M of E[mean of -log p over k masked tokens],

    because k of M tokens are masked with the binomial probability, and its integral with 1 / m is
    1 / k. So numbers k are drawn, not times: no large weight, and no variance from k given m.
    """
    count, inner = len(tokens_NL), tokens_NL.shape[1] - 1
    key = numerics.key(seed)

    @jax.jit
    def nats(params, tokens_BL, index_B, number, k_B):
        keys_B = folded(sequence_keys(key, index_B), number)
        order_BM = jnp.argsort(uniforms(keys_B, inner), axis=1)
        masked_BM = jnp.argsort(order_BM, axis=1) < k_B[:, None]
        masked_BL = jnp.pad(masked_BM, ((0, 0), (1, 0)))
        output = discrete.predict_masked(model.net(params), tokens_BL, masked_BL)
        nll_BL = -output.posterior.log_prob(tokens_BL)
        return inner / k_B * jnp.where(masked_BL, nll_BL, 0.0).sum(axis=1)

    def of_batch(tokens_BL, index_B, k_BT):
        parts = [nats(model.params, tokens_BL, index_B, j, k_B) for j, k_B in enumerate(k_BT.T)]
        return np.mean(parts, axis=0)

    k_NT = 1 + np.floor(systematic([seed], count, times) * inner).astype(np.int32)
    return by_rows(of_batch, model.config.sampler.batch_size, "bounding", tokens_NL, k_NT)


def uniform(model: "FlowModel", tokens_NL: np.ndarray, times: int, seed: int) -> np.ndarray:
    """An unbiased estimate of the bound of every row, (N,).

    The integral over t from 1e-3 (official trainings see no less) to 1, -log p of the text given
    what is seen at 1e-3, and what tells the tokens at 1 from uniform ones.

    At small times hardly a token is another one, and those that are count 1 / t. So with m = 1 -
    alpha and k of L tokens drawn anew, one of them is drawn anew for sure, but in a share `_PLAIN`
    of the draws; relative to that k is as probable as

        1 / ((1 - _PLAIN) k / (L m) + _PLAIN)

    to one, which is the weight of a draw: none is large. At 1e-3 the text as it is counts apart.
    """
    count, length = tokens_NL.shape
    key = numerics.key(seed)

    @jax.jit
    def measured(params, tokens_BL, index_B, number, t_B, plain):
        net, alpha_B = model.net(params), discrete.alpha(t_B)
        keys_move, keys_anywhere = two_each(folded(sequence_keys(key, index_B), number))
        keys_move, keys_sure = two_each(keys_move)
        moved_BL = uniforms(keys_move, length) < 1.0 - alpha_B[:, None]
        sure_B2 = uniforms(keys_sure, 2)
        sure_BL = jnp.arange(length)[None] == jnp.floor(sure_B2[:, :1] * length)
        moved_BL |= sure_BL & (sure_B2[:, 1:] >= plain)
        share_B = moved_BL.mean(axis=1) / (1.0 - alpha_B)
        weight_B = 1.0 / ((1.0 - plain) * share_B + plain)
        anywhere_BL = random_tokens(keys_anywhere, length, net.table.shape[0])
        seen_BL = jnp.where(moved_BL, anywhere_BL, tokens_BL)
        posterior = net(net.table[seen_BL], -jnp.log(alpha_B)).posterior
        loss_BL = uniform_diffusion.bound(posterior, tokens_BL, seen_BL, alpha_B, discrete.RATE)
        nll_BL = _named(posterior, tokens_BL, seen_BL, alpha_B[:, None])
        return weight_B * loss_BL.sum(axis=1), weight_B * nll_BL.sum(axis=1)

    @jax.jit
    def unmoved(params, tokens_BL, t_B):
        net, alpha_B = model.net(params), discrete.alpha(t_B)
        posterior = net(net.table[tokens_BL], -jnp.log(alpha_B)).posterior
        nll_BL = _named(posterior, tokens_BL, tokens_BL, alpha_B[:, None])
        return alpha_B**length * nll_BL.sum(axis=1)

    def of_batch(tokens_BL, index_B, t_BT):
        row = model.params, tokens_BL, index_B
        loss_BT = [measured(*row, j, t_B, _PLAIN)[0] for j, t_B in enumerate(t_BT.T)]
        first_B = np.full(len(index_B), discrete.EPS, np.float32)
        _, nll_B = measured(*row, times, first_B, 0.0)
        nll_B += unmoved(model.params, tokens_BL, first_B)
        return np.mean(loss_BT, axis=0) * (1.0 - discrete.EPS) + nll_B

    t_NT = discrete.EPS + (1.0 - discrete.EPS) * systematic([seed], count, times)
    size = model.config.sampler.batch_size
    nats_N = by_rows(of_batch, size, "bounding", tokens_NL, t_NT.astype(np.float32))
    return nats_N + length * _left_at_the_end(model.experiment.model.vocab_size)


def _named(
    posterior: Posterior, tokens_BL: jax.Array, seen_BL: jax.Array, alpha_B1: jax.Array
) -> jax.Array:
    """-log q(y | x_t) of the last step of uniform diffusion, (B, L).

    The prediction p is of each token given the others; times the probability of what is seen.
    """
    of_same = alpha_B1 * posterior.head.vocab_size
    own_BL = jnp.where(tokens_BL == seen_BL, of_same, 0.0) + 1.0 - alpha_B1
    of_seen_BL = of_same * jnp.exp(posterior.log_prob(seen_BL)) + 1.0 - alpha_B1
    return jnp.log(of_seen_BL / own_BL) - posterior.log_prob(tokens_BL)


def _left_at_the_end(vocab_size: int) -> float:
    """KL divergence from uniform tokens of one that is still itself with probability alpha(1)."""
    other = (1.0 - discrete.EPS) / vocab_size
    same = discrete.EPS + other
    return same * np.log(vocab_size * same) + (vocab_size - 1) * other * np.log(vocab_size * other)
