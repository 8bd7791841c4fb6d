"""What a person follows a run by: numbers over time in files, progress on stderr."""

from flm_jax.metrics.log import FILE_NAME, TENSORBOARD_FOLDER, MetricsLog, Window, read
from flm_jax.metrics.progress import Progress, Waiting, announced, bar, silence

__all__ = [
    "FILE_NAME",
    "TENSORBOARD_FOLDER",
    "MetricsLog",
    "Progress",
    "Waiting",
    "Window",
    "announced",
    "bar",
    "read",
    "silence",
]
