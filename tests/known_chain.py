"""A truth with exact networks: letters behind BOS, each drawn given the one or two before it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.head import Head
from flm_jax.flow.net import Cache, CausalNet, Net
from flm_jax.flow.posterior import Posterior
from flm_jax.tokenizers.characters import Characters

LETTERS = Characters("abcdefgh")  # ids 4 to 11; below are special tokens
FIRST, V = 4, 12


@dataclasses.dataclass(frozen=True)
class Chain:
    """A `KnownTruth` of rows BOS x_1 ... x_n; x_i has the law T[x_{i-2}, x_{i-1}].

    Args:
      order: 1: the law depends on x_{i-1} only; 2: on both.
    """

    order: int = 1
    tokenizer: Characters = LETTERS

    @property
    def name(self) -> str:
        return f"a chain of order {self.order}"

    @property
    def fingerprint(self) -> str:
        return self.name

    @property
    def transitions_VVV(self) -> np.ndarray:
        draw = np.random.default_rng(self.order)
        letters = V - FIRST
        shape = (V,) if self.order == 1 else (V, V)
        table = np.zeros((*shape, V))
        table[..., FIRST:] = 0.97 * draw.dirichlet(np.full(letters, 0.3), shape) + 0.03 / letters
        return np.broadcast_to(table, (V, V, V))

    def score(self, tokens_NL: np.ndarray) -> np.ndarray:
        """-log p, (N, L - 1); BOS stands before BOS."""
        tokens_NL = np.asarray(tokens_NL)
        before_NL = np.concatenate([tokens_NL[:, :1], tokens_NL[:, :-1]], axis=1)[:, :-1]
        p = self.transitions_VVV[before_NL, tokens_NL[:, :-1], tokens_NL[:, 1:]]
        return -np.log(np.maximum(p, 1e-9))

    def sample(self, indices_N: np.ndarray, length: int, seed: int) -> np.ndarray:
        uniform_NL = np.stack(
            [np.random.default_rng([seed, int(index)]).random(length) for index in indices_N]
        )
        tokens = np.full((len(indices_N), length + 1), LETTERS.bos_id, np.int32)
        cumulative = self.transitions_VVV.cumsum(axis=-1)
        for i in range(2, length + 1):
            bounds = cumulative[tokens[:, i - 2], tokens[:, i - 1]]
            tokens[:, i] = np.minimum((uniform_NL[:, i - 1, None] >= bounds).sum(axis=1), V - 1)
        return tokens[:, 1:]

    def rows(self, n: int, length: int, seed: int = 0) -> np.ndarray:
        return self.sample(np.arange(n), length, seed)

    def masked_net(self, temperature: float = 1.0) -> Net:
        """p(token | what is shown) of a chain of order 1, exactly: forwards and backwards."""
        eye = jnp.eye(V + 1)
        params = {"embed": {"table": eye}, "head": {"kernel": eye, "bias": jnp.zeros(V + 1)}}
        table_VV = jnp.asarray(self.transitions_VVV[0], jnp.float32)

        def backbone(params, h_BLD, tau_s, tau_t, key):
            seen_LBV = jnp.moveaxis(h_BLD[..., :V] + h_BLD[..., V:], 1, 0)  # a mask allows all
            bos = jnp.broadcast_to(jnp.eye(V)[LETTERS.bos_id][None], seen_LBV.shape[1:])

            def forwards(before, seen):
                now = before * seen
                now = now / now.sum(-1, keepdims=True)
                return now @ table_VV, before

            def backwards(after, seen):
                now = (after * seen) @ table_VV.T
                return now / now.sum(-1, keepdims=True), after

            _, before_LBV = jax.lax.scan(forwards, bos, seen_LBV)
            _, after_LBV = jax.lax.scan(backwards, jnp.ones_like(bos), seen_LBV, reverse=True)
            log_p = jnp.log(jnp.maximum(before_LBV * after_LBV, 1e-30))
            features_BLV = jnp.moveaxis(log_p, 0, 1)
            return jnp.pad(features_BLV, ((0, 0), (0, 0), (0, 1))), None

        return Net(backbone, params, logit_cap=0.0, temperature=temperature)

    def causal_net(self) -> CausalNet:
        """p(token | those before it) of a chain of order 1."""
        log_p = jnp.log(jnp.maximum(jnp.asarray(self.transitions_VVV[0], jnp.float32), 1e-30))
        head = {"kernel": jnp.eye(V), "bias": jnp.zeros(V)}
        params = {"embed": {"table": jnp.eye(V)}, "head": head, "log_p": log_p}
        return _Causal(lambda p, h, *_: (h @ p["log_p"], None), params, logit_cap=0.0)


class _Causal(CausalNet):
    def empty_cache(self, batch: int, length: int) -> Cache:
        return ()

    def advance(
        self, h_B1D: jax.Array, position: jax.Array, cache: Cache
    ) -> tuple[Posterior, Cache]:
        head: Head = self.head
        return Posterior(h_B1D @ self.params["log_p"], head), cache
