"""A bundle whose network does next to nothing: what remains of a request is the server's own work."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from lct_deploy.atomic import sha256_file
from lct_deploy.bundle import GOLDEN, GRAPH, Bundle, open_bundle, write_manifest
from lct_deploy.manifest import (
    Artifact,
    FileRecord,
    FusionCertificate,
    InputSpec,
    Manifest,
    Profile,
    Source,
)
from lct_deploy.preprocessing import Preprocessing

NAME = "noop"
SIZE = 8
LABELS = ("red", "green", "blue")
_OPSET = 20


def noop_bundle(path: Path) -> Bundle:
    """Write one to the new directory `path`: logits are the mean of each channel of 8x8 pixels."""
    path.mkdir()
    onnx.save(_model(), path / GRAPH)
    images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
    logits = images.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    np.savez(path / GOLDEN, images=images, logits=logits)
    write_manifest(path, _manifest(path))
    return open_bundle(path)


def _model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["values", "axes"], ["logits"], keepdims=0),
        ],
        NAME,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)])],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def _manifest(path: Path) -> Manifest:
    preprocessing = Preprocessing(resize=SIZE, crop=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    graph = sha256_file(path / GRAPH)
    return Manifest(
        name=NAME,
        version="1",
        arch=NAME,
        attention=None,
        stride_placement=None,
        num_classes=len(LABELS),
        labels=LABELS,
        input=InputSpec.of(preprocessing),
        artifacts=(
            Artifact(
                path=GRAPH,
                sha256=graph,
                runtime="portable",
                kind="graph",
                precision="fp32",
                profiles=(Profile(),),
                versions={},
                verified=True,
            ),
        ),
        golden=FileRecord(path=GOLDEN, sha256=sha256_file(path / GOLDEN)),
        source=Source(kind="onnx", checkpoint_sha256=graph, weights="model", notes=()),
        certificate=FusionCertificate(attention_blocks=0, fused=(), misses=()),
        parity=(),
        commands=("python -m benchmarks.serving.overhead",),
    )
