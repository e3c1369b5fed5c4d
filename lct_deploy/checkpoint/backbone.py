"""The backbone in a detector's checkpoint, or in a classifier's: what is around it is left out, aloud.

mmdetection    backbone.layer1.0.conv1.weight        beside neck.…, rpn_head.…, roi_head.…
torchvision    backbone.body.layer1.0.conv1.weight   beside backbone.fpn.…, rpn.…, roi_heads.…
a classifier   layer1.0.conv1.weight                 beside fc.…
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lct_deploy.architecture import FEATURES, BackboneConfig, FeatureName, small_group_warning
from lct_deploy.atomic import sha256_file
from lct_deploy.checkpoint.dialect import Translated, translate
from lct_deploy.checkpoint.files import WeightsChoice, read_checkpoint
from lct_deploy.checkpoint.inference import infer
from lct_deploy.checkpoint.loading import LoadOptions, load_weights, resolve
from lct_deploy.checkpoint.metadata import CheckpointMetadata
from lct_deploy.errors import ArchitectureError, CheckpointError
from lct_deploy.models import Backbone, build_backbone

_FIRST_BLOCK = re.compile(r"(|.*\.)layer1\.0\.conv1\.weight")
_CLASSIFIER = "fc."
_BATCH_NORM_EPSILON = 1e-5  # PyTorch's default, and that of torchvision's FrozenBatchNorm2d


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """Stem and stages with their weights; `notes` are the sentences a user should read."""

    model: Backbone
    metadata: CheckpointMetadata | None
    sha256: str
    weights: WeightsChoice
    notes: tuple[str, ...]

    @property
    def config(self) -> BackboneConfig:
        return self.model.config


def load_backbone(
    path: Path, options: LoadOptions | None = None, *, features: Sequence[FeatureName] = FEATURES
) -> LoadedBackbone:
    """As `load_checkpoint`, of a classifier or a detector; stages after the last of `features` are left out.

    Raises CheckpointError for a file that is unsafe, damaged, has no backbone or several, or does not
    fit; ArchitectureError for a network without such maps and a group count that is not legal.
    """
    options = options or LoadOptions()
    raw = read_checkpoint(path, options.weights)
    translated, notes = _extract(raw.tensors, source=str(path))
    config = resolve(infer(translated.tensors), raw.metadata, options, notes)
    if not config.family.has_features:
        raise ArchitectureError(
            f"{config.arch} gives no c2 to c5: its stages are at strides 1, 2 and 4",
            hint="`lct-deploy models --backbone` lists the networks that do",
        )
    model = build_backbone(config)
    load_weights(model, translated, notes, source=str(path))
    _drop_stages(model, features, notes)
    if warning := small_group_warning(config):
        notes.append(warning)
    return LoadedBackbone(
        model=model.eval().requires_grad_(False),
        metadata=raw.metadata,
        sha256=sha256_file(path),
        weights=raw.weights,
        notes=tuple(notes),
    )


def _extract(tensors: Mapping[str, Tensor], *, source: str) -> tuple[Translated, list[str]]:
    """The backbone's tensors under our names, and what is said of those that are left out."""
    prefix = _prefix(tensors, source)
    head = [key for key in tensors if key.startswith(prefix + _CLASSIFIER)]
    within = {k: value for k, value in tensors.items() if k.startswith(prefix) and k not in head}
    translated = translate(within, prefix=prefix)
    notes: list[str] = []
    if others := Counter(_part(key, prefix) for key in tensors if not key.startswith(prefix)):
        listed = ", ".join(f"{part} {count}" for part, count in sorted(others.items()))
        notes.append(f"the backbone is {prefix.removesuffix('.')}; left out, in tensors: {listed}")
    if head:
        notes.append(f"the classifier is left out: {', '.join(head)}")
    if not any(name.endswith("num_batches_tracked") for name in translated.tensors):
        notes.append(
            f"BatchNorms count no steps, as frozen ones do; their ε is assumed to be {_BATCH_NORM_EPSILON:g}"
        )
    return translated, notes


def _prefix(tensors: Mapping[str, Tensor], source: str) -> str:
    """What stands before the backbone's keys, with its dot."""
    found = sorted({match[1] for match in map(_FIRST_BLOCK.fullmatch, tensors) if match})
    if not found:
        raise CheckpointError(
            f"{source}: no backbone found: no key ends in layer1.0.conv1.weight",
            hint=f"its first keys are {', '.join(sorted(tensors)[:5]) or 'none'}",
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{source}: holds {len(found)} backbones: {', '.join(key or '(no prefix)' for key in found)}",
            hint="save the weights of one of them alone",
        )
    return found[0]


def _part(key: str, prefix: str) -> str:
    """The module that a key outside of the backbone belongs to: rpn, or backbone.fpn beside backbone.body."""
    parts, path = key.split("."), prefix.split(".")
    differing = (i for i, (a, b) in enumerate(zip(parts, path, strict=False)) if a != b)
    shared = next(differing, len(parts) - 1)
    return ".".join(parts[: shared + 1])


def _drop_stages(model: Backbone, features: Sequence[FeatureName], notes: list[str]) -> None:
    needed = 1 + max(map(FEATURES.index, features))
    for stage in range(needed + 1, len(model.stages) + 1):
        delattr(model, f"layer{stage}")
        notes.append(f"layer{stage} is left out: {', '.join(features)} do not need it")
