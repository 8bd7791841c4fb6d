"""A network as losses and samplers see it: h and times in, a posterior over tokens out."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flm_jax.flow.head import Head
from flm_jax.flow.posterior import Posterior

Params = Any  # a tree of arrays in dicts, as flax makes it


class Output(NamedTuple):
    """What a network says: the posterior, and log w of the learned loss weighting (or None).

    ``log_weight`` is (B,), or (B, L) where times are per position.
    """

    posterior: Posterior
    log_weight: jax.Array | None


# (params, h_BLD, tau_s, tau_t or None, dropout key or None) -> (features_BLD, log_weight or None),
# with given_BL as one more argument where there are given tokens; estimate_BLD, if there is one, is
# the argument after that
Backbone = Callable[..., tuple[jax.Array, jax.Array | None]]


Cache = tuple[Any, ...]  # keys and values of earlier positions, as the network keeps them


@dataclasses.dataclass(frozen=True)
class Net:
    """A backbone with its parameters and the options of its vocabulary head.

    ``params`` holds at least ``embed.table`` (V, D), ``head.kernel`` (D, V) and ``head.bias`` (V,).
    Without ``head.kernel`` the head is tied to the table: its kernel is the transposed table.
    ``self_conditioning``: it can be told an estimate of the clean sequence.
    """

    backbone: Backbone
    params: Params
    logit_cap: float = 30.0
    head_chunk: int = 1024
    dtype: DTypeLike = jnp.float32
    temperature: float = 1.0
    fused_head: bool = True
    self_conditioning: bool = False

    @property
    def table(self) -> jax.Array:
        """The input embedding table E, (V, D)."""
        return self.params["embed"]["table"]

    @property
    def head(self) -> Head:
        head = self.params["head"]
        return Head(
            head["kernel"] if "kernel" in head else self.table.T,
            head["bias"],
            cap=self.logit_cap,
            temperature=self.temperature,
            chunk=self.head_chunk,
            dtype=self.dtype,
            fused=self.fused_head,
        )

    def stopped(self) -> Self:
        """The same network without gradients to its parameters."""
        return dataclasses.replace(self, params=jax.lax.stop_gradient(self.params))

    def on_diagonal(self) -> Self:
        """The same network of two times; asked at one time it gets that twice (s = t)."""
        backbone = self.backbone

        def twice(params, h_BLD, tau_s, tau_t=None, *rest):
            return backbone(params, h_BLD, tau_s, tau_s if tau_t is None else tau_t, *rest)

        return dataclasses.replace(self, backbone=twice)

    def with_outputs(self, tokens_V: np.ndarray) -> Self:
        """The same network, whose posteriors are over these tokens (ids) only, in this order."""
        head = {"kernel": self.head.kernel_DV, "bias": self.head.bias_V}
        head = {name: array[..., tokens_V] for name, array in head.items()}
        return dataclasses.replace(self, params=self.params | {"head": head})

    def __call__(
        self,
        h_BLD: jax.Array,
        tau_s: jax.Array,
        tau_t: jax.Array | None = None,
        key: jax.Array | None = None,
        given_BL: jax.Array | None = None,
        estimate_BLD: jax.Array | None = None,
    ) -> Output:
        """The posterior at h = x @ E.

        ``tau_s`` and ``tau_t`` (the second time of a flow map) are (B,) or (B, L). With a ``key``
        dropout is on; with keys (B,) every text has masks of its own. With ``given_BL`` (bool)
        times are (B,), and those of given tokens are 1 in the place of them: what times (B, L)
        would give, at the cost of times (B,).
        ``estimate_BLD`` is what a network with ``self_conditioning`` is told of the clean sequence,
        p @ E; None or zeros: nothing. It is a constant: derivatives do not pass through it.
        """
        told = () if given_BL is None else (given_BL,)
        if estimate_BLD is not None:
            told = given_BL, jax.lax.stop_gradient(estimate_BLD)
        features_BLD, log_weight = self.backbone(self.params, h_BLD, tau_s, tau_t, key, *told)
        return Output(Posterior(features_BLD, self.head), log_weight)


@dataclasses.dataclass(frozen=True)
class CausalNet(Net, abc.ABC):
    """A causal network, which can also go on from where it was, one position at a time."""

    @abc.abstractmethod
    def empty_cache(self, batch: int, length: int) -> Cache:
        """The cache of no position yet, for ``length`` of them."""

    @abc.abstractmethod
    def advance(
        self, h_B1D: jax.Array, position: jax.Array, cache: Cache
    ) -> tuple[Posterior, Cache]:
        """The posterior at one position, whose predecessors are in the cache, and the new cache."""
