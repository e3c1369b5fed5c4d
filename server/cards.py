"""GET /v1/models: the card of each served model, from its bundle's manifest and what runs it."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from lct_deploy.architecture import AttentionKind
from lct_deploy.manifest import Manifest, ParityReport, Precision
from lct_deploy.preprocessing import Interpolation
from lct_deploy.runtime.base import RuntimeSpec
from server.models import Models


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class AttentionCard(_Part):
    """The channel attention in each block."""

    kind: AttentionKind
    groups: int | None = Field(description="null where the attention has no groups")


class InputCard(_Part):
    """What is done to an image before the network sees it; sizes in pixels."""

    height: int
    width: int
    resize: int = Field(description="of the short side")
    crop: int = Field(description="side of the square kept from the centre")
    interpolation: Interpolation


class ParityCard(_Part):
    """How far the model's answers are from those of the network that it was made from."""

    reference: str = Field(description="whose logits it was compared with")
    runtime: str = Field(description="where the compared logits were computed")
    max_abs_error: float = Field(description="largest |Δlogit|")
    top1_agreement: float = Field(description="share of the images with the same best class")
    images: int


class FusionCard(_Part):
    """The fusion certificate in two numbers."""

    blocks: int = Field(description="attention blocks of the network")
    fused: int = Field(description="of these, how many are one node")


class ModelCard(_Part):
    """What a client may know of a model: no paths, devices or versions of libraries."""

    name: str
    version: str
    arch: str
    attention: AttentionCard | None = Field(description="null where blocks differ")
    runtime: str
    precision: Precision
    num_classes: int
    input: InputCard
    parity: ParityCard | None = Field(description="null where the bundle has no report of this precision")
    fusion: FusionCard


def cards_router(models: Models) -> APIRouter:
    """The route over `models`."""
    router = APIRouter(tags=["classification"])

    @router.get("/v1/models")
    async def cards() -> list[ModelCard]:
        """The served models; of several versions of one, requests that name none go to the last."""
        return [model_card(model.manifest, model.spec) for model in models.models]

    return router


def model_card(manifest: Manifest, spec: RuntimeSpec) -> ModelCard:
    """The card of a bundle that `spec` runs."""
    attention, certificate = manifest.attention, manifest.certificate
    return ModelCard(
        name=manifest.name,
        version=manifest.version,
        arch=manifest.arch,
        attention=attention
        and AttentionCard(kind=attention.kind, groups=attention.groups if attention.has_groups else None),
        runtime=spec.runtime,
        precision=spec.precision,
        num_classes=manifest.num_classes,
        input=InputCard.model_validate(manifest.input.model_dump(include=set(InputCard.model_fields))),
        parity=_parity_card(manifest.parity, spec),
        fusion=FusionCard(blocks=certificate.attention_blocks, fused=len(certificate.fused)),
    )


def _parity_card(reports: tuple[ParityReport, ...], spec: RuntimeSpec) -> ParityCard | None:
    """The worst report of what may run here: those of this runtime, or else of the precision alone."""
    precise = [report for report in reports if report.precision == spec.precision]
    candidates = [report for report in precise if report.runtime == spec.runtime] or precise
    if not candidates:
        return None
    worst = max(candidates, key=lambda report: report.logits.max_abs_error)
    return ParityCard(
        reference=worst.reference,
        runtime=worst.runtime,
        max_abs_error=worst.logits.max_abs_error,
        top1_agreement=worst.logits.top1_agreement,
        images=worst.images.real + worst.images.synthetic,
    )
