"""Samplers, one rule per file. To add one: a frozen dataclass, a row here, a row in its test."""

from flm_jax.samplers.discrete import AncestralMasked, AncestralUniform
from flm_jax.samplers.euler import Euler

SAMPLERS = {
    "euler": Euler,
    "ancestral_masked": AncestralMasked,
    "ancestral_uniform": AncestralUniform,
}
