"""A checkpoint's stages to a bundle of maps that carries its proof, or to no bundle at all."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch

from exporters.backbone.graph import export_backbone_graph
from exporters.backbone.images import backbone_images, golden_images
from exporters.backbone.options import BackboneOptions
from exporters.backbone.proof import torch_maps, verify_backbone
from exporters.export import Announce, check_certificate, checked_name, checked_version, passed
from exporters.graph import DEFAULT_OPSET
from exporters.settle import settle_normalization
from lct_deploy.architecture import FEATURES, Family, FeatureName
from lct_deploy.atomic import atomic_directory, check_new_directory, sha256_file
from lct_deploy.bundle import GOLDEN, GRAPH, write_manifest
from lct_deploy.checkpoint import LoadedBackbone, load_backbone
from lct_deploy.errors import UsageError
from lct_deploy.manifest import (
    AnySizeInput,
    Artifact,
    BackboneManifest,
    FeatureMap,
    FileRecord,
    Profile,
    Source,
)
from lct_deploy.models.classifier import ImageBackbone
from lct_deploy.progress import stderr
from lct_deploy.report import describe_certificate


def export_backbone(
    source: Path, output: Path, options: BackboneOptions, *, command: str, announce: Announce
) -> BackboneManifest:
    """Load, trace, verify, write; `announce` hears each result and assumption.

    `command` is recorded as what made the bundle. Raises a UsageError for a checkpoint, option or output
    that cannot be used, ExportError for a graph that cannot be made or an attention that is not fused,
    ParityError for a graph that does not agree with PyTorch; `output` is then unchanged.
    """
    check_new_directory(output, overwrite=options.overwrite)
    name, version = checked_name(options.name, output), checked_version(options.version)
    if source.suffix == ".onnx":
        raise UsageError(
            f"{source}: an .onnx file has its outputs inside", hint="--features takes a checkpoint"
        )
    loaded = load_backbone(source, options.load, features=options.features)
    own = loaded.metadata.preprocessing if loaded.metadata else None
    mean, std, notes = settle_normalization(own, options.mean, options.std)
    spec, features = AnySizeInput(mean=mean, std=std), feature_maps(loaded.config.family, options.features)
    with stderr.status("making the graph …"):
        graph = export_backbone_graph(
            loaded.model,
            spec,
            features,
            opset=options.opset or DEFAULT_OPSET,
            metadata=_graph_metadata(loaded, spec, features),
        )
    for note in (*loaded.notes, *notes):
        announce(f"note: {note}")
    announce(describe_certificate(graph.certificate))
    check_certificate(graph.certificate, allow_unfused=options.allow_unfused)

    backbone = ImageBackbone(loaded.model, mean, std, options.features).eval()
    images = backbone_images(options.images, options.resize)
    with atomic_directory(output, overwrite=options.overwrite) as directory:
        onnx.save(graph.model, directory / GRAPH)
        report = passed(verify_backbone(directory / GRAPH, backbone, images), announce)
        _write_golden(directory / GOLDEN, backbone)
        manifest = BackboneManifest(
            name=name,
            version=version,
            arch=loaded.config.arch,
            attention=loaded.config.attention,
            stride_placement=loaded.config.stride_placement,
            features=features,
            input=spec,
            artifacts=(_graph_artifact(directory / GRAPH),),
            golden=FileRecord(path=GOLDEN, sha256=sha256_file(directory / GOLDEN)),
            source=Source(
                checkpoint_sha256=loaded.sha256, weights=loaded.weights, notes=(*loaded.notes, *notes)
            ),
            certificate=graph.certificate,
            parity=(report,),
            commands=(command,),
        )
        write_manifest(directory, manifest)
    return manifest


def feature_maps(family: Family, names: tuple[FeatureName, ...]) -> tuple[FeatureMap, ...]:
    """What is known of each map without running the network."""

    def described(name: FeatureName) -> FeatureMap:
        stage = FEATURES.index(name)
        return FeatureMap(name=name, channels=family.stage_channels[stage], stride=4 * 2**stage)

    return tuple(map(described, names))


def _graph_artifact(path: Path) -> Artifact:
    return Artifact(
        path=GRAPH,
        sha256=sha256_file(path),
        runtime="portable",
        kind="graph",
        precision="fp32",
        profiles=(Profile(),),
        versions={"torch": torch.__version__, "onnx": onnx.__version__},
        verified=True,
    )


def _graph_metadata(
    loaded: LoadedBackbone, spec: AnySizeInput, features: tuple[FeatureMap, ...]
) -> dict[str, str]:
    """What the .onnx file says of itself where it travels without its bundle."""
    config = loaded.config
    return {
        "lct.arch": config.arch,
        "lct.attention": config.attention.model_dump_json(),
        "lct.stride_placement": config.stride_placement,
        "lct.input": spec.model_dump_json(),
        "lct.features": json.dumps([feature.model_dump() for feature in features]),
        "lct.checkpoint_sha256": loaded.sha256,
    }


def _write_golden(path: Path, backbone: ImageBackbone) -> None:
    """Small images of several sizes with PyTorch's maps, as `BackboneBundle.golden` reads them."""
    arrays: dict[str, np.ndarray] = {}
    for number, image in enumerate(golden_images()):
        arrays[f"image_{number}"] = image
        arrays |= {f"{name}_{number}": values for name, values in torch_maps(backbone, image).items()}
    np.savez_compressed(path, allow_pickle=False, **arrays)
