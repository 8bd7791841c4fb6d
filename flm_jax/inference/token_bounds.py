"""-log p of rows under the baselines: bounds of diffusions on tokens, the exact value of a chain.

The first token of a row is given to masked diffusion and to autoregressive models; uniform
diffusion cannot be told, so that its bound is that of the whole row, which is not smaller.
"""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import discrete
from flm_jax.flow.importance import Density, systematic
from flm_jax.flow.randomness import folded, random_tokens, sequence_keys, two_each, uniforms
from flm_jax.host import numerics
from flm_jax.inference.by_rows import by_rows
from flm_jax.losses import uniform_diffusion
from flm_jax.losses.autoregressive import Autoregressive

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel

# Times of uniform diffusion that are looked at; official trainings see none below the first.
_LOOKED_AT = np.geomspace(discrete.EPS, 1.0, 16)
_LOOKED_AT_ROWS = 32
_LOOK, _MEASURE = 0, 1  # of the random tokens


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

    The integral over t from 1e-3 to 1, -log p of the text seen at 1e-3, and what separates the
    tokens at 1 from uniform ones. Times are chosen by a look at a few rows with draws of its own.
    """
    size, key = model.config.sampler.batch_size, numerics.key(seed)

    @jax.jit
    def measured(params, tokens_BL, index_B, number, t_B):
        net, alpha_B = model.net(params), discrete.alpha(t_B)
        keys_move, keys_anywhere = two_each(folded(sequence_keys(key, index_B), number))
        moved_BL = uniforms(keys_move, tokens_BL.shape[1]) < 1.0 - alpha_B[:, None]
        anywhere_BL = random_tokens(keys_anywhere, tokens_BL.shape[1], net.table.shape[0])
        seen_BL = jnp.where(moved_BL, anywhere_BL, tokens_BL)
        posterior = net(net.table[seen_BL], -jnp.log(alpha_B)).posterior
        loss_BL = uniform_diffusion.bound(posterior, tokens_BL, seen_BL, alpha_B, discrete.RATE)
        return loss_BL.sum(axis=1), -posterior.log_prob(tokens_BL).sum(axis=1)

    def measure(tokens_NL, t_NT, draws_T):
        def of_batch(tokens_BL, index_B, t_BT):
            columns = [
                measured(model.params, tokens_BL, index_B, number, t_B)
                for number, t_B in zip(draws_T, t_BT.T, strict=True)
            ]
            return tuple(np.stack(values, axis=1) for values in zip(*columns, strict=True))

        return by_rows(of_batch, size, "bounding", tokens_NL, t_NT.astype(np.float32))

    few_NL = tokens_NL[:_LOOKED_AT_ROWS]
    t_NK = np.broadcast_to(_LOOKED_AT, (len(few_NL), len(_LOOKED_AT)))
    look_NK, _ = measure(few_NL, t_NK, np.full(len(_LOOKED_AT), _LOOK))
    density = Density.like(_LOOKED_AT, np.sqrt((look_NK**2).mean(axis=0)))

    uniform_NT = systematic([seed, _MEASURE], len(tokens_NL), times)
    t_NT, per_density_NT = density.quantile(uniform_NT)
    first_N1 = np.full((len(tokens_NL), 1), _LOOKED_AT[0])
    t_NT = np.concatenate([t_NT, first_N1], axis=1)
    loss_NT, nll_NT = measure(tokens_NL, t_NT, np.arange(1, times + 2))
    prior = tokens_NL.shape[1] * _left_at_the_end(model.experiment.model.vocab_size)
    return (loss_NT[:, :-1] * per_density_NT).mean(axis=1) + nll_NT[:, -1] + prior


def _left_at_the_end(vocab_size: int) -> float:
    """KL divergence from uniform tokens of one that is still itself with probability alpha(1)."""
    other = (1.0 - discrete.EPS) / vocab_size
    same = discrete.EPS + other
    return same * np.log(vocab_size * same) + (vocab_size - 1) * other * np.log(vocab_size * other)
