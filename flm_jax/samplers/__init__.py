"""Samplers, one rule per file. To add one: a frozen dataclass, a row here, a row in its test."""

from flm_jax.samplers.ancestral import AncestralMasked, AncestralUniform
from flm_jax.samplers.autoregressive import LeftToRight
from flm_jax.samplers.base import Sampler
from flm_jax.samplers.block_diffusion import BlockDiffusion
from flm_jax.samplers.churn import Churn
from flm_jax.samplers.euler import Euler
from flm_jax.samplers.flow_map import FlowMap
from flm_jax.samplers.refinement import Refinement
from flm_jax.samplers.two_model import TwoModel, TwoStage

SAMPLERS: dict[str, type[Sampler]] = {
    "euler": Euler,
    "autoregressive": LeftToRight,
    "ancestral_masked": AncestralMasked,
    "ancestral_uniform": AncestralUniform,
    "flow_map": FlowMap,
    "two_model": TwoModel,
    "two_stage": TwoStage,
    "churn": Churn,
    "refinement": Refinement,
    "block_diffusion": BlockDiffusion,
}
