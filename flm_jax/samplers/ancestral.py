"""Ancestral sampling of diffusions on tokens: the baselines MDLM (masked) and Duo (uniform).

The state is tokens int32 (B, L), not a point in a vector space, so these samplers bring their own
loop, `run`. ``steps`` network evaluations divide t = 1 ... 0 evenly; the last one goes to t = 0,
where no noise is left.

Every step is drawn from the exact distribution q(x_s | x_t, p), but never as one race between all
tokens: first where a token comes from (it stays, it is predicted, it jumps), by one uniform, and
then which token, from p itself. One float32 race over the whole of q cuts the tails of p, the
more the smaller the steps, which acts like a lower temperature: published perplexities of masked
diffusion looked too good for that reason.

Masked diffusion can also show the most confident positions first (``order="confidence"``), which is
no step of a diffusion. If the network's conditionals were those of one distribution, one token a
step would still be drawn from that distribution: the order may depend on what is shown already.
With conditionals that do not agree, several tokens a step or a low temperature, samples become
likelier and more alike than the truth; an entropy within a sample does not see it, distinct-4
between samples does (docs/evaluation.md).
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.at import At
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import folded, random_tokens, two_each, uniforms
from flm_jax.flow.vocabulary import nucleus
from flm_jax.samplers.base import Given, Trajectory, Written
from flm_jax.samplers.tokens import TokenSampler
from flm_jax.sampling import Sampling

RANDOM, CONFIDENCE, DRAWN = "random", "confidence", "drawn"  # orders of masked tokens


@dataclasses.dataclass(frozen=True)
class Ancestral(TokenSampler, unfinished=True):
    """The loop from t = 1 to t = 0; a subclass says where it starts and how it steps."""

    @abc.abstractmethod
    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        """The tokens at t = 1, (B, L)."""

    @abc.abstractmethod
    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        """The prediction of the clean tokens; ``alpha_t`` is a scalar."""

    @abc.abstractmethod
    def step(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        alpha_t: jax.Array,
        alpha_s: jax.Array,
        keys_B: jax.Array,
    ) -> jax.Array:
        """The tokens at the earlier time s, drawn given those at t and the prediction."""

    def observe(self, posterior: Posterior, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The most probable clean tokens and their probabilities, (B, L) each."""
        likely_BL = posterior.argmax()
        return likely_BL, jnp.exp(posterior.log_prob(likely_BL))

    def run(
        self,
        at: At,
        keys_B: jax.Array,
        sampling: Sampling,
        length: int,
        *,
        start: jax.Array | None = None,
        noise: jax.Array | None = None,
        trajectory: bool = False,
        bos_id: int | None = None,
        given: Given | None = None,
    ) -> Written:
        """Tokens int32 (B, L) of all steps; see `samplers.base.Sampler.run`.

        The trajectory's ``states`` are tokens (S + 1, B, L), its times run from 0 (noise) to 1.
        ``start`` are given tokens (B, L) at t = 1; there is no other noise to be given, and all
        positions are diffused, a BOS included. ``given`` ones stay what they are; the network of a
        uniform diffusion is told the time of the others, as it was trained: some tokens of any
        noised text are still themselves.

        Raises UserError for knobs that only samplers of vectors have.
        """
        self.refuse(sampling)
        net, steps = at.student, sampling.steps
        keys_steps = folded(keys_B, 1)
        if start is None:
            start = self.start(net, folded(keys_B, 0), length)
        if given is not None:
            start = given.read(start)
        progress = jnp.arange(steps + 1) / steps
        alphas = discrete.alpha(1.0 - progress)

        def step(tokens_BL, i):
            posterior = self.posterior(net, tokens_BL, alphas[i])
            keys = folded(keys_steps, i)
            after_BL = self.step(posterior, tokens_BL, alphas[i], alphas[i + 1], keys)
            after_BL = after_BL if given is None else given.read(after_BL)
            if not trajectory:
                return after_BL, ()
            likely_BL, p_BL = self.observe(posterior, tokens_BL)
            if given is not None:
                likely_BL, p_BL = given.read(likely_BL), jnp.where(given.mask_BL, 1.0, p_BL)
            return after_BL, (tokens_BL, likely_BL, p_BL)

        tokens_BL, (*seen,) = jax.lax.scan(step, start, jnp.arange(steps))
        if not trajectory:
            return Written.in_all_steps(tokens_BL, steps)
        states = jnp.concatenate([seen[0], tokens_BL[None]])
        path = Trajectory(progress[:-1], progress[:-1], states, *seen[1:])
        return Written.in_all_steps(tokens_BL, steps, path)


