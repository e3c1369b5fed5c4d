"""What every runtime offers: open, infer, profile, spec, close."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lct_deploy.cores import available_cores
from lct_deploy.errors import UsageError
from lct_deploy.manifest import Artifact, Precision

ProviderName = Literal["cpu", "cuda", "tensorrt"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How to run; what does not concern a runtime it does not read."""

    threads: int = field(default_factory=available_cores)
    provider: ProviderName = "cpu"  # onnxruntime's
    max_batch: int = 8  # OpenVINO: images that run at once; of more it makes several batches
    streams: int = 2  # TensorRT: calls that run side by side, each with buffers of its own
    cuda_graphs: bool = True  # TensorRT: launch all of an inference's kernels at once


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """What an opened artifact takes and gives, and what runs it."""

    runtime: str
    precision: Precision
    height: int
    width: int
    num_classes: int
    device: str
    versions: dict[str, str]
    compiled_batches: tuple[int, ...] = ()  # batch sizes that run on a graph of their own
    pads: bool = False  # other batches are filled up to these, not run on a graph for any batch
    streams: int = 1  # calls of `infer` that run side by side


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Milliseconds of an inference's parts; None where a runtime has no such part or does not tell it.

    `enqueue` is the host's time to hand an inference to the GPU, which begins meanwhile.
    """

    host_to_device: float | None = None
    enqueue: float | None = None
    compute: float | None = None
    device_to_host: float | None = None


class Runtime(Protocol):
    """An opened artifact. `infer` may be called from several threads."""

    @property
    def spec(self) -> RuntimeSpec: ...

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 3) uint8 RGB → logits (N, classes) float32; raises UsageError for other inputs."""
        ...

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        """Infer once, slower than `infer` does where parts can only be told apart so; raises what it does."""
        ...

    def close(self) -> None:
        """Free what the artifact holds; the runtime cannot be used afterwards."""
        ...


class ArtifactRuntime(Runtime, Protocol):
    """A runtime that opens artifacts from files."""

    @classmethod
    def open(cls, path: Path, options: RuntimeOptions, artifact: Artifact | None = None) -> Self:
        """Load `path`, of which a bundle says `artifact`; engines need to be told, graphs tell themselves.

        Raises BundleError, RuntimeUnavailableError or DeviceError where that cannot be done.
        """
        ...


def check_images(images: NDArray[np.uint8], spec: RuntimeSpec) -> None:
    """Raise UsageError unless `images` is a batch that `spec` accepts."""
    expected = (spec.height, spec.width, 3)
    if images.ndim != 4 or images.shape[1:] != expected or images.dtype != np.uint8 or not len(images):
        raise UsageError(f"expected uint8 images of shape (N, {', '.join(map(str, expected))}), "
                         f"got {images.dtype} {images.shape}")  # fmt: skip


def milliseconds_of(run: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)
