"""`manifest.json`: everything a bundle says about itself. Its JSON Schema is docs/manifest.schema.json."""

from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lct_deploy.architecture import AttentionConfig, FeatureName, StridePlacement
from lct_deploy.preprocessing import Interpolation, Preprocessing, Rgb

SCHEMA_VERSION = 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

PRECISION_KEY = "lct.precision"  # a graph's own metadata: the precision that it computes in

# What an artifact of kind `gates` calls its outputs beside the logits, before it the layer's name.
CONTEXT_OUTPUT, GATE_OUTPUT = ".context", ".gate"

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


class AnySizeInput(_Part):
    """A backbone's input: images as they are, of any height and width."""

    name: str = "image"
    dtype: Literal["uint8"] = "uint8"
    layout: Literal["NHWC"] = "NHWC"
    mean: Rgb
    std: Rgb


class FeatureMap(_Part):
    """An output of a backbone: float32 (N, channels, ceil(H / stride), ceil(W / stride))."""

    name: FeatureName
    channels: int = Field(ge=1)
    stride: int = Field(ge=1)


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
    kind: Literal["graph", "compiled", "gates"] = Field(
        description="gates: a graph with every block's context and gate as outputs, which nothing serves"
    )
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


class AnySizeImages(ImageSource):
    """The same, where images differ in size."""

    short_side: int = Field(description="pixels of the shorter side that the images were resized to")


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


class MapParity(_Part):
    """One map of an artifact against PyTorch's; absolute values as in the map."""

    name: FeatureName
    max_abs_error: float
    max_abs_limit: float
    max_rel_error: float
    worst_size: tuple[int, int] = Field(description="height and width of the image with that error")
    min_cosine: float = Field(description="of one image's map with PyTorch's")
    nonfinite: int = Field(description="values that are NaN or infinite")


class GateParity(_Part):
    """One block's gate vectors against the float64 attention."""

    layer: str
    max_abs_error: float
    rank_correlation: float | None = Field(description="Spearman's, worst image; null if constant")
    saturated: float = Field(description="share of gates below 0.001 or above 0.999")
    nan: int
    constant: bool
    context_error: float | None = Field(
        default=None, description="of the context, as a share of its largest value; null if not compared"
    )


class Accuracy(_Part):
    """Top-1 in percent where the images carry labels of this network's classes."""

    reference_top1: float
    artifact_top1: float
    images: int


class _Report(_Part):
    """What every proof says: of which artifact, where, against what."""

    artifact: str
    runtime: str
    precision: Precision
    reference: str = Field(default="PyTorch", description="whose answers it was compared with")
    gates: tuple[GateParity, ...]
    drifts_first: str | None = Field(
        default=None, description="the first block in graph order whose gates are over their limit"
    )
    warnings: tuple[str, ...]
    failures: tuple[str, ...]
    versions: dict[str, str]

    @property
    def passed(self) -> bool:
        return not self.failures


class ParityReport(_Report):
    """The proof that one artifact gives PyTorch's answers, or the reasons why it does not."""

    images: ImageSource
    logits: LogitParity
    accuracy: Accuracy | None


class BackboneReport(_Report):
    """The same of a backbone, map by map."""

    images: AnySizeImages
    maps: tuple[MapParity, ...]


class Source(_Part):
    """The file behind the bundle."""

    kind: Literal["checkpoint", "onnx"] = "checkpoint"
    checkpoint_sha256: Sha256 = Field(description="of the checkpoint or the .onnx file")
    weights: Literal["model", "ema"]
    notes: tuple[str, ...] = Field(description="what the weights did not tell and was assumed")


class AnyManifest(_Part):
    """What `manifest.json` says of every bundle."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=NAME_PATTERN)
    arch: str
    attention: AttentionConfig | None = Field(description="null where blocks differ")
    stride_placement: StridePlacement | None = Field(description="null for an .onnx file, which does not say")
    artifacts: tuple[Artifact, ...]
    precision: Precision = Field(default="fp32", description="what runtimes take unless told otherwise")
    golden: FileRecord
    source: Source
    certificate: FusionCertificate
    commands: tuple[str, ...]
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


class Manifest(AnyManifest):
    """The contents of a classifier's `manifest.json`: `image` in, `logits` out."""

    kind: Literal["classifier"] = "classifier"
    num_classes: int = Field(ge=1)
    labels: tuple[str, ...]
    input: InputSpec
    parity: tuple[ParityReport, ...]

    @model_validator(mode="after")
    def _labels_match(self) -> "Manifest":
        if len(self.labels) != self.num_classes:
            raise ValueError(f"{len(self.labels)} labels for {self.num_classes} classes")
        return self


class BackboneManifest(AnyManifest):
    """The contents of a backbone's `manifest.json`: `image` in, the maps of `features` out."""

    kind: Literal["backbone"] = "backbone"
    features: tuple[FeatureMap, ...] = Field(min_length=1)
    input: AnySizeInput
    parity: tuple[BackboneReport, ...]

    @property
    def names(self) -> tuple[FeatureName, ...]:
        """Of the maps, in the order of the graph's outputs."""
        return tuple(feature.name for feature in self.features)
