"""Trained weights from any key dialect into our networks, without running pickled code."""

from lct_deploy.checkpoint.files import WeightsChoice, write_checkpoint
from lct_deploy.checkpoint.loading import LoadedCheckpoint, LoadOptions, load_checkpoint
from lct_deploy.checkpoint.metadata import CheckpointMetadata, TrainingRecord

__all__ = [
    "CheckpointMetadata",
    "LoadOptions",
    "LoadedCheckpoint",
    "TrainingRecord",
    "WeightsChoice",
    "load_checkpoint",
    "write_checkpoint",
]
