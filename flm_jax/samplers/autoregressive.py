"""The autoregressive baseline: one token after the other, each drawn given all before it.

Keys and values of earlier positions are kept (`CausalNet.advance`), so that a step costs one
position, and the whole text is one scan of length - 1 network evaluations.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.contracts import Needs
from flm_jax.errors import UserError
from flm_jax.flow.net import CausalNet
from flm_jax.flow.randomness import folded
from flm_jax.flow.vocabulary import first_largest
from flm_jax.samplers.base import Given, Request, Trajectory, Written
from flm_jax.samplers.tokens import TokenSampler


@dataclasses.dataclass(frozen=True)
class LeftToRight(TokenSampler):
    """Draws token by token from a causal network, after BOS.

    Attributes:
      bos_id: the first token; -1 takes the tokenizer's BOS.
      never: ids of tokens that are not drawn, such as a mask that the official baseline has in its
        vocabulary. The others share their probability, whatever temperature and nucleus.
    """

    bos_id: int = -1
    never: tuple[int, ...] = ()

    @property
    def needs(self) -> Needs:
        return Needs(causal=True)

    def steps_for(self, length: int) -> int:
        return length - 1

    def check_vocabulary(self, size: int) -> None:
        """UserError for ids that are none of a vocabulary, and if no token is left to draw."""
        if not -1 <= self.bos_id < size:
            raise UserError(
                f"sampler option bos_id={self.bos_id} is not a token of this model; give an id "
                f"from 0 to {size - 1}, or -1 for the tokenizer's BOS"
            )
        unknown = [token for token in self.never if not 0 <= token < size]
        if unknown:
            raise UserError(
                f"sampler option never={_listed(self.never)}: {unknown[0]} is not a token of this "
                f"model; give ids from 0 to {size - 1}"
            )
        if len(set(self.never)) == size:
            raise UserError(
                f"sampler option never names all {size} tokens of this model, so that none is left "
                "to draw; leave one out"
            )

    def write(self, asked: Request) -> Written:
        """Tokens int32 (B, L), the first one BOS; see `samplers.base.Request`.

        In the trajectory, positions that are not written yet hold BOS with confidence 0; written
        ones keep the probability with which they were drawn.

        Steps are network evaluations, one per token after the first: length - 1. ``start`` are
        given first tokens (B,), ``noise`` is given Gumbel noise (L - 1, B, V), of all tokens. What
        is given is the beginning of every sequence; its first token replaces BOS.

        Raises UserError for another number of steps, without a BOS, and for knobs that only
        samplers of vectors have.
        """
        at, keys_B, sampling, length, start, noise, trajectory, bos_id, given = asked
        self.refuse(sampling)
        net, steps = at.student, sampling.steps
        if not isinstance(net, CausalNet):
            raise TypeError("an autoregressive sampler needs a causal network")
        if steps != length - 1:
            raise UserError(
                f"writing {length} tokens one by one takes {length - 1} steps, not {steps}; "
                f"set steps={length - 1}"
            )
        drawn_V = None
        if self.never:  # those columns of the head are left out: nothing can draw them
            drawn_V = np.delete(np.arange(net.head.vocab_size, dtype=np.int32), list(self.never))
            net = net.with_outputs(drawn_V)
            noise = None if noise is None else noise[..., drawn_V]
        if start is not None:
            first_B = start
        elif given is not None:
            first_B = self.first_given(given, bos_id)
        else:
            first_B = self.first(keys_B.shape[0], bos_id)

        def step(carry, i):
            token_B, cache = carry
            posterior, cache = net.advance(net.table[token_B][:, None], i, cache)
            if noise is None:
                next_B1 = self.predict(posterior, folded(keys_B, i))
            else:
                head = posterior.head
                logits_B1V = head.capped(head.raw(posterior.features_BLD))
                next_B1 = first_largest(logits_B1V + noise[i][:, None])
            p_B = jnp.exp(posterior.log_prob(next_B1))[:, 0] if trajectory else None
            next_B1 = next_B1 if drawn_V is None else jnp.asarray(drawn_V)[next_B1]
            if given is not None:
                mask_B1 = given.mask_BL[:, i + 1, None]
                next_B1 = jnp.where(mask_B1, given.tokens_BL[:, i + 1, None], next_B1)
                p_B = None if p_B is None else jnp.where(mask_B1[:, 0], 1.0, p_B)
            seen = () if p_B is None else (p_B,)
            return (next_B1[:, 0], cache), (next_B1[:, 0], *seen)

        cache = net.empty_cache(keys_B.shape[0], steps)
        _, (written_SB, *seen) = jax.lax.scan(step, (first_B, cache), jnp.arange(steps))
        tokens_BL = jnp.concatenate([first_B[None], written_SB]).T
        path = self.path(tokens_BL, *seen) if trajectory else None
        return Written.in_all_steps(tokens_BL, steps, path)

    def check_given(self, mask_BL: np.ndarray) -> None:
        """UserError unless the given tokens of every sequence are its beginning."""
        open_before_BL = np.logical_or.accumulate(~mask_BL, axis=1)
        late = np.argwhere(mask_BL & open_before_BL)
        if late.size:
            row, position = late[0]
            raise UserError(
                f"an autoregressive model writes from left to right, but the given token at "
                f"position {position} of sequence {row} comes after an open one; give a prompt, "
                "or use another kind of model for infilling"
            )

    def first_given(self, given: Given, bos_id: int | None) -> jax.Array:
        """The first token, int32 (B,): BOS where it is not given."""
        first_B, mask_B = given.tokens_BL[:, 0], given.mask_BL[:, 0]
        if bos_id is None and self.bos_id == -1:
            return first_B  # nothing else to begin with
        return jnp.where(mask_B, first_B, self.first(first_B.shape[0], bos_id))

    def first(self, batch: int, bos_id: int | None) -> jax.Array:
        """BOS, int32 (B,)."""
        chosen = bos_id if self.bos_id == -1 else self.bos_id
        if chosen is None:
            raise UserError(
                "an autoregressive sampler starts from the tokenizer's BOS, but this "
                "tokenizer has none; set the sampler's option bos_id"
            )
        return jnp.full((batch,), chosen, jnp.int32)

    def path(self, tokens_BL: jax.Array, p_SB: jax.Array) -> Trajectory:
        """What was written after every step."""
        (batch, length), steps = tokens_BL.shape, p_SB.shape[0]
        position_L = jnp.arange(length)[None, None, :]
        written_SL = position_L <= jnp.arange(length)[:, None, None]
        states = jnp.where(written_SL, tokens_BL[None], tokens_BL[None, :, :1])
        p_BL = jnp.concatenate([jnp.ones((1, batch)), p_SB]).T
        confidence_SBL = jnp.where(written_SL[1:], p_BL[None], 0.0)
        progress = jnp.arange(steps) / steps
        return Trajectory(progress, progress, states, states[1:], confidence_SBL)


def _listed(tokens: tuple[int, ...]) -> str:
    return ",".join(map(str, tokens))
