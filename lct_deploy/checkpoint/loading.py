"""A checkpoint file to a network in evaluation mode, with every assumption said aloud."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lct_deploy.architecture import (
    DEFAULT_EPSILON,
    AttentionConfig,
    BackboneConfig,
    ModelConfig,
    StridePlacement,
    check_config,
    default_groups,
    parse_arch,
    small_group_warning,
)
from lct_deploy.atomic import sha256_file
from lct_deploy.checkpoint.dialect import Translated, translate
from lct_deploy.checkpoint.files import WeightsChoice, read_checkpoint
from lct_deploy.checkpoint.inference import Inferred, infer, infer_classes
from lct_deploy.checkpoint.metadata import CheckpointMetadata
from lct_deploy.errors import CheckpointError
from lct_deploy.models import Backbone, ResNet, build_model
from lct_deploy.preprocessing import Preprocessing, evaluation_preprocessing
from lct_deploy.suggest import closest

T = TypeVar("T")

# int64 is BatchNorm's step count. Eight bits would need scales that no dialect here has.
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


class LoadOptions(BaseModel):
    """What the user says of a checkpoint; None where they leave it to the file or the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str | None = None
    num_classes: int | None = Field(default=None, ge=1)
    groups: int | None = Field(default=None, ge=1)
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    stride_placement: StridePlacement | None = None
    weights: WeightsChoice | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedCheckpoint:
    """A network with its weights; `notes` are the sentences a user should read."""

    model: ResNet
    metadata: CheckpointMetadata | None
    sha256: str
    weights: WeightsChoice
    notes: tuple[str, ...]

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def preprocessing(self) -> Preprocessing:
        """The file's own; ImageNet's evaluation at the network's size where it does not say."""
        if self.metadata is not None:
            return self.metadata.preprocessing
        return evaluation_preprocessing(self.config.family.image_size)

    @property
    def labels(self) -> tuple[str, ...]:
        """The file's own; numbers where it has none."""
        return self.metadata.labels if self.metadata else tuple(map(str, range(self.config.num_classes)))


def load_checkpoint(path: Path, options: LoadOptions | None = None) -> LoadedCheckpoint:
    """Read, translate, infer and load; float32, evaluation mode, on the CPU.

    Raises CheckpointError for a file that is unsafe, damaged or does not fit, and for an option
    that contradicts it; ArchitectureError for a group count that is not legal.
    """
    options = options or LoadOptions()
    raw = read_checkpoint(path, options.weights)
    translated = translate(raw.tensors)
    classes = _classes(translated, raw.metadata, options)
    notes: list[str] = []
    resolved = resolve(infer(translated.tensors), raw.metadata, options, notes)
    config = ModelConfig(num_classes=classes, **dict(resolved))
    model = build_model(config)
    load_weights(model, translated, notes, source=str(path))
    if warning := small_group_warning(config):
        notes.append(warning)
    return LoadedCheckpoint(
        model=model.eval().requires_grad_(False),
        metadata=raw.metadata,
        sha256=sha256_file(path),
        weights=raw.weights,
        notes=tuple(notes),
    )


def _classes(translated: Translated, metadata: CheckpointMetadata | None, options: LoadOptions) -> int:
    classes = infer_classes(translated.tensors)
    if options.num_classes is not None:
        _same("--num-classes", options.num_classes, classes, "the weights")
    if metadata is not None:
        known = metadata.model.num_classes
        _same("number of classes in the weights", classes, known, "the checkpoint's metadata")
    return classes


def resolve(
    inferred: Inferred, metadata: CheckpointMetadata | None, options: LoadOptions, notes: list[str]
) -> BackboneConfig:
    """The configuration from weights, metadata and flags; a flag never overrules the file."""
    if metadata is not None:
        _confirm(metadata.model, inferred, options)
        _agree(options, metadata.model, "the checkpoint's metadata")
        return BackboneConfig(**metadata.model.model_dump(include=set(BackboneConfig.model_fields)))
    config = _assume(inferred, options, notes)
    _agree(options, config, f"the weights of {config.arch}")
    return config


def _assume(inferred: Inferred, options: LoadOptions, notes: list[str]) -> BackboneConfig:
    """What the weights tell, completed by flags and defaults; the defaults go to `notes`."""
    arch = _resolve_arch(inferred, options)
    family, kind = parse_arch(arch)

    def settle(name: str, flag: T | None, default: T) -> T:
        if flag is None:
            notes.append(f"{name} is not in the weights: assuming {default}")
        return default if flag is None else flag

    has_groups = kind in ("lct", "se_plus")
    attention = AttentionConfig(
        kind=kind,
        groups=settle("groups", options.groups, default_groups(family)) if has_groups else 1,
        epsilon=settle("epsilon", options.epsilon, DEFAULT_EPSILON) if has_groups else DEFAULT_EPSILON,
        reduction=inferred.reduction,
    )
    placement: StridePlacement = "v1.5"
    if family.block == "bottleneck":
        placement = settle("stride placement", options.stride_placement, placement)
    return BackboneConfig(arch=arch, attention=attention, stride_placement=placement)


