"""Ancestral sampling of diffusions on tokens: the baselines MDLM (masked) and Duo (uniform).

The state is tokens int32 (B, L), not a point in a vector space, so these samplers bring their own
loop, `run`, with the arguments of `samplers.base.sample`. ``steps`` network evaluations divide
t = 1 ... 0 evenly; the last one goes to t = 0, where no noise is left.

Every step is drawn from the exact distribution q(x_s | x_t, p), but never as one race between all
tokens: first where a token comes from (it stays, it is predicted, it jumps), by one uniform, and
then which token, from p itself. One float32 race over the whole of q cuts the tails of p, the
more the smaller the steps, which acts like a lower temperature: published perplexities of masked
diffusion looked too good for that reason.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.clock import Clock
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior, nucleus, over_chunks
from flm_jax.samplers.base import Decode, Space, Trajectory


@dataclasses.dataclass(frozen=True)
class TokenSampler:
    """What samplers on tokens have in common. Every token is drawn, none is an arg max.

    The temperature of every draw is that of the denoiser (``sampler.denoiser_temperature``).

    Attributes:
      top_p: nucleus of every draw from a prediction, in (0, 1].
    """

    top_p: float = 1.0

    stochastic: ClassVar[bool] = True
    needs_two_times: ClassVar[bool] = False
    needs_causal: ClassVar[bool] = False
    needs_mask_token: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = False  # a step writes one token: length - 1 steps, no other number

    def __post_init__(self):
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"sampler option top_p={self.top_p} must be in (0, 1]; 1 = off")

    def check_vocabulary(self, size: int) -> None:
        """UserError for options that do not fit a vocabulary of ``size`` tokens."""

    def without_effect(
        self, temperature: float, top_p: float, prior_scale: float, grid_power: float
    ) -> list[str]:
        """A sentence for every knob of continuous samplers that is set and would do nothing here.

        ``temperature`` and ``top_p`` are those of the last decode.
        """
        problems = []
        if temperature != 0.0 or top_p != 1.0:
            problems.append(
                f"temperature={temperature:g} and top_p={top_p:g} of the last decode have no "
                "effect on a sampler that draws every token; set denoiser_temperature or the "
                "sampler's option top_p instead"
            )
        for name, value in (("prior_scale", prior_scale), ("grid_power", grid_power)):
            if value != 1.0:
                problems.append(
                    f"{name}={value:g} has no effect on a sampler of tokens; leave it at 1"
                )
        return problems

    def refuse(self, decode: Decode, prior_scale: float, grid_power: float) -> None:
        """UserError for what `without_effect` finds among the arguments of `run`."""
        problems = self.without_effect(decode.temperature, decode.top_p, prior_scale, grid_power)
        if problems:
            raise UserError("\n".join(problems))

    def predict(self, posterior: Posterior, keys_B: jax.Array) -> jax.Array:
        """Tokens drawn from the prediction, (B, L)."""
        return posterior.sample(keys_B, top_p=self.top_p)


@dataclasses.dataclass(frozen=True)
class Ancestral(TokenSampler):
    """The loop from t = 1 to t = 0; a subclass says where it starts and how it steps."""

    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        """The tokens at t = 1, (B, L)."""
        raise NotImplementedError

    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        """The prediction of the clean tokens; ``alpha_t`` is a scalar."""
        raise NotImplementedError

    def step(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        alpha_t: jax.Array,
        alpha_s: jax.Array,
        keys_B: jax.Array,
    ) -> jax.Array:
        """The tokens at the earlier time s, drawn given those at t and the prediction."""
        raise NotImplementedError

    def observe(self, posterior: Posterior, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The most probable clean tokens and their probabilities, (B, L) each."""
        likely_BL = posterior.argmax()
        return likely_BL, jnp.exp(posterior.log_prob(likely_BL))

    def run(
        self,
        nets: Mapping[str, Net],
        space: Space,
        clock: Clock,
        keys_B: jax.Array,
        *,
        steps: int,
        length: int,
        decode: Decode = Decode(),  # noqa: B008  (frozen)
        prior_scale: float = 1.0,
        grid_power: float = 1.0,
        start: jax.Array | None = None,
        trajectory: bool = False,
        bos_id: int | None = None,
    ) -> tuple[jax.Array, Trajectory | None]:
        """Tokens int32 (B, L) after ``steps`` network evaluations; see `samplers.base.sample`.

        The trajectory's ``states`` are tokens (S + 1, B, L), its times run from 0 (noise) to 1.

        Args:
          start: given tokens (B, L) at t = 1.
          bos_id: not used; all positions are diffused.

        Raises UserError for knobs that only samplers of vectors have.
        """
        self.refuse(decode, prior_scale, grid_power)
        net = nets["student"]
        keys_start, keys_steps = (
            jax.vmap(jax.random.fold_in, (0, None))(keys_B, i) for i in range(2)
        )
        if start is None:
            start = self.start(net, keys_start, length)
        progress = jnp.arange(steps + 1) / steps
        alphas = discrete.alpha(1.0 - progress)

        def step(tokens_BL, i):
            posterior = self.posterior(net, tokens_BL, alphas[i])
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys_steps, i)
            after_BL = self.step(posterior, tokens_BL, alphas[i], alphas[i + 1], keys)
            if not trajectory:
                return after_BL, None
            return after_BL, (tokens_BL, *self.observe(posterior, tokens_BL))

        tokens_BL, seen = jax.lax.scan(step, start, jnp.arange(steps))
        if not trajectory:
            return tokens_BL, None
        states = jnp.concatenate([seen[0], tokens_BL[None]])
        return tokens_BL, Trajectory(progress[:-1], progress[:-1], states, *seen[1:])


