"""A denoiser where its noise is white: the coordinates in which the likelihood of text is bounded.

    u = x / (1 - t) in white coordinates  =  z + rho * a_y,   z ~ N(0, I_W),   rho = t / (1 - t)

In one-hot space a_y is the one-hot vector, W = V. In projected space, where a state is h = x @ E
with noise z @ R', a_y is the row y of A = E R^-T, W = D: that is all that the network sees, and
h = (1 - t) u @ R'. Nothing here knows how R was made, so its small eta changes nothing: this is an
exact Gaussian diffusion of the vectors a_y, with signal-to-noise ratio rho^2.

With p the prediction at u and time rho (docs/numerics.md, "Likelihood", has the derivations):

    variational bound    -log p(y) <= E[sum log 1/p(y_i | u_1)] + integral rho E|a_y - p A|^2 d rho
    flow                 du / d rho = p A,   d log density / d rho = -trace(d(p A) / du)
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.flow import noise as noise_lib
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.combination import one_hot
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import folded, normals
from flm_jax.flow.space import Projected, per_token

# (R (W, W), A (V, W)) of projected space; None: one-hot space, where both are the identity
Coordinates = tuple[jax.Array, jax.Array] | None


def coordinates(at: At) -> Coordinates:
    """What `Whitened` needs of the table, made once."""
    if not isinstance(at.space, Projected):
        return None
    table_VD = noise_lib.wide(at.student.table)
    factor_DD = noise_lib.factor([table_VD])
    # A solve, not an inverse: R is nearly singular where tokens have nearly the same row.
    white_DV = jax.scipy.linalg.solve_triangular(factor_DD, table_VD.T, lower=True)
    return factor_DD, white_DV.T


@dataclasses.dataclass(frozen=True)
class Whitened:
    """The student of ``at``, which is alone in its space, in white coordinates.

    ``rho_B`` are times (B,), one for each sequence.

    Attributes:
      passes: of a network with self-conditioning, each told what the one before it said.
    """

    at: At
    coordinates: Coordinates
    passes: int = 1

    @property
    def width(self) -> int:
        table_VD = self.at.student.table
        return table_VD.shape[0 if self.coordinates is None else 1]

    def noise(self, keys_B: jax.Array, length: int) -> jax.Array:
        """z, float32 (B, L, W)."""
        return normals(keys_B, length, self.width)

    def noisy(self, z_BLW: jax.Array, tokens_BL: jax.Array, rho_B: jax.Array) -> jax.Array:
        """u = z + rho * a_y."""
        return z_BLW + per_token(rho_B) * self._clean(tokens_BL, z_BLW.dtype)

    def posterior(self, u_BLW: jax.Array, rho_B: jax.Array) -> Posterior:
        """What the network says at u."""
        t_B = rho_B / (1.0 + rho_B)
        state = u_BLW / per_token(1.0 + rho_B)
        if self.coordinates is not None:
            state = noise_lib.seen(self.coordinates[0], state)
        return self.at.iterated(STUDENT, state, self.at.clock.to_tau(t_B), self.passes)

    def mean(self, posterior: Posterior) -> jax.Array:
        """p A, (B, L, W)."""
        # A tenth of a percent, as TF32 has it, would be an error that never falls with the noise.
        with jax.default_matmul_precision("highest"):
            if self.coordinates is None:
                return posterior.dense()
            return posterior.mean(self.coordinates[1])

    def squared_error(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """|a_y - p A|^2, (B, L)."""
        if self.coordinates is None:
            clean = one_hot(tokens_BL, posterior.head)
            return clean.squared_error_to(posterior.probability())
        mean_BLW = self.mean(posterior)
        return jnp.sum((mean_BLW - self._clean(tokens_BL, mean_BLW.dtype)) ** 2, axis=-1)

    def slope(
        self, u_BLW: jax.Array, rho_B: jax.Array, probe_BLW: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """du / d rho (B, L, W), and an estimate (B,) of its divergence, the trace of its Jacobian.

        The estimate is probe' J probe, whose mean is the trace for probes of independent signs.
        """
        mean_BLW, pull = jax.vjp(lambda u: self.mean(self.posterior(u, rho_B)), u_BLW)
        (pulled_BLW,) = pull(probe_BLW)
        return mean_BLW, jnp.sum(probe_BLW * pulled_BLW, axis=(1, 2))

    def back_to_noise(
        self, u_BLW: jax.Array, rho_K: jax.Array, keys_B: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """u at the last of the falling times ``rho_K``, and the integral (B,) of the divergence.

        Heun's rule for both, two evaluations with a backward pass each a step.
        """

        def step(carry, xs):
            u_BLW, integral_B = carry
            number, here, there = xs
            width = here - there
            first, first_B = self._probed(u_BLW, here, folded(keys_B, 2 * number))
            guess = u_BLW - width * first
            second, second_B = self._probed(guess, there, folded(keys_B, 2 * number + 1))
            u_BLW = u_BLW - 0.5 * width * (first + second)
            return (u_BLW, integral_B + 0.5 * width * (first_B + second_B)), None

        steps = jnp.arange(rho_K.shape[0] - 1), rho_K[:-1], rho_K[1:]
        start = u_BLW, jnp.zeros(u_BLW.shape[:1], u_BLW.dtype)
        return jax.lax.scan(step, start, steps)[0]

    def _probed(self, u_BLW, rho, keys_B):
        probe = jax.vmap(lambda key: jax.random.rademacher(key, u_BLW.shape[1:], u_BLW.dtype))
        rho_B = jnp.broadcast_to(rho, u_BLW.shape[:1])
        return self.slope(u_BLW, rho_B, probe(keys_B))

    def _clean(self, tokens_BL, dtype):
        if self.coordinates is None:
            return jax.nn.one_hot(tokens_BL, self.width, dtype=dtype)
        return self.coordinates[1][tokens_BL].astype(dtype)
