"""A file for each way to run a network: `open_runner` gives what is timed."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.messages import Kind, Subject
from benchmarks.stages import Profile
from lct_deploy.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Runner:
    """An opened network: uint8 images (N, H, W, 3) to logits (N, classes)."""

    infer: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    runtime: str  # with its version
    precision: str
    device: str = "cpu"
    compiled_batches: tuple[int, ...] = ()
    profile: Profile | None = None  # where its runtime tells an inference's parts apart


# kind → module; each imports what only its own environment may have
_OPENERS: dict[Kind, str] = {
    "bundle": "bundle",
    "torch eager": "torch_network",
    "torch compile": "torch_network",
    "onnxruntime": "plain_onnxruntime",
    "onnxruntime openvino": "plain_onnxruntime",
    "openvino": "openvino_model",
    "openvino nncf": "openvino_nncf",
    "known time": "known_time",
}


def open_runner(subject: Subject, bundle: Bundle) -> Runner:
    """Raises what stands in the way, such as ModuleNotFoundError or RuntimeUnavailableError."""
    module = importlib.import_module(f"{__name__}.{_OPENERS[subject.kind]}")
    return module.open_runner(subject, bundle)
