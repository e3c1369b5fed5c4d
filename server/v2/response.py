"""The answer to an inference request: JSON, and behind it a blob where that was asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from server.v2.request import OUTPUT, InferRequest
from server.v2.tensors import bytes_to_blob


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A body, and how much of it is JSON: all of it where that is None."""

    body: bytes
    json_size: int | None


def write_answer(
    request: InferRequest, model: str, version: str, logits: NDArray[np.float32], labels: Sequence[str]
) -> Answer:
    """What `request` asked for, of logits (N, classes)."""
    output, blob = _write_output(request, logits, labels)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = [output]
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if blob is None:
        return Answer(body=text, json_size=None)
    return Answer(body=text + blob, json_size=len(text))


def _write_output(
    request: InferRequest, logits: NDArray[np.float32], labels: Sequence[str]
) -> tuple[dict[str, Any], bytes | None]:
    wanted = request.output
    blob: bytes | None = None
    if wanted.classes:
        rows = classify(logits, labels, wanted.classes)
        texts = [text for row in rows for text in row]
        output: dict[str, Any] = {"name": OUTPUT, "shape": [len(rows), len(rows[0])], "datatype": "BYTES"}
        data: Any = texts
        if wanted.binary:
            blob = bytes_to_blob(text.encode() for text in texts)
    else:
        output = {"name": OUTPUT, "shape": list(logits.shape), "datatype": "FP32"}
        data = np.ascontiguousarray(logits).reshape(-1)
        if wanted.binary:
            blob = logits.astype("<f4", copy=False).tobytes()
    if blob is None:
        output["data"] = data  # a number that is not finite becomes null
    else:
        output["parameters"] = {"binary_data_size": len(blob)}
    return output, blob


def classify(logits: NDArray[np.float32], labels: Sequence[str], k: int) -> list[list[str]]:
    """The k highest logits of each row as `value:index:label`; ties go to the lower index."""
    order: list[list[int]] = np.argsort(-logits, axis=1, kind="stable")[:, :k].tolist()
    return [
        [_entry(float(row[index]), index, labels[index]) for index in best]
        for row, best in zip(logits, order, strict=True)
    ]


def _entry(value: float, index: int, label: str) -> str:
    return f"{value:f}:{index}:{label}" if label else f"{value:f}:{index}"
