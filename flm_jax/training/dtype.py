"""model.dtype=auto: decided once, when a run begins, and kept in its config.json.

Another type rounds otherwise, so that a run goes on with the one it began with, wherever it goes
on, and all its processes compute with the same one.
"""

import dataclasses
from collections.abc import Callable

from flm_jax import config as config_lib
from flm_jax.host import bfloat16, distributed

AUTO = "auto"


def as_stored(config: config_lib.Config, stored: config_lib.Config) -> config_lib.Config:
    """The config of a run that goes on: "auto" is the type that it has been decided to be."""
    return _decided(config, stored.model.dtype) if config.model.dtype == AUTO else config


def settled(config: config_lib.Config, say: Callable[[str], None]) -> config_lib.Config:
    """The config of a run that begins: "auto" is what is fast on the devices of process 0.

    All processes call it; what process 0 decided reaches the others.
    """
    dtype = config.model.dtype
    if distributed.is_main() and dtype == AUTO:
        choice = bfloat16.choose()
        dtype = choice.dtype
        say(f"model.dtype=auto is {dtype}: {choice.why}")
    dtype = distributed.told("model.dtype", dtype)
    return _decided(config, dtype) if config.model.dtype == AUTO else config


def _decided(config: config_lib.Config, dtype: str) -> config_lib.Config:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
