"""Ancestral sampling of diffusions on tokens: the baselines MDLM (masked) and Duo (uniform).

The state is tokens int32 (B, L), not a point in a vector space, so these samplers bring their own
loop, `write`. ``steps`` network evaluations divide t = 1 ... 0 evenly; the last one goes to t = 0,
where no noise is left. The option ``last`` has the official form instead, whose "N steps" are N + 1
evaluations: a grid down to t = 1e-5 and one evaluation there.

Every step is drawn from the exact distribution q(x_s | x_t, p), but never as one race between all
tokens: first where a token comes from (it stays, it is predicted, it jumps), by one uniform, and
then which token, from p itself. One float32 race over the whole of q cuts the tails of p, the
more the smaller the steps, which acts like a lower temperature: published perplexities of masked
diffusion looked too good for that reason.

The option ``psi`` mixes the step with a fresh draw of the noise (`samplers/psi.py`): tokens that
were settled may change again.

Masked diffusion can also show the most confident positions first (``order="confidence"``), which is
no step of a diffusion. If the network's conditionals were those of one distribution, one token a
step would still be drawn from that distribution: the order may depend on what is shown already.
With conditionals that do not agree, several tokens a step or a low temperature, samples become
likelier and more alike than the truth; an entropy within a sample does not see it, distinct-4
between samples does (docs/evaluation.md).
"""

import abc
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow import discrete
from flm_jax.flow.net import Net
from flm_jax.flow.posterior import Posterior
from flm_jax.flow.randomness import folded, random_tokens, two_each, uniforms
from flm_jax.flow.vocabulary import nucleus
from flm_jax.samplers import psi as psi_lib
from flm_jax.samplers.base import Request, Trajectory, Written
from flm_jax.samplers.tokens import TokenSampler

RANDOM, CONFIDENCE, DRAWN = "random", "confidence", "drawn"  # orders of masked tokens
NONE, ANCESTRAL, GREEDY = "none", "ancestral", "greedy"  # last evaluations
NEAR_DATA = 1e-5  # where the official grid ends and the last evaluation is


class Step(NamedTuple):
    """A step from time t to an earlier time s, numbers of a compiled loop."""

    number: jax.Array | int
    alpha_t: jax.Array
    alpha_s: jax.Array
    kappa: jax.Array | float = 1.0  # share of the ancestral step, see `samplers/psi.py`


class Schedule(NamedTuple):
    """The times (S + 1,) from noise to data of S evaluations, and kappa of each."""

    times: np.ndarray
    kappas: np.ndarray


class Kept(NamedTuple):
    """What a loop keeps of its last evaluation.

    ``features_BLD`` are None where every step makes one of its own; ``changed``: whether it would
    be another one now; ``evaluations``: how many there were.
    """

    features_BLD: jax.Array | None
    changed: jax.Array
    evaluations: jax.Array


