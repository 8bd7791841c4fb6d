"""A network as losses and samplers see it: h and times in, a posterior over tokens out."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flow.posterior import Head, Posterior


class Output(NamedTuple):
    """What a network says: the posterior, and log w of the learned loss weighting (or None).

    ``log_weight`` is (B,), or (B, L) where times are per position.
    """

    posterior: Posterior
    log_weight: jax.Array | None


# (params, h_BLD, tau_s, tau_t or None, dropout key or None) -> (features_BLD, log_weight or None)
Backbone = Callable[..., tuple[jax.Array, jax.Array | None]]


@dataclasses.dataclass(frozen=True)
class Net:
    """A backbone with its parameters and the options of its vocabulary head.

    ``params`` holds at least ``embed.table`` (V, D), ``head.kernel`` (D, V) and ``head.bias`` (V,).
    """

    backbone: Backbone
    params: Any
    logit_cap: float = 30.0
    head_chunk: int = 1024
    dtype: Any = jnp.float32
    temperature: float = 1.0
    fused_head: bool = True

    @property
    def table(self) -> jax.Array:
        """The input embedding table E, (V, D)."""
        return self.params["embed"]["table"]

    @property
    def head(self) -> Head:
        head = self.params["head"]
        return Head(
            head["kernel"],
            head["bias"],
            cap=self.logit_cap,
            temperature=self.temperature,
            chunk=self.head_chunk,
            dtype=self.dtype,
            fused=self.fused_head,
        )

    def with_outputs(self, tokens_V: np.ndarray) -> "Net":
        """The same network, whose posteriors are over these tokens (ids) only, in this order."""
        head = {name: array[..., tokens_V] for name, array in self.params["head"].items()}
        return dataclasses.replace(self, params=self.params | {"head": head})

    def __call__(
        self,
        h_BLD: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> Output:
        """The posterior at h = x @ E.

        ``tau_s`` and ``tau_t`` (the second time of a flow map) are (B,) or (B, L). With a ``key``
        dropout is on.
        """
        features_BLD, log_weight = self.backbone(self.params, h_BLD, tau_s, tau_t, key)
        return Output(Posterior(features_BLD, self.head), log_weight)
