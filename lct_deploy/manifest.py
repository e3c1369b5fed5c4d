"""`manifest.json`: everything a bundle says about itself. Its JSON Schema is docs/manifest.schema.json."""

from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lct_deploy.architecture import AttentionConfig, StridePlacement
from lct_deploy.preprocessing import Interpolation, Preprocessing, Rgb

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

PRECISION_KEY = "lct.precision"  # a graph's own metadata: the precision that it computes in

OPERATORS = "lct operators"  # in an artifact's versions: the op library that it needs

RuntimeName = Literal["portable", "onnxruntime", "tensorrt", "tensorrt-rtx", "openvino"]
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]


def _confined(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or ":" in path:
        raise ValueError(f"{path!r} is not a path inside the bundle")
    return path


BundlePath = Annotated[str, AfterValidator(_confined)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Part):
    """The graph's input and what clients' images go through before it."""

    name: str = "image"
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    resize: int = Field(ge=1)
    crop: int = Field(ge=1)
    interpolation: Interpolation
    mean: Rgb
    std: Rgb

    @classmethod
    def of(cls, preprocessing: Preprocessing) -> "InputSpec":
        crop = preprocessing.crop
        return cls(height=crop, width=crop, **preprocessing.model_dump())

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.model_validate(self.model_dump(include=set(Preprocessing.model_fields)))


class FileRecord(_Part):
    """A file of the bundle and the hash it must have."""

    path: BundlePath
    sha256: Sha256


class Profile(_Part):
    """Batch sizes that an artifact accepts; `max` None is unbounded."""

    min: int = 1
    opt: int = 1
    max: int | None = None


class EngineBuild(_Part):
    """How a TensorRT engine was built, and what it became."""

    key: Sha256 = Field(description="of all that decides what the engine is: an equal build is not repeated")
    command: str
    layers: int = Field(description="kernels and copies after fusion, of the first profile")
    layer_summary: dict[str, int] = Field(description="layers by kind")
    attention: Literal["native", "plugin"]
    options: dict[str, str] = Field(description="what was asked of the builder, beside profiles and GPUs")


class Artifact(FileRecord):
    """Something that a runtime can load."""

    runtime: RuntimeName
    kind: Literal["graph", "compiled"]
    precision: Precision
    profiles: tuple[Profile, ...]
    host: str | None = Field(default=None, description="instruction sets of the machine it was compiled for")
    gpu: str | None = Field(default=None, description="compute capabilities it was built for, as sm89,sm120")
    versions: dict[str, str]
    verified: bool
    source: BundlePath | None = Field(default=None, description="the graph that it was made from")
    attention: str | None = Field(default=None, description="the form that the attention has in it")
    build: EngineBuild | None = Field(default=None, description="of an engine")


class FusedBlock(_Part):
    """An attention block and the one node that computes it."""

    layer: str
    node: str
    op: str


class Miss(_Part):
    """An attention block that is not one node, and why."""

    layer: str
    reason: str


class FusionCertificate(_Part):
    """How many attention blocks the checkpoint has and what became of each."""

    attention_blocks: int
    fused: tuple[FusedBlock, ...]
    misses: tuple[Miss, ...]


class ImageSource(_Part):
    """What parity was measured on."""

    description: str
    real: int
    synthetic: int


class Flip(_Part):
    """An image whose top-1 differs; `margin` is PyTorch's top-1 logit minus its second."""

    image: int
    reference: int
    artifact: int
    margin: float


class LogitParity(_Part):
    """Logits of an artifact against PyTorch's; absolute values in logit units."""

    max_abs_error: float
    max_abs_limit: float | None
    max_rel_error: float
    min_cosine: float
    max_kl: float
    top1_agreement: float
    top5_agreement: float
    flips: tuple[Flip, ...]


class GateParity(_Part):
    """One block's gate vectors against the float64 attention."""

    layer: str
    max_abs_error: float
    rank_correlation: float | None = Field(description="Spearman's, worst image; null if constant")
    saturated: float = Field(description="share of gates below 0.001 or above 0.999")
    nan: int
    constant: bool


class Accuracy(_Part):
    """Top-1 in percent where the images carry labels of this network's classes."""

    reference_top1: float
    artifact_top1: float
    images: int


class ParityReport(_Part):
    """The proof that one artifact gives PyTorch's answers, or the reasons why it does not."""

    artifact: str
    runtime: str
    precision: Precision
    reference: str = Field(default="PyTorch", description="whose logits it was compared with")
    images: ImageSource
    logits: LogitParity
    gates: tuple[GateParity, ...]
    drifts_first: str | None = Field(
        default=None, description="the first block in graph order whose gates are over their limit"
    )
    accuracy: Accuracy | None
    warnings: tuple[str, ...]
    failures: tuple[str, ...]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        return not self.failures


class Source(_Part):
    """The file behind the bundle."""

    kind: Literal["checkpoint", "onnx"] = "checkpoint"
    checkpoint_sha256: Sha256 = Field(description="of the checkpoint or the .onnx file")
    weights: Literal["model", "ema"]
    notes: tuple[str, ...] = Field(description="what the weights did not tell and was assumed")


class Manifest(_Part):
    """The contents of `manifest.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    arch: str
    attention: AttentionConfig | None = Field(description="null where blocks differ")
    stride_placement: StridePlacement | None = Field(description="null for an .onnx file, which does not say")
    num_classes: int = Field(ge=1)
    labels: tuple[str, ...]
    input: InputSpec
    artifacts: tuple[Artifact, ...]
    precision: Precision = Field(default="fp32", description="what runtimes take unless told otherwise")
    golden: FileRecord
    source: Source
    certificate: FusionCertificate
    parity: tuple[ParityReport, ...]
    commands: tuple[str, ...]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @model_validator(mode="after")
    def _labels_match(self) -> "Manifest":
        if len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        return self
