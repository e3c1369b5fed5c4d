"""ONNX Runtime: portable and compiled graphs on the CPU."""

from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lct_deploy.errors import BundleError, RuntimeUnavailableError
from lct_deploy.kernels.cpu import op_library
from lct_deploy.manifest import PRECISION_KEY, Precision
from lct_deploy.runtime.base import RuntimeOptions, RuntimeSpec, check_images


class OnnxRuntime:
    """An InferenceSession on a graph of ours (`image` in, `logits` out)."""

    def __init__(self, session: onnxruntime.InferenceSession, spec: RuntimeSpec) -> None:
        self._session = session
        self._spec = spec

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions) -> Self:
        _check_providers(options.providers)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.inter_op_num_threads = 1
        # A bundle's compiled graphs are sessions of their own: the threads of one must not spin, in
        # wait for more work, on the cores where another is computing.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        if library := op_library():
            settings.register_custom_ops_library(str(library))
        settings.log_severity_level = 3  # errors; warnings about unused initialisers are noise
        try:
            session = onnxruntime.InferenceSession(str(path), settings, providers=list(options.providers))
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise BundleError(f"{path}: onnxruntime cannot load it: {error}") from error
        return cls(session, _spec(session))

    @property
    def spec(self) -> RuntimeSpec:
        return self._spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        check_images(images, self._spec)
        outputs = cast("list[Any]", self._session.run(["logits"], {"image": images}))
        return outputs[0]

    def close(self) -> None:
        del self._session


def _check_providers(wanted: tuple[str, ...]) -> None:
    available = onnxruntime.get_available_providers()
    missing = [name for name in wanted if name not in available]
    if missing:
        raise RuntimeUnavailableError(
            f"onnxruntime has no {', '.join(missing)} here; it has {', '.join(available)}",
            hint="pip install 'lct-deploy[gpu]' in an environment without the package onnxruntime",
        )


def _precision(session: onnxruntime.InferenceSession) -> Precision:
    """What the exporter wrote into the graph; fp32 where it says nothing."""
    metadata = session.get_modelmeta().custom_metadata_map
    return cast("Precision", metadata.get(PRECISION_KEY, "fp32"))


def _spec(session: onnxruntime.InferenceSession) -> RuntimeSpec:
    _, height, width, _ = session.get_inputs()[0].shape
    return RuntimeSpec(
        runtime="onnxruntime",
        precision=_precision(session),
        height=height,
        width=width,
        num_classes=session.get_outputs()[0].shape[1],
        device=session.get_providers()[0],
        versions={"onnxruntime": onnxruntime.__version__},
    )
