"""The settings of JAX that numbers hang on, fixed in one place.

JAX takes settings from variables of the environment (JAX_ENABLE_X64, ...), from `jax.config` and
from contexts such as `jax.set_mesh`. A model must write the same texts, and a run must resume the
same, whatever another project has left there: so keys name their generator (`key`), and everything
that trains, samples or measures runs inside `pinned`.

Left to the user are settings that change no result where they work: JAX_DEFAULT_MATMUL_PRECISION
(speed against digits on accelerators, as everywhere in JAX), JAX_DEBUG_NANS, JAX_LOG_COMPILES.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging

from flm_jax.errors import UserError

PRNG = "threefry2x32"
_COMPILED = (
    "JAX_DISABLE_JIT is set, but training and sampling are compiled all the same: their programs "
    "do not exist otherwise"
)


def key(seed: int) -> jax.Array:
    """The root key of a seed: of the same generator whatever jax_default_prng_impl says."""
    return jax.random.key(seed, impl=PRNG)


def setting(name: str) -> Any:
    """A setting of JAX as it stands in this thread; `jax.config` gets them when JAX is imported."""
    return getattr(jax.config, name)


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """JAX's own defaults inside, for this thread; also a decorator. Not for traced functions.

    Float and integer types of 32 bits where none is named, ordinary promotion of types, one
    generator, no mesh of somebody else, compiled functions, free transfers.
    """
    if setting("jax_disable_jit"):
        logging.log_first_n(logging.WARNING, _COMPILED, 1)
    with (
        jax.enable_x64(False),
        jax.default_prng_impl(PRNG),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.disable_jit(False),
        jax.transfer_guard("allow"),
        jax.set_mesh(None),
    ):
        yield


def check_devices() -> None:
    """UserError unless JAX has a device; the first thing that touches them."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second: no plugin for such a device
        why = " ".join(str(error).split()).partition(" (set JAX_PLATFORMS")[0]
        why = why or "there is no such device here"
        wanted = setting("jax_platforms")
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={wanted} ({why}); unset JAX_PLATFORMS, or set "
            "it to a platform of this machine, such as cpu"
            if wanted
            else f"JAX finds no device ({why}); set JAX_PLATFORMS=cpu to compute without one"
        ) from error
