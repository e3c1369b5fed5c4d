"""Reading an .onnx file from anywhere: whole, valid, and without reaching outside its folder."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import (
    ExternalDataInfo,
    load_external_data_for_model,
    uses_external_data,
)

from lct_deploy.errors import CheckpointError

_MAX_BYTES = 2**31 - 1  # protobuf's limit, which onnxruntime's in-memory models share


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A model with all its weights in memory; sha256 covers the file and then its external data."""

    path: Path
    model: ModelProto
    sha256: str


def read_onnx(path: Path) -> OnnxFile:
    """Raises CheckpointError for a file that is absent, damaged, invalid or not self-contained."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    model = _parse(path, data)
    digest = hashlib.sha256(data)
    tensors = [tensor for tensor in _tensors(model) if uses_external_data(tensor)]
    if tensors:
        for file in _external_files(path, tensors):
            digest.update(file.read_bytes())
        load_external_data_for_model(model, str(path.parent))
    _check(path, model)
    return OnnxFile(path=path, model=model, sha256=digest.hexdigest())


def first_line(error: BaseException) -> str:
    """Libraries follow their message with pages of context."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _parse(path: Path, data: bytes) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise CheckpointError(f"{path}: not an ONNX model, or a truncated one") from error
    for entry in (*model.opset_import, *model.graph.node):
        if entry.domain == "ai.onnx":  # the standard domain's other name
            entry.domain = ""
    if not model.graph.node or not model.opset_import:
        raise CheckpointError(f"{path}: not an ONNX model (there are no operators in it)")
    return model


def _check(path: Path, model: ModelProto) -> None:
    if model.ByteSize() > _MAX_BYTES:
        raise CheckpointError(f"{path}: the model is larger than 2 GiB")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise CheckpointError(f"{path}: not valid ONNX: {first_line(error)}") from error


def _external_files(path: Path, tensors: list[TensorProto]) -> list[Path]:
    """The files that hold weights, all inside the model's folder and long enough."""
    folder = path.parent.resolve()
    files: set[Path] = set()
    for tensor in tensors:
        info = ExternalDataInfo(tensor)
        file = (folder / info.location).resolve()
        if not file.is_relative_to(folder):
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} is in {info.location!r}, outside the model's folder",
                hint="save the model with its data beside it: onnx.save(model, path)",
            )
        if not file.is_file():
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} is in {info.location!r}, which is not there",
                hint=f"put {info.location} beside {path.name}",
            )
        if (info.offset or 0) + (info.length or 0) > file.stat().st_size:
            raise CheckpointError(f"{path}: {info.location!r} ends before tensor {tensor.name!r}: truncated?")
        files.add(file)
    return sorted(files)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _graph_tensors(graph)
