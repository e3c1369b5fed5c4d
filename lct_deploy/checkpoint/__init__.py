"""Trained weights from any key dialect into our networks, without running pickled code."""

from lct_deploy.checkpoint.backbone import LoadedBackbone, load_backbone
from lct_deploy.checkpoint.files import WeightsChoice, write_checkpoint
from lct_deploy.checkpoint.loading import LoadedCheckpoint, LoadOptions, load_checkpoint
from lct_deploy.checkpoint.metadata import CheckpointMetadata, TrainingRecord

__all__ = [
    "CheckpointMetadata",
    "LoadOptions",
    "LoadedBackbone",
    "LoadedCheckpoint",
    "TrainingRecord",
    "WeightsChoice",
    "load_backbone",
    "load_checkpoint",
    "write_checkpoint",
]