def _resolve_arch(inferred: Inferred, options: LoadOptions) -> str:
    if options.arch is None:
        return inferred.arch
    family, kind = parse_arch(options.arch)
    same_attention = kind == inferred.attention or (kind, inferred.attention) == ("se_plus", "se")
    if family.depth == inferred.family.depth and same_attention:
        return options.arch
    raise CheckpointError(
        f"--arch {options.arch} contradicts the weights, which are those of {inferred.arch}",
        hint=f"drop --arch, or give --arch {inferred.arch}",
    )


def _confirm(config: BackboneConfig, inferred: Inferred, options: LoadOptions) -> None:
    """Raise CheckpointError where the weights or --arch contradict the metadata's `config`."""
    source = "the checkpoint's metadata"
    _same("depth in the weights", inferred.family.depth, config.family.depth, source)
    if not inferred.shows(config.attention):
        _same("attention in the weights", inferred.attention, config.attention.kind, source)
    if options.arch is not None:
        parse_arch(options.arch)
        _same("--arch", options.arch, config.arch, source)


def _agree(options: LoadOptions, config: BackboneConfig, source: str) -> None:
    """Raise CheckpointError for a flag that is not `config`'s, also where it means nothing to it."""
    if options.groups is not None:
        _same("--groups", options.groups, config.attention.groups, source)
    if options.epsilon is not None:
        _same("--epsilon", options.epsilon, config.attention.epsilon, source)
    if options.stride_placement is not None:
        _same("--stride-placement", options.stride_placement, config.stride_placement, source)


def _same(name: str, given: object, known: object, source: str) -> None:
    if given != known:
        raise CheckpointError(f"{name} {given} contradicts {source}, which says {known}")


def load_weights(model: Backbone, translated: Translated, notes: list[str], *, source: str) -> None:
    """Copy weights into `model`; raises CheckpointError with all that does not fit it."""
    check_config(model.config)
    tensors = dict(translated.tensors)
    expected = model.state_dict()
    _fill_absent(tensors, expected, notes)
    _check_fit(tensors, expected, translated.original, source)
    converted = sorted({str(t.dtype) for t in tensors.values() if t.is_floating_point()} - {"torch.float32"})
    if converted:
        notes.append(f"weights of type {', '.join(converted)} are converted to torch.float32")
    tensors = {key: tensor.to(expected[key].dtype) for key, tensor in tensors.items()}
    _check_values(tensors, translated.original, source)
    model.load_state_dict(tensors)


def _fill_absent(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], notes: list[str]) -> None:
    """What other code bases leave out without loss: BatchNorm's step counts, SE's biases."""
    for key, value in expected.items():
        if key not in tensors and key.endswith("num_batches_tracked"):
            tensors[key] = value
    biases = [k for k in expected if ".attn.fc" in k and k.endswith(".bias") and k not in tensors]
    if biases and len(biases) == sum(".attn.fc" in k and k.endswith(".bias") for k in expected):
        tensors.update({key: torch.zeros_like(expected[key]) for key in biases})
        notes.append("the SE layers have no biases: loaded with zeros")


def _check_fit(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], original: Mapping[str, str], source: str
) -> None:
    """Raise CheckpointError with every key that is missing, unexpected, or of another shape or type."""
    unexpected = sorted(tensors.keys() - expected.keys())
    missing = [key for key in expected if key not in tensors]
    problems: list[str] = []
    for key in missing:
        near = closest(key, unexpected)
        problems.append(f"missing     {key}" + (f"  (closest: {original[near]})" if near else ""))
    for key in unexpected:
        near = closest(key, missing)
        problems.append(f"unexpected  {original[key]}" + (f"  (closest: {near})" if near else ""))
    for key in sorted(tensors.keys() & expected.keys()):
        have, want = tuple(tensors[key].shape), tuple(expected[key].shape)
        if have != want:
            problems.append(f"shape       {original.get(key, key)}: {have} in the file, {want} expected")
        if tensors[key].dtype not in _TYPES:
            problems.append(f"type        {original.get(key, key)}: {tensors[key].dtype} is no weight's type")
    if problems:
        listing = "\n  ".join(problems)
        raise CheckpointError(f"{source}: {len(problems)} keys do not fit:\n  {listing}")


def _check_values(tensors: Mapping[str, Tensor], original: Mapping[str, str], source: str) -> None:
    broken = [
        original.get(key, key)
        for key, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        raise CheckpointError(f"{source}: NaN or infinity in {', '.join(broken[:5])} ({len(broken)} tensors)")
