"""Configuration: from a file in ``configs/`` and command-line overrides to a frozen `Config`.

settings.py      the knobs with defaults, meanings and limits
loading.py       file or dict -> Config; Config <-> JSON; what differs between two configs
building.py      a row of a table (loss, sampler, data set, ...) from its options
validation.py    every clash explained before anything compiles
"""

from flm_jax.config.building import build, build_sampler
from flm_jax.config.loading import (
    changed,
    differences,
    from_json,
    load,
    resolve,
    to_dict,
    to_json,
)
from flm_jax.config.settings import (
    Clock,
    Config,
    Data,
    Loss,
    Mesh,
    Model,
    Optim,
    Sampler,
    Tokenizer,
    Train,
    value_at,
)
from flm_jax.config.validation import (
    mesh_shape,
    sampler_problems,
    validate,
    validate_devices,
    validate_section,
    validate_vocabulary,
)

__all__ = [
    "Clock",
    "Config",
    "Data",
    "Loss",
    "Mesh",
    "Model",
    "Optim",
    "Sampler",
    "Tokenizer",
    "Train",
    "build",
    "build_sampler",
    "changed",
    "differences",
    "from_json",
    "load",
    "mesh_shape",
    "resolve",
    "sampler_problems",
    "to_dict",
    "to_json",
    "validate",
    "validate_devices",
    "validate_section",
    "validate_vocabulary",
    "value_at",
]
