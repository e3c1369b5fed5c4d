"""A backbone's bundle against the checkpoint that it was made from."""

from pathlib import Path

from exporters.backbone.images import backbone_images
from exporters.backbone.proof import verify_backbone
from exporters.verify import check_source, load_options
from lct_deploy.bundle import BackboneBundle
from lct_deploy.checkpoint import load_backbone
from lct_deploy.manifest import BackboneReport, Precision
from lct_deploy.models.classifier import ImageBackbone
from lct_deploy.runtime.select import backbone_graph


def verify_backbone_bundle(
    bundle: BackboneBundle, checkpoint: Path, images: Path | None, runtime: str, precision: Precision | None
) -> BackboneReport:
    """Compare the bundle's graph with its checkpoint, on images as large as those of its own proof.

    Raises CheckpointError for a checkpoint that does not fit the bundle, UsageError for a runtime but
    onnxruntime, BundleError for a precision that the bundle has no graph in.
    """
    manifest, graph = bundle.manifest, backbone_graph(bundle, runtime, precision)
    loaded = load_backbone(checkpoint, load_options(manifest, checkpoint), features=manifest.names)
    check_source(bundle, checkpoint)
    backbone = ImageBackbone(loaded.model, manifest.input.mean, manifest.input.std, manifest.names).eval()
    short_side = manifest.parity[0].images.short_side
    return verify_backbone(bundle.file(graph), backbone, backbone_images(images, short_side))
