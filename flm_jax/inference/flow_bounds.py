"""Bounds on -log p of rows under a flow: variational, and by its ordinary differential equation.

Both live in white coordinates (`flow/whitened.py`), from pure noise to a time near the data, where
the network's posterior names the tokens. That last time, and where the others fall, are chosen by a
look at a few rows with noise of its own; whatever it chooses, the bounds are valid.

A flow map is taken on its diagonal, where it is a denoiser; its jumps have no bound. A network with
self-conditioning is asked twice at every time by the variational bound (told what it said), and
once, told nothing, by the other one: derivatives do not pass through what it is told.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.importance import Density, systematic
from flm_jax.flow.randomness import folded, sequence_keys, two_each
from flm_jax.flow.whitened import Whitened, coordinates
from flm_jax.host import numerics
from flm_jax.inference.by_rows import by_rows

if TYPE_CHECKING:
    from flm_jax.inference.model import FlowModel

# Times rho = t / (1 - t) that are looked at: at the first no token is known, at the last all are.
_LOOKED_AT = np.append(0.0, np.geomspace(0.05, 1000.0, 34))
_LOOKED_AT_ROWS = 32
_LOOK, _MEASURE = 0, 1  # of the noise


@dataclasses.dataclass(frozen=True)
class Found:
    """Nats of every row (N,), and the last time t of the flow that they are of."""

    nats_N: np.ndarray
    last_t: float


def variational(model: "FlowModel", tokens_NL: np.ndarray, times: int, seed: int) -> Found:
    """An unbiased estimate of the variational bound, from ``times`` random times a row and one."""
    rows = _Rows(model, passes=2 if model.config.model.self_conditioning else 1)
    density = rows.look(tokens_NL, seed)
    uniform_NT = systematic([seed, _MEASURE], len(tokens_NL), times)
    snr_NT, per_density_NT = density.quantile(uniform_NT)
    last_N = np.full(len(tokens_NL), np.sqrt(density.edges[-1]))
    rho_NT = np.column_stack([np.sqrt(snr_NT), last_N])
    error_NT, nll_NT = rows.measure(tokens_NL, rho_NT, np.arange(1, times + 2), seed)
    nats_N = 0.5 * (error_NT[:, :-1] * per_density_NT).mean(axis=1) + nll_NT[:, -1]
    return Found(nats_N, _t(last_N[0]))


def ode(model: "FlowModel", tokens_NL: np.ndarray, steps: int, seed: int) -> Found:
    """An estimate of the bound by the flow's own density, up to the error of ``steps`` steps."""
    rows = _Rows(model, passes=1)
    density = rows.look(tokens_NL, seed)
    snr_K, _ = density.quantile(np.linspace(1.0, 0.0, steps + 1))
    nats_N = rows.integrate(tokens_NL, np.sqrt(snr_K), seed)
    return Found(nats_N, _t(np.sqrt(density.edges[-1])))


def _t(rho: float) -> float:
    return float(rho / (1.0 + rho))


class _Rows:
    """What a flow says of noised rows; compiled once."""

    def __init__(self, model: "FlowModel", passes: int):
        self._experiment, self._params, self._passes = model.experiment, model.params, passes
        self._size = model.config.sampler.batch_size
        self._coordinates = jax.jit(lambda params: coordinates(self._at(params)))(model.params)

    def look(self, tokens_NL: np.ndarray, seed: int) -> Density:
        """Where times should fall, in rho^2: up to that at which the variational bound is smallest.

        Later both bounds pay for errors of the network that samplers do not notice.
        """
        tokens_NL = tokens_NL[:_LOOKED_AT_ROWS]
        rho_NK = np.broadcast_to(_LOOKED_AT, (len(tokens_NL), len(_LOOKED_AT)))
        # The same noise at all times: only then are their differences those of the times.
        error_NK, nll_NK = self.measure(tokens_NL, rho_NK, np.full(len(_LOOKED_AT), _LOOK), seed)
        error_K, snr_K = error_NK.mean(axis=0), _LOOKED_AT**2
        parts = 0.25 * (error_K[1:] + error_K[:-1]) * np.diff(snr_K)
        bound_K = np.append(0.0, np.cumsum(parts)) + nll_NK.mean(axis=0)
        last = 1 + int(np.argmin(bound_K[1:]))
        sizes_K = np.sqrt((error_NK**2).mean(axis=0))
        return Density.like(snr_K[: last + 1], sizes_K[: last + 1])

    def measure(
        self, tokens_NL: np.ndarray, rho_NT: np.ndarray, noise_T: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """|a_y - p A|^2 and -log p(y), summed over the row, (N, T) each.

        ``noise_T`` numbers the noise of every time.
        """
        key = numerics.key(seed)

        def of_batch(tokens_BL, index_B, rho_BT):
            args = self._params, self._coordinates, tokens_BL, key, index_B
            columns = [
                self._measured(*args, number, rho_B)
                for number, rho_B in zip(noise_T, rho_BT.T, strict=True)
            ]
            return tuple(np.stack(values, axis=1) for values in zip(*columns, strict=True))

        rho_NT = rho_NT.astype(np.float32)
        return by_rows(of_batch, self._size, "bounding likelihood", tokens_NL, rho_NT)

    def integrate(self, tokens_NL: np.ndarray, rho_K: np.ndarray, seed: int) -> np.ndarray:
        """-log p(y | u) + log q(u | y) - log density(u) at the first of falling times, (N,)."""
        key, rho_K = numerics.key(seed), rho_K.astype(np.float32)

        def of_batch(tokens_BL, index_B):
            args = self._params, self._coordinates, tokens_BL, key, index_B
            return self._integrated(*args, rho_K)

        return by_rows(of_batch, self._size, "integrating the flow", tokens_NL)

    @functools.cached_property
    def _measured(self):
        def measured(params, coordinates, tokens_BL, key, index_B, number, rho_B):
            flow = Whitened(self._at(params), coordinates, self._passes)
            keys_B = folded(sequence_keys(key, index_B), number)
            u_BLW = flow.noisy(flow.noise(keys_B, tokens_BL.shape[1]), tokens_BL, rho_B)
            posterior = flow.posterior(u_BLW, rho_B)
            error_BL = flow.squared_error(posterior, tokens_BL)
            return error_BL.sum(axis=1), -posterior.log_prob(tokens_BL).sum(axis=1)

        return jax.jit(measured)

    @functools.cached_property
    def _integrated(self):
        def integrated(params, coordinates, tokens_BL, key, index_B, rho_K):
            flow = Whitened(self._at(params), coordinates)
            keys_B, probe_keys_B = two_each(folded(sequence_keys(key, index_B), _MEASURE))
            z_BLW = flow.noise(keys_B, tokens_BL.shape[1])
            rho_B = jnp.broadcast_to(rho_K[0], index_B.shape)
            u_BLW = flow.noisy(z_BLW, tokens_BL, rho_B)
            nll_BL = -flow.posterior(u_BLW, rho_B).log_prob(tokens_BL)
            start_BLW, divergence_B = flow.back_to_noise(u_BLW, rho_K, probe_keys_B)
            # A product of sum and difference: their squares are large, and nearly the same.
            prior_B = 0.5 * jnp.sum((start_BLW - z_BLW) * (start_BLW + z_BLW), axis=(1, 2))
            return nll_BL.sum(axis=1) + prior_B + divergence_B

        return jax.jit(integrated)

    def _at(self, params) -> At:
        net = self._experiment.denoiser(params)
        space = self._experiment.space({STUDENT: net.table})
        return At({STUDENT: net}, space, self._experiment.clock)
