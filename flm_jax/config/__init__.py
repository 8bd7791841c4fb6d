"""Configuration: from a file in ``configs/`` and command-line overrides to a frozen `Config`.

settings.py      the knobs with defaults, meanings and limits
files.py         --config=FILE:STAGE -> what get_config of the file gives
loading.py       that, a dict or JSON -> Config; Config -> JSON; what differs between two
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
    resolve_section,
    to_dict,
    to_json,
)
from flm_jax.config.settings import (
    ClockConfig,
    Config,
    DataConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SamplerConfig,
    TokenizerConfig,
    TrainConfig,
    value_at,
)
from flm_jax.config.validation import (
    knob_problems,
    mesh_shape,
    suits,
    validate,
    validate_devices,
    validate_section,
    validate_vocabulary,
)

__all__ = [
    "ClockConfig",
    "Config",
    "DataConfig",
    "LossConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "SamplerConfig",
    "TokenizerConfig",
    "TrainConfig",
    "build",
    "build_sampler",
    "changed",
    "differences",
    "from_json",
    "knob_problems",
    "load",
    "mesh_shape",
    "resolve",
    "resolve_section",
    "suits",
    "to_dict",
    "to_json",
    "validate",
    "validate_devices",
    "validate_section",
    "validate_vocabulary",
    "value_at",
]