@dataclasses.dataclass(frozen=True)
class AncestralMasked(Ancestral):
    """From all masks: a masked token shows itself with probability (a_s - a_t) / (1 - a_t).

    In the other orders as many show themselves in each step as would on average, rounded up:
    ceil(masked / steps left), those of the largest p. Evaluations beyond one per masked token
    change nothing. The token itself is drawn as ever, at the denoiser's temperature; near 0 (or
    with a ``top_p`` near 0) it is the most probable one.

    Attributes:
      order: "random"; "confidence", where p is that of the most probable token; or "drawn", where
        it is that of the token that was drawn (MaskGIT, arXiv 2202.04200): what was not likely is
        drawn again, so that texts are likelier than what the network says, and more alike.
      choice_temperature: of the other orders: factor on the Gumbel noise that is added to log p
        before ranking; 0 = none, infinity would be the random order.
    """

    order: str = RANDOM
    choice_temperature: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        known = (RANDOM, CONFIDENCE, DRAWN)
        if self.order not in known:
            raise UserError(
                f"sampler option order={self.order!r} is not known; use {' or '.join(known)}"
            )
        if not 0.0 <= self.choice_temperature < math.inf:
            raise UserError(
                f"sampler option choice_temperature={self.choice_temperature} must be a finite "
                "number of at least 0"
            )
        if self.choice_temperature and self.order == RANDOM:
            raise UserError(
                f"sampler option choice_temperature={self.choice_temperature:g} has no effect in "
                "random order; set order=confidence or leave it at 0"
            )

    @property
    def needs(self) -> Needs:
        return Needs(mask_token=True)

    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        return jnp.full((keys_B.shape[0], length), net.table.shape[0] - 1, jnp.int32)

    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        masked_BL = tokens_BL == net.table.shape[0] - 1
        return discrete.predict_masked(net, tokens_BL, masked_BL).posterior

    def step(
        self,
        posterior: Posterior,
        tokens_BL: jax.Array,
        alpha_t: jax.Array,
        alpha_s: jax.Array,
        keys_B: jax.Array,
    ) -> jax.Array:
        keys_where, keys_which = two_each(keys_B)
        u_BL = uniforms(keys_where, tokens_BL.shape[1])
        masked_BL = self.masked(posterior, tokens_BL)
        share = discrete.unmask_probability(alpha_t, alpha_s)
        drawn_BL = self.predict(posterior, keys_which)
        if self.order == RANDOM:
            shown_BL = masked_BL & (u_BL < share)
        else:
            ranked_BL = drawn_BL if self.order == DRAWN else posterior.argmax()
            log_p_BL = posterior.log_prob(ranked_BL)
            shown_BL = self.most_confident(log_p_BL, masked_BL, share, u_BL)
        return jnp.where(shown_BL, drawn_BL, tokens_BL)

    def most_confident(
        self, log_p_BL: jax.Array, masked_BL: jax.Array, share: jax.Array, u_BL: jax.Array
    ) -> jax.Array:
        """Which masked positions come first: the given share of them, rounded up.

        ``u_BL``: uniforms, of which the noise of the ranking is made.
        """
        if self.choice_temperature:
            gumbel_BL = -jnp.log(-jnp.log(jnp.maximum(u_BL, jnp.finfo(u_BL.dtype).tiny)))
            log_p_BL = log_p_BL + self.choice_temperature * gumbel_BL
        score_BL = jnp.where(masked_BL, log_p_BL, -jnp.inf)
        ranked_BL = jnp.argsort(-score_BL, axis=1)  # stable: of equals the first one
        rank_BL = jnp.argsort(ranked_BL, axis=1)
        # The share is 1 / (steps left), up to rounding, which must not add a token.
        count_B = jnp.ceil(share * jnp.sum(masked_BL, axis=1) - 1e-3)
        return masked_BL & (rank_BL < jnp.maximum(count_B, 1)[:, None])

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
        return random_tokens(keys_B, length, net.table.shape[0])

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
        keys_where, keys_which = two_each(keys_B)
        keys_jump, keys_predict = two_each(keys_which)
        vocab_size, length = posterior.head.vocab_size, tokens_BL.shape[1]
        p_now_BL = self.p_now(posterior, tokens_BL)
        weights = discrete.uniform_step_back(alpha_t, alpha_s, p_now_BL, vocab_size)
        point_BL = uniforms(keys_where, length) * weights.total
        predicted_BL = self.predict(posterior, keys_predict)
        elsewhere_BL = random_tokens(keys_jump, length, vocab_size)
        moved_BL = jnp.where(point_BL < weights.stay + weights.predict, predicted_BL, elsewhere_BL)
        return jnp.where(point_BL < weights.stay, tokens_BL, moved_BL)

    def p_now(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """Probability of the present tokens under the prediction, in its nucleus, (B, L)."""
        if self.top_p == 1.0:
            return jnp.exp(posterior.log_prob(tokens_BL))

        def chunk(logits, tokens):
            p = jax.nn.softmax(nucleus(logits, self.top_p), axis=-1)
            return jnp.take_along_axis(p, tokens[..., None], axis=-1)[..., 0]

        return posterior.each_chunk(chunk, tokens_BL)
