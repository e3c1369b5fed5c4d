"""What a run needs before its first step, checked: its data, its network, its share of the work."""

from dataclasses import dataclass

import numpy as np
import torch

from lct_deploy.architecture import ModelConfig, model_config, parse_arch
from lct_deploy.cores import available_cores
from lct_deploy.datasets import ArrayImages, LabelledImages, load_dataset
from lct_deploy.errors import ArchitectureError, DataError, UsageError
from lct_deploy.models import build_model
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.preprocessing import Preprocessing, evaluation_preprocessing
from lct_deploy.train.batches import Batches, Share
from lct_deploy.train.config import Execution, TrainConfig
from lct_deploy.train.files import Unreadable
from lct_deploy.train.ranks import Ranks
from lct_deploy.validation import validate


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Both splits of a data set, of the same classes."""

    train: LabelledImages
    test: LabelledImages

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def load_splits(source: str) -> Splits:
    """Raises DataError for data that cannot be used, or whose splits do not have the same classes."""
    splits = Splits(train=load_dataset(source, "train"), test=load_dataset(source, "test"))
    different = sorted(set(splits.train.classes) ^ set(splits.test.classes))
    if different:
        raise DataError(f"classes that are in only one of the two splits: {', '.join(different)}")
    counts = np.bincount(splits.train.labels, minlength=len(splits.classes))
    missing = [name for name, count in zip(splits.classes, counts, strict=True) if not count]
    if missing:
        raise DataError(f"classes without an image to train on: {', '.join(missing)}")
    return splits


def network_config(config: TrainConfig, num_classes: int) -> ModelConfig:
    """Raises ArchitectureError for a network that does not exist and for settings that it does not have."""
    if without := _without_effect(config):
        raise ArchitectureError(f"{', '.join(without)} would change nothing in this {config.arch}")
    return model_config(
        config.arch,
        num_classes=num_classes,
        groups=config.groups,
        normalize=config.normalize,
        transform=config.transform,
    )


def _without_effect(config: TrainConfig) -> list[str]:
    """Options of an ablation that the network has no part for."""
    is_lct = parse_arch(config.arch)[1] == "lct"
    first = TrainConfig()
    transform = {"--w-init": config.w_init != first.w_init, "--b-init": config.b_init != first.b_init}
    attention = {"--no-normalize": not config.normalize, "--no-transform": not config.transform}
    unused = {} if is_lct else attention
    unused |= {} if is_lct and config.transform else transform
    return [name for name, given in unused.items() if given]


def settle_preprocessing(config: TrainConfig, images: LabelledImages, model: ModelConfig) -> Preprocessing:
    """Small images are taken whole with their own mean and std, files as ImageNet's are."""
    if not isinstance(images, ArrayImages):
        return evaluation_preprocessing(config.image_size or model.family.image_size)
    size = config.image_size or images.images.shape[1]
    mean = round(float(images.images.mean()) / 255, 4)
    std = round(float(images.images.std()) / 255, 4)
    return validate(Preprocessing, resize=size, crop=size, mean=(mean,) * 3, std=(std,) * 3)


def build_classifier(
    model: ModelConfig, preprocessing: Preprocessing, config: TrainConfig, execution: Execution, ranks: Ranks
) -> ImageClassifier:
    """The network with the weights of its seed, on its device."""
    torch.manual_seed(config.seed)
    network = build_model(model, w_init=config.w_init, b_init=config.b_init)
    classifier = ImageClassifier(network, preprocessing).to(ranks.device)
    if execution.channels_last:  # the layout that convolutions train fastest in
        classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return classifier


def make_batches(
    splits: Splits,
    preprocessing: Preprocessing,
    config: TrainConfig,
    execution: Execution,
    ranks: Ranks,
    unreadable: Unreadable,
) -> tuple[Batches, Batches]:
    """To train on and to test on: this process's share of each batch; DataError where there is no batch."""
    own = range(ranks.rank * execution.accumulate, (ranks.rank + 1) * execution.accumulate)
    shares = (
        Share(parts=batch_parts(execution, ranks), own=own),
        Share(parts=ranks.size, own=range(ranks.rank, ranks.rank + 1)),
    )
    train, test = (
        Batches(
            images,
            preprocessing,
            batch_size=config.batch_size,
            augment=augment,
            seed=config.seed,
            workers=_workers(execution, ranks),
            share=share,
            unreadable=unreadable,
            pinned=ranks.device.type == "cuda",
        )
        for images, augment, share in zip((splits.train, splits.test), (True, False), shares, strict=True)
    )
    if not len(train):
        raise DataError(f"{len(splits.train)} images are too few for one batch in {shares[0].parts} parts")
    return train, test


def check_parts(config: TrainConfig, model: ModelConfig, preprocessing: Preprocessing, parts: int) -> None:
    """Raise UsageError where a part has too few images for BatchNorm to have a variance."""
    stride = 4 if model.family.small_stem else 32
    least = 2 if preprocessing.crop <= stride else 1
    if config.batch_size < least * parts:
        raise UsageError(
            f"a batch of {config.batch_size} cannot be cut into {parts} part{'s' * (parts > 1)}: "
            f"{config.arch} needs {least} images in each at {preprocessing.crop} pixels",
            hint="give a larger --batch-size",
        )


def batch_parts(execution: Execution, ranks: Ranks) -> int:
    """How many parts a batch is normalised in, of all processes."""
    return ranks.size * execution.accumulate


def _workers(execution: Execution, ranks: Ranks) -> int:
    if execution.workers is not None:
        return execution.workers
    return max(1, available_cores() // ranks.local_size)
