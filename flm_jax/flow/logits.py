"""The logits that a network answers with, which exist only one chunk of tokens at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.flow import fused
from flm_jax.flow.chunks import over_chunks
from flm_jax.flow.head import Head
from flm_jax.flow.objectives import Objective


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features_BLD", "head", "tangent_BLD"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class LazyLogits:
    """The features of the backbone, and the head that makes logits of them.

    ``tangent_BLD`` is the tangent of the features where a derivative is needed. A `Posterior` is
    such an answer read as a distribution; the terms of a `Combination` are made of them.
    """

    features_BLD: jax.Array
    head: Head
    tangent_BLD: jax.Array | None = None

    def loss(self, objective: Objective, hint_BL: jax.Array | None) -> jax.Array:
        """Any of `flow/objectives.py`, (B, L); ``hint_BL`` as in `flow/fused.py`."""
        features = self.features_BLD
        if not self.head.fused:
            return fused.by_autodiff(objective, features, self.head)
        wide = jnp.promote_types(features.dtype, jnp.float32)
        hint_BL = jnp.ones((), wide) if hint_BL is None else hint_BL.astype(wide)
        hint_BL = jax.lax.stop_gradient(jnp.broadcast_to(hint_BL, features.shape[:2]))
        return fused.loss(objective, features, self.head, hint_BL)

    def each_chunk(self, f: Callable[..., Any], *arrays: Any) -> Any:
        """``f(capped logits (b, l, V), *arrays)`` of every chunk, (B, L, ...) like the arrays."""

        def chunk(features, *arrays):
            return f(self.head.capped(self.head.raw(features)), *arrays)

        return over_chunks(chunk, self.head.chunk, self.features_BLD, *arrays)