@dataclasses.dataclass(frozen=True)
class Ancestral(TokenSampler, unfinished=True):
    """The loop from t = 1 to t = 0; a subclass says where it starts and how it steps.

    Attributes:
      last: the last evaluation: "none", a step like the others; "ancestral", a step from t = 1e-5
        (the official default); or "greedy", where every token becomes the most probable one.
      psi: rules of kappa (`samplers/psi.py`), one or three with "/" between; "pure-posterior" are
        ancestral steps.
      early: share of the times that the first of three rules is for.
      middle: ... that the second one is for; the third one has the rest.
      hold: a time at which all of the middle stays; 0 = none.
    """

    last: str = NONE
    psi: str = psi_lib.POSTERIOR
    early: float = 0.0
    middle: float = 0.0
    hold: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        known = (NONE, ANCESTRAL, GREEDY)
        if self.last not in known:
            raise UserError(
                f"sampler option last={self.last!r} is not known; use {' or '.join(known)}"
            )
        rules = psi_lib.read_rules(self.psi)
        shares = f"sampler options early={self.early:g} and middle={self.middle:g}"
        if not (self.early >= 0.0 and self.middle >= 0.0 and self.early + self.middle <= 1.0):
            raise UserError(f"{shares} must be shares of the times, together at most 1")
        if (self.early or self.middle) and len(set(rules)) == 1 and not self.hold:
            raise UserError(
                f"{shares} have no effect where psi={self.psi!r} is the same everywhere; give "
                "three rules with / between, or a time to hold"
            )
        if not 0.0 <= self.hold <= 1.0:
            raise UserError(f"sampler option hold={self.hold} must be a time in (0, 1]; 0 = none")
        if self.hold and not self.middle:
            raise UserError(
                f"sampler option hold={self.hold:g} holds the time in the middle of the way, but "
                "middle=0; give it a share"
            )

    @property
    def first_time(self) -> float:
        """Where it starts."""
        return 1.0

    def schedule(self, steps: int) -> Schedule:
        """The times and kappas of so many evaluations."""
        plain = self.last == NONE
        points = steps + plain
        parts = psi_lib.Parts.of(points, self.early, self.middle)
        times = parts.times(self.first_time, 0.0 if plain else NEAR_DATA, self.hold)
        alphas = 1.0 - discrete.RATE * times
        kappas = parts.kappas(psi_lib.read_rules(self.psi), alphas)[:steps]
        if plain:
            times[-1] = 0.0
        else:
            times, kappas[-1] = np.append(times, 0.0), 1.0
        return Schedule(times, kappas)

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
        step: Step,
        keys_B: jax.Array,
    ) -> jax.Array:
        """The tokens at the earlier time s, drawn given those at t and the prediction."""

    def greedy(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """The most probable tokens, (B, L)."""
        return posterior.argmax()

    def ask(self, net: Net, tokens_BL: jax.Array, step: Step, kept: Kept) -> tuple[Posterior, Kept]:
        """The prediction; from what is kept where it would be the same."""
        posterior = self.posterior(net, tokens_BL, step.alpha_t)
        return posterior, kept._replace(evaluations=kept.evaluations + 1)

    def nothing_kept(self, net: Net, tokens_BL: jax.Array) -> Kept:
        """Before the first evaluation."""
        return Kept(None, jnp.ones((), bool), jnp.zeros((), jnp.int32))

    def observe(self, posterior: Posterior, tokens_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The most probable clean tokens and their probabilities, (B, L) each."""
        likely_BL = posterior.argmax()
        return likely_BL, jnp.exp(posterior.log_prob(likely_BL))

    def write(self, asked: Request) -> Written:
        """Tokens int32 (B, L) of all steps; see `samplers.base.Request`.

        The trajectory's ``states`` are tokens (S + 1, B, L), its times run from 0 (noise) to 1.
        ``start`` are given tokens (B, L) at t = 1; there is no other noise to be given, and all
        positions are diffused, a BOS included. ``given`` ones stay what they are; the network of a
        uniform diffusion is told the time of the others, as it was trained: some tokens of any
        noised text are still themselves.

        Raises UserError for knobs that only samplers of vectors have.
        """
        at, keys_B, sampling, length, start, _, trajectory, _, given = asked
        self.refuse(sampling)
        net, steps = at.student, sampling.steps
        keys_steps = folded(keys_B, 1)
        if start is None:
            start = self.start(net, folded(keys_B, 0), length)
        if given is not None:
            start = given.read(start)
        times, kappas = (jnp.asarray(x, jnp.result_type(float)) for x in self.schedule(steps))
        alphas = discrete.alpha(times)

        def move(carry, i):
            tokens_BL, kept = carry
            step = Step(i, alphas[i], alphas[i + 1], kappas[i])
            posterior, kept = self.ask(net, tokens_BL, step, kept)

            def drawn():
                return self.step(posterior, tokens_BL, step, folded(keys_steps, i))

            if self.last == GREEDY:
                most_probable = functools.partial(self.greedy, posterior, tokens_BL)
                after_BL = jax.lax.cond(i == steps - 1, most_probable, drawn)
            else:
                after_BL = drawn()
            after_BL = after_BL if given is None else given.read(after_BL)
            carry = after_BL, kept._replace(changed=jnp.any(after_BL != tokens_BL))
            if not trajectory:
                return carry, ()
            likely_BL, p_BL = self.observe(posterior, tokens_BL)
            if given is not None:
                likely_BL, p_BL = given.read(likely_BL), jnp.where(given.mask_BL, 1.0, p_BL)
            return carry, (tokens_BL, likely_BL, p_BL)

        carry = start, self.nothing_kept(net, start)
        (tokens_BL, kept), (*seen,) = jax.lax.scan(move, carry, jnp.arange(steps))
        path = None
        if trajectory:
            states, progress = jnp.concatenate([seen[0], tokens_BL[None]]), 1.0 - times[:-1]
            path = Trajectory(progress, progress, states, *seen[1:])
        return Written.in_all_steps(tokens_BL, kept.evaluations, path)


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
      cache: ask the network only if a token of the batch has changed since it was asked: the same
        samples from fewer evaluations, where steps are many (the official ancestral_cache).
      choice_temperature: of the other orders: factor on the Gumbel noise that is added to log p
        before ranking; 0 = none, infinity would be the random order.
    """

    order: str = RANDOM
    cache: bool = False
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
        if self.order != RANDOM and (self.last, self.psi) != (NONE, psi_lib.POSTERIOR):
            raise UserError(
                f"sampler options last={self.last} and psi={self.psi} are those of a diffusion, "
                f"which order={self.order!r} is not; set order=random or leave them out"
            )

    @property
    def needs(self) -> Needs:
        return Needs(mask_token=True)

    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        return jnp.full((keys_B.shape[0], length), net.table.shape[0] - 1, jnp.int32)

    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        masked_BL = tokens_BL == net.table.shape[0] - 1
        return discrete.predict_masked(net, tokens_BL, masked_BL).posterior

    @property
    def may_skip(self) -> bool:
        """Whether some step may do without an evaluation."""
        return self.cache or self.last == GREEDY

    def nothing_kept(self, net: Net, tokens_BL: jax.Array) -> Kept:
        kept = super().nothing_kept(net, tokens_BL)
        if not self.may_skip:
            return kept
        like = jax.eval_shape(lambda: self.posterior(net, tokens_BL, jnp.ones(())).features_BLD)
        return kept._replace(features_BLD=jnp.zeros(like.shape, like.dtype))

    def ask(self, net: Net, tokens_BL: jax.Array, step: Step, kept: Kept) -> tuple[Posterior, Kept]:
        if not self.may_skip:
            return super().ask(net, tokens_BL, step, kept)
        needed = kept.changed if self.cache else jnp.ones((), bool)
        if self.last == GREEDY:  # where all is shown already
            any_left = jnp.any(tokens_BL == net.table.shape[0] - 1)
            needed = needed & (any_left | (step.alpha_s < 1.0))
        features_BLD = jax.lax.cond(
            needed,
            lambda: self.posterior(net, tokens_BL, step.alpha_t).features_BLD,
            lambda: kept.features_BLD,
        )
        posterior = discrete.without_mask(Posterior(features_BLD, net.head))
        evaluations = kept.evaluations + needed.astype(jnp.int32)
        return posterior, kept._replace(features_BLD=features_BLD, evaluations=evaluations)

    def step(
        self, posterior: Posterior, tokens_BL: jax.Array, step: Step, keys_B: jax.Array
    ) -> jax.Array:
        keys_where, keys_which = two_each(keys_B)
        u_BL = uniforms(keys_where, tokens_BL.shape[1])
        masked_BL = self.masked(posterior, tokens_BL)
        show, hide = discrete.unmask_and_mask(*step[1:])
        drawn_BL = self.predict(posterior, keys_which)
        if self.order == RANDOM:
            shown_BL = masked_BL & (u_BL < show)
        else:
            ranked_BL = drawn_BL if self.order == DRAWN else posterior.argmax()
            log_p_BL = posterior.log_prob(ranked_BL)
            shown_BL = self.most_confident(log_p_BL, masked_BL, show, u_BL)
        after_BL = jnp.where(shown_BL, drawn_BL, tokens_BL)
        if self.psi == psi_lib.POSTERIOR:
            return after_BL
        return jnp.where(~masked_BL & (u_BL < hide), posterior.head.vocab_size, after_BL)

    def greedy(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        return jnp.where(self.masked(posterior, tokens_BL), posterior.argmax(), tokens_BL)

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
    """From uniformly drawn tokens: a token stays, is predicted anew, or jumps anywhere.

    Attributes:
      begin: the time where it starts. The noise that DCD trains with ends at alpha = 0.006, below
        the 0.001 of time 1: at 0.995 the network is asked what it has learnt.
    """

    begin: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not NEAR_DATA < self.begin <= 1.0:
            raise UserError(
                f"sampler option begin={self.begin} must be a time above {NEAR_DATA}, at most 1"
            )

    @property
    def first_time(self) -> float:
        return self.begin

    def start(self, net: Net, keys_B: jax.Array, length: int) -> jax.Array:
        return random_tokens(keys_B, length, net.table.shape[0])

    def posterior(self, net: Net, tokens_BL: jax.Array, alpha_t: jax.Array) -> Posterior:
        sigma_B = jnp.broadcast_to(-jnp.log(alpha_t), tokens_BL.shape[:1])
        return net(net.table[tokens_BL], sigma_B).posterior

    def step(
        self, posterior: Posterior, tokens_BL: jax.Array, step: Step, keys_B: jax.Array
    ) -> jax.Array:
        keys_where, keys_which = two_each(keys_B)
        keys_jump, keys_predict = two_each(keys_which)
        vocab_size, length = posterior.head.vocab_size, tokens_BL.shape[1]
        weights = self.weights(posterior, tokens_BL, step)
        point_BL = uniforms(keys_where, length) * weights.total
        predicted_BL = self.predict(posterior, keys_predict)
        elsewhere_BL = random_tokens(keys_jump, length, vocab_size)
        moved_BL = jnp.where(point_BL < weights.stay + weights.predict, predicted_BL, elsewhere_BL)
        return jnp.where(point_BL < weights.stay, tokens_BL, moved_BL)

    def weights(self, posterior: Posterior, tokens_BL: jax.Array, step: Step) -> discrete.Mixture:
        """Where each token comes from, (B, L) each."""
        p_now_BL, size = self.p_now(posterior, tokens_BL), posterior.head.vocab_size
        if self.psi == psi_lib.POSTERIOR:
            return discrete.uniform_step_back(step.alpha_t, step.alpha_s, p_now_BL, size)
        return discrete.uniform_psi_step(*step[1:], p_now_BL, size)

    def p_now(self, posterior: Posterior, tokens_BL: jax.Array) -> jax.Array:
        """Probability of the present tokens under the prediction, in its nucleus, (B, L)."""
        if self.top_p == 1.0:
            return jnp.exp(posterior.log_prob(tokens_BL))

        def chunk(logits, tokens):
            p = jax.nn.softmax(nucleus(logits, self.top_p), axis=-1)
            return jnp.take_along_axis(p, tokens[..., None], axis=-1)[..., 0]

        return posterior.each_chunk(chunk, tokens_BL)
