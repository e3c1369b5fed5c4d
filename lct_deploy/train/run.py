"""One training run from data to checkpoint file."""

import csv
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lct_deploy.architecture import ModelConfig, model_config, small_group_warning
from lct_deploy.atomic import atomic_file, check_writable
from lct_deploy.checkpoint import CheckpointMetadata, TrainingRecord, write_checkpoint
from lct_deploy.checkpoint.files import SUFFIXES
from lct_deploy.datasets import ArrayImages, LabelledImages, load_dataset
from lct_deploy.errors import DataError, UsageError
from lct_deploy.models import build_model
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing, evaluation_preprocessing
from lct_deploy.progress import stderr
from lct_deploy.train.batches import Batches
from lct_deploy.train.config import TrainConfig
from lct_deploy.train.loop import EpochResult, fit
from lct_deploy.validation import validate


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What to train on what; None leaves the choice to the data or the architecture."""

    data: str
    arch: str
    groups: int | None = None
    image_size: int | None = None


def train(request: TrainRequest, config: TrainConfig, output: Path, *, resume: bool = False) -> EpochResult:
    """Train and write `output`; beside it a CSV of the epochs and the state to resume from.

    Raises UsageError for an output that cannot be written, DataError for data that cannot be used,
    ArchitectureError for an architecture that does not exist.
    """
    if output.suffix not in SUFFIXES:
        raise UsageError(f"{output}: not a checkpoint name", hint=f"use one of {', '.join(SUFFIXES)}")
    if request.image_size is not None and request.image_size < 1:
        raise UsageError(f"--image-size {request.image_size} is not a size in pixels")
    check_writable(output)
    splits = [load_dataset(request.data, split) for split in ("train", "test")]
    _check_classes(*splits)
    classes = splits[0].classes
    model = model_config(request.arch, num_classes=len(classes), groups=request.groups)
    if warning := small_group_warning(model):
        stderr.print(f"warning: {warning}")
    preprocessing = _preprocessing(splits[0], request.image_size or _natural_size(splits[0], model))
    torch.manual_seed(config.seed)
    # channels_last is the layout that the CPU's convolutions train fastest in.
    classifier = ImageClassifier(build_model(model), preprocessing)
    classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    workers = len(os.sched_getaffinity(0))
    train_batches, test_batches = (
        Batches(
            images,
            preprocessing,
            batch_size=config.batch_size,
            augment=augment,
            seed=config.seed,
            workers=workers,
        )
        for images, augment in zip(splits, (True, False), strict=True)
    )
    history = fit(
        classifier,
        train_batches,
        test_batches,
        config,
        settings={
            "data": request.data,
            **config.model_dump(),
            **model.model_dump(),
            **preprocessing.model_dump(),
        },
        state_path=output.with_name(f"{output.stem}.state.pt"),
        resume=resume,
        on_epoch=_announce,
    )
    _write_log(output.with_suffix(".csv"), history)
    record = TrainingRecord(
        data=request.data,
        command=shlex.join(["lct-deploy", *sys.argv[1:]]),
        epochs=config.epochs,
        test_top1=history[-1].test_top1,
        seconds=history[-1].seconds,
    )
    metadata = CheckpointMetadata(model=model, labels=classes, preprocessing=preprocessing, training=record)
    write_checkpoint(output, classifier.network.state_dict(), metadata)
    return history[-1]


def _check_classes(train_images: LabelledImages, test_images: LabelledImages) -> None:
    different = sorted(set(train_images.classes) ^ set(test_images.classes))
    if different:
        raise DataError(f"classes that are in only one of the two splits: {', '.join(different)}")


def _natural_size(images: LabelledImages, model: ModelConfig) -> int:
    return images.images.shape[1] if isinstance(images, ArrayImages) else model.family.image_size


def _preprocessing(images: LabelledImages, size: int) -> Preprocessing:
    """Small images are taken whole with their own mean and std, files as ImageNet's are."""
    if not isinstance(images, ArrayImages):
        return evaluation_preprocessing(size)
    mean = round(float(images.images.mean()) / 255, 4)
    std = round(float(images.images.std()) / 255, 4)
    return validate(Preprocessing, resize=size, crop=size, mean=(mean,) * 3, std=(std,) * 3)


def _announce(result: EpochResult) -> None:
    stderr.print(
        f"epoch {result.epoch}: loss {result.loss:.4f}, test top-1 {result.test_top1:.2f} %, "
        f"{result.seconds:.0f} s"
    )


def _write_log(path: Path, history: list[EpochResult]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(asdict(history[0])))
        writer.writeheader()
        writer.writerows(asdict(result) for result in history)
