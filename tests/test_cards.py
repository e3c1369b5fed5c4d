"""What a model's card takes from its manifest; tests/test_page.py asks the server for it."""

from pathlib import Path

from lct_deploy.bundle import open_bundle
from lct_deploy.manifest import ParityReport, Precision
from lct_deploy.runtime import RuntimeSpec
from server.cards import model_card


def spec(runtime: str = "onnxruntime", precision: Precision = "fp32") -> RuntimeSpec:
    return RuntimeSpec(
        runtime=runtime,
        precision=precision,
        height=28,
        width=28,
        num_classes=10,
        device="a device",
        versions={"library": "1.2.3"},
    )


def test_the_parity_is_the_worst_of_what_may_run(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    (report,) = manifest.parity

    def measured(error: float, **update: str) -> ParityReport:
        logits = report.logits.model_copy(update={"max_abs_error": error})
        return report.model_copy(update={"logits": logits, **update})

    reports = (
        measured(0.1),
        measured(0.3),
        measured(0.2),
        measured(0.7, runtime="tensorrt"),
        measured(0.9, precision="fp16"),
    )
    several = manifest.model_copy(update={"parity": reports})

    def shown(runtime: str, precision: Precision) -> tuple[float, str] | None:
        parity = model_card(several, spec(runtime, precision)).parity
        return parity and (parity.max_abs_error, parity.runtime)

    assert shown("onnxruntime", "fp32") == (0.3, "onnxruntime")
    assert shown("tensorrt", "fp32") == (0.7, "tensorrt")
    assert shown("tensorrt", "fp16") == (0.9, "onnxruntime")  # measured elsewhere, and the card says where
    assert shown("onnxruntime", "int8") is None


def test_attention_without_groups_and_attention_that_differs(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    assert manifest.attention is not None
    se = manifest.model_copy(update={"attention": manifest.attention.model_copy(update={"kind": "se"})})
    card = model_card(se, spec())
    assert card.attention is not None
    assert (card.attention.kind, card.attention.groups) == ("se", None)
    assert model_card(manifest.model_copy(update={"attention": None}), spec()).attention is None


def test_nothing_of_the_host_is_told(demo_bundle: Path) -> None:
    text = model_card(open_bundle(demo_bundle).manifest, spec()).model_dump_json()
    for secret in ("a device", "library", "1.2.3", "model.onnx", "sha256", str(demo_bundle)):
        assert secret not in text
