"""Objectives, one per file. To add one: a frozen dataclass, a row here, a row in its test."""

from flm_jax.losses.any_order import AnyOrder
from flm_jax.losses.autoregressive import Autoregressive
from flm_jax.losses.base import Loss
from flm_jax.losses.dcd import DCD
from flm_jax.losses.esd import ESD
from flm_jax.losses.flow_matching import FlowMatching
from flm_jax.losses.lsd import LSD
from flm_jax.losses.masked_diffusion import MaskedDiffusion
from flm_jax.losses.psd import PSD
from flm_jax.losses.sdtt import SDTT
from flm_jax.losses.two_model import Residual, SecondStage
from flm_jax.losses.uniform_diffusion import UniformCurriculum, UniformDiffusion

LOSSES: dict[str, type[Loss]] = {
    "flow_matching": FlowMatching,
    "psd": PSD,
    "any_order": AnyOrder,
    "lsd": LSD,
    "esd": ESD,
    "residual": Residual,
    "second_stage": SecondStage,
    "autoregressive": Autoregressive,
    "masked_diffusion": MaskedDiffusion,
    "uniform_diffusion": UniformDiffusion,
    "uniform_curriculum": UniformCurriculum,
    "sdtt": SDTT,
    "dcd": DCD,
}
