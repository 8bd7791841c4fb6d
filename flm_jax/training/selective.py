"""Transformations of gradients that can refuse a batch: their state stays as it was."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


class Selective(optax.GradientTransformationExtraArgs):
    """``update(updates, state, params, accept=flag)`` returns the old state where it is False."""


def selective(transformation: optax.GradientTransformation) -> Selective:
    """Any transformation with ``accept``; its own updates are computed either way."""
    if isinstance(transformation, Selective):
        return transformation
    inner = optax.with_extra_args_support(transformation)

    def update(updates, state, params=None, *, accept=True, **extra):
        updates, new = inner.update(updates, state, params, **extra)
        return updates, choose(accept, new, state)

    return Selective(inner.init, update)


def choose(accept: jax.Array | bool, new: Any, old: Any) -> Any:
    """``new`` or ``old``, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)
