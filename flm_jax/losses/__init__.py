"""Objectives, one per file. To add one: a frozen dataclass, a row here, a row in its test."""

from flm_jax.losses.flow_matching import FlowMatching

LOSSES = {"flow_matching": FlowMatching}
