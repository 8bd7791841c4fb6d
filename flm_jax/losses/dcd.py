"""Discrete consistency distillation of uniform-state diffusion, the baseline DCD.

One Gaussian noise gives a token at every time, the arg max of a latent that moves from the token to
the noise:

    x_t = argmax_V (a_t e_y + b_t noise),   a_t^2 = sigmoid(-gamma_t),  b_t^2 = sigmoid(gamma_t)
    loss = KL(student(x_t) || teacher(x_s)),   s = t - dt,  the same noise

for all positions; the teacher is that of the round, gamma is linear in t (Sahoo et al. 2025, "The
diffusion duality", arXiv 2506.10892). The networks get -log alpha as their time, where alpha is the
decoding accuracy of the flow's clock, as in `losses/uniform_diffusion.py`.

**No noise over the vocabulary.** The rivals of y see the noise at both times, so that only the
largest of them counts: x = y where a + b z > b m, else the rival j, with z ~ N(0, 1), j uniform
over the other V - 1 tokens and m the largest of V - 1 normals, whose law is Phi(m) = u^(1/(V-1)).
Three numbers a token, the same law. A token moves at most once on its way.

The model must be one of uniform diffusion (`config.teacher`), the sampler is `ancestral_uniform`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.at import TEACHER, At
from flm_jax.flow.clock import Clock
from flm_jax.flow.randomness import normals, random_tokens, two_each, uniforms
from flm_jax.flow.space import Space
from flm_jax.losses.base import Batch
from flm_jax.losses.rounds import Compared, Rounds
from flm_jax.losses.token_diffusion import refuse_weight


@dataclasses.dataclass(frozen=True)
class DCD(Rounds):
    """The divergence from what the teacher says of the same text with less noise.

    The attributes of `Rounds` (5 rounds, from 1/512 to 1/32), and these.

    Attributes:
      gamma_min: log of the latent's noise over signal (variances) at t = 0.
      gamma_max: the same at t = 1.
      linear_over: if above 0, dt grows from ``dt_min`` to ``dt_max`` in so many updates, steadily;
        rounds replace the teacher only.
    """

    gamma_min: float = -4.0
    gamma_max: float = -1.0
    linear_over: int = 0
    dt_min: float = 0.001
    dt_max: float = 0.25

    def __post_init__(self):
        super().__post_init__()
        if not self.gamma_min < self.gamma_max:
            raise UserError(
                f"gamma_min={self.gamma_min} must be below gamma_max={self.gamma_max}; "
                "official: -4.0 and -1.0"
            )
        if self.linear_over < 0:
            raise UserError(
                f"linear_over={self.linear_over} must be a number of updates, or 0 for a dt that "
                "grows from round to round"
            )
        if not 0.0 <= self.dt_min <= self.dt_max <= 1.0:
            raise UserError(
                f"dt_min={self.dt_min}, dt_max={self.dt_max}: need 0 <= dt_min <= dt_max <= 1"
            )

    @property
    def needs(self) -> Needs:
        return Needs(starts_as=("uniform_diffusion", "uniform_curriculum", "dcd"))

    @property
    def growth(self) -> int:
        return 2

    def dt(self, updates: jax.Array) -> jax.Array:
        if not self.linear_over:
            return super().dt(updates)
        share = jnp.minimum(updates.astype(jnp.result_type(float)) / self.linear_over, 1.0)
        return self.dt_min + share * (self.dt_max - self.dt_min)

    def draw_tokens(self, keys_B: jax.Array, length: int, space: Space) -> dict[str, jax.Array]:
        others = space.tables["student"].shape[0] - 1
        keys_signal, keys_rivals = two_each(keys_B)
        keys_largest, keys_which = two_each(keys_rivals)
        return {
            "signal": normals(keys_signal, length, 1)[..., 0],
            "largest": discrete.largest_of_normals(uniforms(keys_largest, length), others),
            "rival": random_tokens(keys_which, length, others),
        }

    def compare(
        self,
        at: At,
        batch: Batch,
        draws: dict[str, jax.Array],
        t_B: jax.Array,
        dt: jax.Array,
    ) -> Compared:
        t_B = jnp.minimum(t_B + dt, 1.0)
        student, teacher = at.student, at.nets[TEACHER]
        size = student.table.shape[0]
        now_BL = self.seen(draws, batch.tokens_BL, t_B, size)
        before_BL = self.seen(draws, batch.tokens_BL, t_B - dt, size)
        sigma_t, sigma_s = (-jnp.log(self.alpha(t, at.clock)) for t in (t_B, t_B - dt))
        output = student(student.table[now_BL], sigma_t, key=draws.get("dropout"))
        refuse_weight(output.log_weight, "dcd")
        target = teacher(teacher.table[before_BL], sigma_s).posterior
        return Compared(output.posterior, target, jnp.ones(now_BL.shape, bool))

    def gamma(self, t_B: jax.Array) -> jax.Array:
        return self.gamma_min + t_B * (self.gamma_max - self.gamma_min)

    def alpha(self, t_B: jax.Array, clock: Clock) -> jax.Array:
        return discrete.alpha_of_latent(self.gamma(t_B), clock)

    def seen(
        self, draws: dict[str, jax.Array], tokens_BL: jax.Array, t_B: jax.Array, vocab_size: int
    ) -> jax.Array:
        """x_t, int32 (B, L)."""
        rival_BL = (tokens_BL + 1 + draws["rival"]) % vocab_size
        signal_B, noise_B = discrete.parts_of_latent(self.gamma(t_B))
        token_BL = signal_B[:, None] + noise_B[:, None] * draws["signal"]
        return jnp.where(token_BL > noise_B[:, None] * draws["largest"], tokens_BL, rival_BL)