@dataclasses.dataclass(frozen=True)
class AncestralMasked(Ancestral):
    """From all masks: a masked token shows itself with probability (a_s - a_t) / (1 - a_t)."""

    needs_mask_token: ClassVar[bool] = True

    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        return jnp.full((keys_B.shape[0], length), net.table.shape[0] - 1, jnp.int32)

    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        time_B = jnp.zeros(tokens_BL.shape[:1], net.table.dtype)
        return discrete.without_mask(net(net.table[tokens_BL], time_B).posterior)

    def step(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        alpha_t: jax.Array,
        alpha_s: jax.Array,
        keys_B: jax.Array,
    ) -> jax.Array:
        keys_where, keys_which = _two(keys_B)
        u_BL = discrete.uniforms(keys_where, tokens_BL.shape[1])
        shown_BL = u_BL < discrete.unmask_probability(alpha_t, alpha_s)
        predicted_BL = self.predict(posterior, keys_which)
        return jnp.where(self.masked(posterior, tokens_BL) & shown_BL, predicted_BL, tokens_BL)

    def observe(self, posterior: Posterior, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        likely_BL, p_BL = super().observe(posterior, tokens_BL)
        masked_BL = self.masked(posterior, tokens_BL)
        return jnp.where(masked_BL, likely_BL, tokens_BL), jnp.where(masked_BL, p_BL, 1.0)

    def masked(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """Which tokens are the mask: the token after all that can be predicted."""
        return tokens_BL == posterior.head.vocab_size


@dataclasses.dataclass(frozen=True)
class AncestralUniform(Ancestral):
    """From uniformly drawn tokens: a token stays, is predicted anew, or jumps anywhere."""

    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        return discrete.anywhere(keys_B, length, net.table.shape[0])

    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        sigma_B = jnp.broadcast_to(-jnp.log(alpha_t), tokens_BL.shape[:1])
        return net(net.table[tokens_BL], sigma_B).posterior

    def step(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        alpha_t: jax.Array,
        alpha_s: jax.Array,
        keys_B: jax.Array,
    ) -> jax.Array:
        keys_where, keys_which = _two(keys_B)
        keys_jump, keys_predict = _two(keys_which)
        vocab_size, length = posterior.head.vocab_size, tokens_BL.shape[1]
        p_now_BL = self.p_now(posterior, tokens_BL)
        weights = discrete.uniform_step_back(alpha_t, alpha_s, p_now_BL, vocab_size)
        point_BL = discrete.uniforms(keys_where, length) * weights.total
        predicted_BL = self.predict(posterior, keys_predict)
        elsewhere_BL = discrete.anywhere(keys_jump, length, vocab_size)
        moved_BL = jnp.where(point_BL < weights.stay + weights.predict, predicted_BL, elsewhere_BL)
        return jnp.where(point_BL < weights.stay, tokens_BL, moved_BL)

    def p_now(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """Probability of the present tokens under the prediction, in its nucleus, (B, L)."""
        if self.top_p == 1.0:
            return jnp.exp(posterior.log_prob(tokens_BL))
        head = posterior.head

        def chunk(features, tokens):
            p = jax.nn.softmax(nucleus(head.capped(head.raw(features)), self.top_p), axis=-1)
            return jnp.take_along_axis(p, tokens[..., None], axis=-1)[..., 0]

        return over_chunks(chunk, head.chunk, posterior.features_BLD, tokens_BL)


def _two(keys_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two keys from each key."""
    keys_B2 = jax.vmap(jax.random.split)(keys_B)
    return keys_B2[:, 0], keys_B2[:, 1]
