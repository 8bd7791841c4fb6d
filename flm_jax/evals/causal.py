"""A causal network that knows the truth of a text: it scores token rows, and draws fresh ones.

Text drawn from it at temperature 1, nothing cut off, has an exact likelihood: whatever is written
by a model that was trained on such text is scored by the very distribution it was to learn.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.errors import UserError
from flm_jax.evals.artefact import weights_sha256
from flm_jax.flow.net import CausalNet
from flm_jax.flow.randomness import sequence_keys
from flm_jax.host import numerics, progress
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.tokenizers import Tokenizer
from flm_jax.tokenizers.base import sha256

_SCORED = 4096  # tokens scored at one time
_DRAWN = 256  # rows drawn at one time; row i is the same in any batch


@dataclasses.dataclass(frozen=True, eq=False)
class CausalTruth:
    """A `base.KnownTruth` made of a network; see there.

    Attributes:
      net: with its parameters; asked at a time that it does not see.
      tokenizer: of the ids that the network reads and writes.
      longest: tokens that a row may have, the first included; 0 = any number.
      name: for tables.
    """

    net: CausalNet
    tokenizer: Tokenizer
    longest: int
    name: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the tokenizer and all weights."""
        return sha256(self.tokenizer.fingerprint, weights_sha256(self.net.params))

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """-log p of every token but the first of its row given those before: float32 (N, L - 1)."""
        return self._in_parts(self._score, np.asarray(tokens_NL, np.int32))

    def features(self, tokens_NL: np.ndarray, ends_N: np.ndarray) -> np.ndarray:
        """What the head is given at one position of every row, `ends_N`: float32 (N, D)."""
        tokens_NL, ends_N = np.asarray(tokens_NL, np.int32), np.asarray(ends_N, np.int32)
        return self._in_parts(self._features, tokens_NL, ends_N)

    def _in_parts(
        self, function: Callable[..., jax.Array], tokens_NL: np.ndarray, *others: np.ndarray
    ) -> np.ndarray:
        """The function of parameters and of some rows at a time, in parts of one size."""
        count, length = tokens_NL.shape
        self._check(length)
        size = max(1, min(count, _SCORED // length))
        parts = []
        for first in progress.bar(range(0, count, size), desc=f"scoring by {self.name}", delay=2):
            at = np.minimum(np.arange(first, first + size), count - 1)
            found = function(self.net.params, tokens_NL[at], *(other[at] for other in others))
            parts.append(np.asarray(found)[: count - first])
        return np.concatenate(parts)

    def sample(self, indices_N: np.ndarray, length: int, seed: int) -> np.ndarray:
        """Rows int32 (N, L) that begin with BOS, drawn at temperature 1; nothing ends a row early.

        Row i depends on the seed and its index only, not on the rows beside it.
        """
        self._check(length)
        key, rows = numerics.key(seed), []
        for first in range(0, len(indices_N), _DRAWN):
            part = np.asarray(indices_N[first : first + _DRAWN], np.uint32)
            padded = np.pad(part, (0, _DRAWN - len(part)), mode="edge")
            rows.append(np.asarray(self._draw(self.net.params, key, padded, length))[: len(part)])
        return np.concatenate(rows)

    def _check(self, length: int) -> None:
        if self.longest and length > self.longest:
            raise UserError(
                f"{self.name} knows rows of at most {self.longest} tokens, not {length}; set "
                f"data.length={self.longest} or less"
            )

    @functools.cached_property
    def _score(self):
        def score(params, tokens_BL):
            net = dataclasses.replace(self.net, params=params)
            return Autoregressive().next_token(net, tokens_BL)

        return jax.jit(score)

    @functools.cached_property
    def _features(self):
        def features(params, tokens_BL, ends_B):
            net = dataclasses.replace(self.net, params=params)
            time_B = jnp.zeros(len(tokens_BL), net.table.dtype)
            features_BLD = net(net.table[tokens_BL], time_B).posterior.features_BLD
            return features_BLD[jnp.arange(len(tokens_BL)), ends_B].astype(jnp.float32)

        return jax.jit(features)

    @functools.cached_property
    def _draw(self):
        def draw(params, key, index_B, length):
            net = dataclasses.replace(self.net, params=params)
            first_B = jnp.full(index_B.shape, first_token(self.tokenizer), jnp.int32)
            # One uniform number a token, above 0 and at most 1: far fewer random numbers than noise
            # for every entry of the vocabulary, and drawn before the loop.
            keys_B = sequence_keys(key, index_B)
            bits_BM = jax.vmap(lambda key: jax.random.bits(key, (length - 1,)))(keys_B)
            uniform_MB = (bits_BM.T.astype(jnp.float32) + 0.5) * 2.0**-32

            def step(carry, at):
                token_B, cache = carry
                position, uniform_B = at
                posterior, cache = net.advance(net.table[token_B][:, None], position, cache)
                token_B = _inverse(posterior.dense()[:, 0], uniform_B)
                return (token_B, cache), token_B

            cache = net.empty_cache(len(index_B), length - 1)
            steps = jnp.arange(length - 1), uniform_MB
            _, drawn_MB = jax.lax.scan(step, (first_B, cache), steps)
            return jnp.concatenate([first_B[None], drawn_MB]).T

        return jax.jit(draw, static_argnums=3)


def first_token(tokenizer: Tokenizer) -> int:
    """BOS, or the end of text where one special token is both; UserError without either."""
    for token in (tokenizer.bos_id, tokenizer.eos_id):
        if token is not None:
            return token
    raise UserError(f"tokenizer {tokenizer.name!r} has neither BOS nor EOS to begin a text with")


def _inverse(p_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """The first token whose cumulated probability reaches the uniform number, int32 (B,).

    Of numbers above 0 and at most 1: never a token without probability, whatever is rounded.
    """
    cumulated_BV = jnp.cumsum(p_BV, axis=-1)
    wanted_B1 = uniform_B[:, None] * cumulated_BV[:, -1:]
    return jnp.sum(cumulated_BV < wanted_B1, axis=-1, dtype=jnp.int32)
