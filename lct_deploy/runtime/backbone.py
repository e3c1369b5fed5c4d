"""A backbone in ONNX Runtime: images of any size to the maps that a detector takes."""

from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lct_deploy.errors import UsageError
from lct_deploy.runtime.base import RuntimeOptions
from lct_deploy.runtime.onnxruntime import open_session


class BackboneRuntime:
    """An InferenceSession on a backbone's graph. `infer` may be called from several threads."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions) -> Self:
        """Raises BundleError or RuntimeUnavailableError where `path` cannot be loaded as asked.

        With the provider `tensorrt` UsageError: it would build an engine for each new size of image.
        """
        if options.provider == "tensorrt":
            raise UsageError(
                "images of a backbone differ in size, and TensorRT would build an engine for each size",
                hint="--provider cpu or cuda",
            )
        return cls(open_session(path, options))

    @property
    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}

    def infer(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """(N, H, W, 3) uint8 RGB → each map by name, (N, C, ceil(H / stride), ceil(W / stride)) float32.

        Raises UsageError for other inputs.
        """
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not images.size:
            raise UsageError(
                f"expected uint8 images of shape (N, H, W, 3), got {images.dtype} {images.shape}"
            )
        outputs = cast("list[Any]", self._session.run(self._names, {"image": images}))
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        del self._session
