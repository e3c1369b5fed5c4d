"""What an export starts from, whatever the file was: a portable graph and its reference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onnx import ModelProto

from exporters.images import ParityImages
from exporters.proof import Proof
from lct_deploy.architecture import AttentionConfig, StridePlacement
from lct_deploy.manifest import FusionCertificate
from lct_deploy.preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checked fp32 graph (`image` → `logits`, attention fused) with all that its bundle says of it.

    `prove` runs the reference, PyTorch or the source graph itself, over images. `attention` is None
    where a graph's blocks differ, `stride_placement` for a graph that does not say.
    """

    model: ModelProto
    certificate: FusionCertificate
    prove: Callable[[ParityImages], Proof]
    arch: str
    attention: AttentionConfig | None
    stride_placement: StridePlacement | None
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    sha256: str
    source: Literal["checkpoint", "onnx"]
    weights: Literal["model", "ema"]
    versions: dict[str, str]
    notes: tuple[str, ...]
