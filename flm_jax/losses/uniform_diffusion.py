"""Uniform-state diffusion, the baseline Duo: a likelihood bound, and the curriculum before it.

    t ~ U[t_min, 1] stratified (t = 1 is noise),   alpha_t = 1 - (1 - 1e-3) t
    x_t = a uniformly drawn token with probability 1 - alpha_t, else the token y

The network gets -log alpha_t as its time. With v(p) = V alpha_t p + 1 - alpha_t, i = x_t, and the
ratios r_j = v(e_y)_j / v(e_y)_i (true) and s_j = v(p)_j / v(p)_i (predicted),

    loss = -alpha'_t / (V alpha_t) * sum_j [s_j - r_j + r_j log(r_j / s_j)]  >= 0

(Sahoo et al. 2025, "The diffusion duality", written as a score entropy). The mean over tokens is an
upper bound on the negative log-likelihood. Of the sum over the vocabulary three numbers are
needed, so that it is taken chunk by chunk like every other one.

**Curriculum.** The arg max of a Gaussian latent a * e_y + b * noise is a uniform-state chain with
alpha = tau(a / (a + b)), the decoding accuracy of the flow's own clock. Early training shows the
network the latent's softmax at a low temperature instead of its arg max, which lowers the
variance. It needs the latent itself, an array (B, L, V). It is a loss of its own: train with it
first, then go on with ``uniform_diffusion`` (``init_from``).
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.at import At
from flm_jax.flow.clock import Clock
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import normals, random_tokens, two_each, uniforms
from flm_jax.flow.space import Space, per_token
from flm_jax.flow.vocabulary import first_largest
from flm_jax.losses.base import Batch
from flm_jax.losses.token_diffusion import BoundLoss, refuse_weight


@dataclasses.dataclass(frozen=True)
class UniformDiffusion(BoundLoss):
    """The bound at a random time, with the sum over the next state taken exactly."""

    def draw_tokens(self, keys_B: jax.Array, length: int, space: Space) -> dict[str, jax.Array]:
        vocab_size = space.tables["student"].shape[0]
        keys_move, keys_anywhere = two_each(keys_B)
        return {
            "move": uniforms(keys_move, length),
            "anywhere": random_tokens(keys_anywhere, length, vocab_size),
        }

    def losses(
        self, at: At, batch: Batch, draws: dict[str, jax.Array], t_B: jax.Array
    ) -> jax.Array:
        net, alpha_B = at.student, discrete.alpha(t_B)
        seen_BL = self.seen(draws, batch.tokens_BL, t_B)
        output = net(net.table[seen_BL], -jnp.log(alpha_B), key=draws.get("dropout"))
        refuse_weight(output.log_weight, "uniform_diffusion")
        return bound(output.posterior, batch.tokens_BL, seen_BL, alpha_B, discrete.RATE)

    def seen(self, draws: dict[str, jax.Array], tokens_BL: jax.Array, t_B: jax.Array) -> jax.Array:
        """x_t, int32 (B, L)."""
        moved_BL = draws["move"] < 1.0 - discrete.alpha(t_B)[:, None]
        return jnp.where(moved_BL, draws["anywhere"], tokens_BL)


@dataclasses.dataclass(frozen=True)
class UniformCurriculum(UniformDiffusion):
    """The same loss while the network sees relaxed tokens, in a narrow range of noise.

    Attributes:
      gamma_min: log of the latent's noise over signal (variances) at t = 0.
      gamma_max: the same at t = 1.
      temperature: of the softmax of the latent.
      softmax: False shows the latent divided by the temperature, without a softmax.
    """

    gamma_min: float = -3.5
    gamma_max: float = -1.75
    temperature: float = 1e-3
    softmax: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.gamma_min < self.gamma_max:
            raise UserError(
                f"gamma_min={self.gamma_min} must be below gamma_max={self.gamma_max}; "
                "official: -3.5 and -1.75"
            )
        if not self.temperature > 0.0:
            raise UserError(f"temperature={self.temperature} must be above 0; official: 0.001")

    def draw_tokens(self, keys_B: jax.Array, length: int, space: Space) -> dict[str, jax.Array]:
        return {"noise": normals(keys_B, length, space.tables["student"].shape[0])}

    def losses(
        self, at: At, batch: Batch, draws: dict[str, jax.Array], t_B: jax.Array
    ) -> jax.Array:
        net = at.student
        alpha_B, rate_B = self.schedule(t_B, at.clock)
        latent_BLV = self.latent(draws["noise"], batch.tokens_BL, t_B)
        shown_BLV = jax.nn.softmax(latent_BLV, axis=-1) if self.softmax else latent_BLV
        h_BLD = jnp.matmul(shown_BLV, net.table.astype(shown_BLV.dtype))
        output = net(h_BLD, -jnp.log(alpha_B), key=draws.get("dropout"))
        refuse_weight(output.log_weight, "uniform_curriculum")
        seen_BL = first_largest(latent_BLV)
        return bound(output.posterior, batch.tokens_BL, seen_BL, alpha_B, rate_B)

    def gamma(self, t_B: jax.Array) -> jax.Array:
        return self.gamma_min + t_B * (self.gamma_max - self.gamma_min)

    def latent(self, noise_BLV: jax.Array, tokens_BL: jax.Array, t_B: jax.Array) -> jax.Array:
        """(a * e_y + b * noise) / temperature with a^2 + b^2 = 1, (B, L, V)."""
        gamma_B = self.gamma(t_B)
        signal_B, noise_B = discrete.parts_of_latent(gamma_B)
        clean_BLV = jax.nn.one_hot(tokens_BL, noise_BLV.shape[-1], dtype=noise_BLV.dtype)
        latent_BLV = per_token(signal_B) * clean_BLV + per_token(noise_B) * noise_BLV
        return latent_BLV / self.temperature

    def schedule(self, t_B: jax.Array, clock: Clock) -> tuple[jax.Array, jax.Array]:
        """(alpha_t, -d alpha / dt) of the arg max of the latent, (B,) each."""
        alpha_B = discrete.alpha_of_latent(self.gamma(t_B), clock)
        u_B = discrete.time_of_latent(self.gamma(t_B))
        slope_B = clock.dtau_dt(u_B) * 0.5 * u_B * (1.0 - u_B)
        return alpha_B, slope_B * (self.gamma_max - self.gamma_min)


def bound(
    posterior: Posterior,
    tokens_BL: jax.Array,
    seen_BL: jax.Array,
    alpha_B: jax.Array,
    rate_B: jax.Array | float,
) -> jax.Array:
    """The loss of every token, (B, L), for -alpha' = ``rate_B``."""
    vocab_size = posterior.head.vocab_size
    alpha_BL = jnp.broadcast_to(alpha_B[:, None], tokens_BL.shape)
    rate_BL = jnp.broadcast_to(jnp.asarray(rate_B, alpha_B.dtype), alpha_B.shape)[:, None]
    sum_BL, clean_BL, seen_log_BL = log_values(posterior, tokens_BL, seen_BL, alpha_BL)

    noise_BL = 1.0 - alpha_BL
    at_clean_BL = noise_BL + vocab_size * alpha_BL  # the two values of v(e_y)
    at_seen_BL = jnp.where(tokens_BL == seen_BL, at_clean_BL, noise_BL)
    ratio_BL, ratio_clean_BL = noise_BL / at_seen_BL, at_clean_BL / at_seen_BL
    difference = vocab_size * (jnp.exp(-seen_log_BL) - 1.0 / at_seen_BL)  # of sum s and sum r
    entropy = (vocab_size - 1) * ratio_BL * jnp.log(ratio_BL)
    entropy = entropy + ratio_clean_BL * jnp.log(ratio_clean_BL)
    cross = ratio_BL * (sum_BL - clean_BL) + ratio_clean_BL * clean_BL
    cross = cross - vocab_size / at_seen_BL * seen_log_BL
    return rate_BL / (vocab_size * alpha_BL) * (difference + entropy - cross)


def log_values(
    posterior: Posterior, tokens_BL: jax.Array, seen_BL: jax.Array, alpha_BL: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log v(p) summed over the vocabulary, at the clean token and at the seen one, (B, L) each."""
    vocab_size = posterior.head.vocab_size

    def chunk(logits, tokens, seen, alpha):
        p = jax.nn.softmax(logits, axis=-1)
        values = jnp.log(vocab_size * alpha[..., None] * p + (1.0 - alpha[..., None]))
        vocabulary = jnp.arange(vocab_size, dtype=tokens.dtype)[None, None, :]

        def pick(at):
            return jnp.sum(jnp.where(vocabulary == at[..., None], values, 0.0), axis=-1)

        return jnp.sum(values, axis=-1), pick(tokens), pick(seen)

    return posterior.each_chunk(chunk, tokens_BL, seen_BL, alpha_BL)
