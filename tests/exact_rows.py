"""A few rows with probabilities, and the networks that know them, by enumeration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow import noise
from flm_jax.flow.at import STUDENT, At
from flm_jax.flow.clock import identity
from flm_jax.flow.net import Net
from flm_jax.flow.space import OneHot, Projected


@dataclasses.dataclass(frozen=True)
class Rows:
    """``tokens_KL`` with the probabilities ``p_K``; tokens below ``vocab_size``."""

    tokens_KL: np.ndarray
    p_K: np.ndarray
    vocab_size: int

    @property
    def nats_K(self) -> np.ndarray:
        return -np.log(self.p_K)

    def which(self, tokens_NL: np.ndarray) -> np.ndarray:
        """The row that each of these is."""
        same_NK = (tokens_NL[:, None] == self.tokens_KL[None]).all(-1)
        assert same_NK.any(axis=1).all()
        return same_NK.argmax(axis=1)

    def drawn(self, n: int, seed: int = 0) -> np.ndarray:
        """Every row as often as it should be among n, int32 (n, L)."""
        counts_K = np.floor(self.p_K * n).astype(int)
        rest = np.random.default_rng(seed).choice(len(counts_K), n - counts_K.sum(), p=self.p_K)
        return self.tokens_KL[np.concatenate([np.repeat(np.arange(len(counts_K)), counts_K), rest])]

    def log_posterior(self, log_q_BKL: jax.Array, others: bool = False) -> jax.Array:
        """log p(y_i | what is seen), (B, L, V), of log q(what is seen at i | y_i of row k).

        ``others``: given what is seen at the other positions only.
        """
        joint_BKL = log_q_BKL.sum(-1, keepdims=True) - log_q_BKL * others
        joint_BKL = joint_BKL + jnp.log(jnp.asarray(self.p_K))[None, :, None]
        weight_BKL = jax.nn.softmax(joint_BKL, axis=1)
        of_KLV = jax.nn.one_hot(self.tokens_KL, self.vocab_size, dtype=weight_BKL.dtype)
        p_BLV = jnp.einsum("bkl,klv->blv", weight_BKL, of_KLV)
        tiny = jnp.finfo(p_BLV.dtype).tiny
        return jnp.log(jnp.maximum(p_BLV, tiny))

    def flow_params(self, table_VD: np.ndarray, dtype=jnp.float32) -> dict:
        size = self.vocab_size
        head = {"kernel": jnp.eye(size, dtype=dtype), "bias": jnp.zeros(size, dtype)}
        return {"embed": {"table": jnp.asarray(table_VD, dtype)}, "head": head}

    def flow(self, params: dict, projected: bool) -> Net:
        """The exact denoiser, whose clock is the identity.

        In one-hot space that is exact where the table is the identity.
        """

        def backbone(params, h_BLD, tau_B, *_):
            table_VD = params["embed"]["table"]
            white_VW, u_BLW = table_VD, h_BLD
            if projected:
                factor_DD = noise.factor([table_VD])
                white_VW = jnp.linalg.solve(factor_DD, table_VD.T).T
                u_BLW = jnp.linalg.solve(factor_DD, h_BLD.reshape(-1, h_BLD.shape[-1]).T).T
                u_BLW = u_BLW.reshape(h_BLD.shape)
            tau = tau_B[:, None, None]
            rho, u_BLW = tau / (1.0 - tau), u_BLW / (1.0 - tau)
            clean_KLW = white_VW[self.tokens_KL]
            inner_BKL = jnp.einsum("blw,klw->bkl", u_BLW, clean_KLW)
            square_KL = jnp.sum(clean_KLW**2, axis=-1)
            return self.log_posterior(rho * inner_BKL - 0.5 * rho**2 * square_KL[None]), None

        return Net(backbone, params, logit_cap=0.0)

    def at(self, table_VD: np.ndarray, projected: bool = True, dtype=jnp.float32) -> At:
        net = self.flow(self.flow_params(table_VD, dtype), projected)
        space = (Projected if projected else OneHot)({STUDENT: net.table})
        return At({STUDENT: net}, space, identity())

    def uniform_net(self, params: dict) -> Net:
        """What uniform diffusion should predict; its table is the identity.

        Each token given the others: what is seen of the token itself comes in by the formulas.
        """
        size = self.vocab_size

        def backbone(params, h_BLV, time_B, *_):
            alpha_B = jnp.exp(-time_B)
            seen_BL = jnp.argmax(h_BLV, axis=-1)
            same_BKL = seen_BL[:, None] == jnp.asarray(self.tokens_KL)[None]
            other = ((1.0 - alpha_B) / size)[:, None, None]
            log_q_BKL = jnp.log(jnp.where(same_BKL, other + alpha_B[:, None, None], other))
            return self.log_posterior(log_q_BKL, others=True), None

        return Net(backbone, params, logit_cap=0.0)


def single(p_V: np.ndarray) -> Rows:
    """One token a row."""
    return Rows(np.arange(len(p_V))[:, None], np.asarray(p_V), len(p_V))


PAIRS = Rows(
    np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([0.4, 0.15, 0.1, 0.35]), 2
)  # two tokens that depend on each other
