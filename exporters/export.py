"""A checkpoint or an .onnx file to a bundle that carries its proof, or to no bundle at all."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import ModelProto

from exporters.bisect import IMAGES, blame, describe_blame
from exporters.gates import with_gates
from exporters.images import ParityImages, parity_images, spread
from exporters.options import ExportOptions
from exporters.prepared import Prepared
from exporters.proof import Proof, verify_gates
from exporters.variants import Variant, check_calibration, choose_target, make_variant, runs_on, verify_graph
from lct_deploy.atomic import atomic_directory, check_new_directory, sha256_file
from lct_deploy.bundle import GATES, GOLDEN, GRAPH, write_manifest
from lct_deploy.errors import ExportError, ParityError, UsageError
from lct_deploy.manifest import (
    NAME_PATTERN,
    Artifact,
    BackboneReport,
    FileRecord,
    FusionCertificate,
    InputSpec,
    Manifest,
    ParityReport,
    Profile,
    Source,
)
from lct_deploy.progress import stderr
from lct_deploy.report import describe_certificate, describe_parity
from lct_deploy.runtime.select import load_runtime

GOLDEN_IMAGES = 16

Announce = Callable[[str], None]
OneReport = TypeVar("OneReport", ParityReport, BackboneReport)


def export(
    source: Path, output: Path, options: ExportOptions, *, command: str, announce: Announce
) -> Manifest:
    """Load, trace or read, fuse, rewrite, verify, write; `announce` hears each result and assumption.

    `command` is recorded as what made the bundle. Raises a UsageError for a source, option or output
    that cannot be used, ExportError for a graph that cannot be made or an attention that is not
    fused, ParityError for a graph that does not agree with its reference; `output` is then unchanged.
    """
    check_new_directory(output, overwrite=options.overwrite)
    name, version = checked_name(options.name, output), checked_version(options.version)
    target = choose_target(options)
    check_calibration(options)
    load_runtime(runs_on(target))
    with stderr.status("making the graph …"):
        prepared = _prepare(source, options)
    for note in prepared.notes:
        announce(f"note: {note}")
    announce(describe_certificate(prepared.certificate))
    check_certificate(prepared.certificate, allow_unfused=options.allow_unfused)
    if options.gates:
        _check_gates(prepared.certificate)

    images = parity_images(prepared.preprocessing, options.images, prepared.labels)
    variant = None
    if (options.precision, target) != ("fp32", "portable"):
        variant = make_variant(prepared.model, options, prepared.preprocessing, images)
    proof = prepared.prove(images)
    with atomic_directory(output, overwrite=options.overwrite) as directory:
        artifacts, reports = _write_graphs(directory, prepared, variant, proof, announce)
        if options.gates:
            graph, report = _write_gates(directory, prepared, proof, announce)
            artifacts, reports = (*artifacts, graph), (*reports, report)
        _write_golden(directory / GOLDEN, proof)
        manifest = Manifest(
            name=name,
            version=version,
            arch=prepared.arch,
            attention=prepared.attention,
            stride_placement=prepared.stride_placement,
            num_classes=len(prepared.labels),
            labels=prepared.labels,
            input=InputSpec.of(prepared.preprocessing),
            artifacts=artifacts,
            precision=options.precision,
            golden=FileRecord(path=GOLDEN, sha256=sha256_file(directory / GOLDEN)),
            source=Source(
                kind=prepared.source,
                checkpoint_sha256=prepared.sha256,
                weights=prepared.weights,
                notes=(*prepared.notes, *(variant.notes if variant else ())),
            ),
            certificate=prepared.certificate,
            parity=reports,
            commands=(command,),
        )
        write_manifest(directory, manifest)
    return manifest


def _prepare(source: Path, options: ExportOptions) -> Prepared:
    if source.suffix == ".onnx":
        from exporters.from_onnx import prepare_onnx

        return prepare_onnx(source, options)
    from exporters.from_checkpoint import prepare_checkpoint

    return prepare_checkpoint(source, options)


def checked_name(name: str | None, output: Path) -> str:
    """The model's name, that of the bundle by default; raises UsageError for what cannot be one."""
    return _checked(name or output.resolve().name, "a model's name", "--name")


def checked_version(version: str) -> str:
    """Raises UsageError for what cannot be a version."""
    return _checked(version, "a version", "--model-version")


def _checked(value: str, what: str, option: str) -> str:
    """Names and versions become parts of URLs."""
    if not re.fullmatch(NAME_PATTERN, value):
        raise UsageError(
            f"{value!r} cannot be {what} (letters, digits, '.', '_' and '-', 64 at most)",
            hint=f"give one with {option}",
        )
    return value


def check_certificate(certificate: FusionCertificate, *, allow_unfused: bool) -> None:
    """Raise ExportError for blocks that are not fused, unless that is allowed."""
    if certificate.misses and not allow_unfused:
        raise ExportError(
            f"{len(certificate.misses)} of {certificate.attention_blocks} attention blocks are not fused",
            hint="--allow-unfused exports them in plain operators",
        )


def _check_gates(certificate: FusionCertificate) -> None:
    """Raise UsageError without attention, ExportError for one whose gate is not to be had."""
    if not certificate.attention_blocks:
        raise UsageError("the network has no attention, and so no gates", hint="drop --gates")
    if certificate.misses:
        raise ExportError(
            f"{certificate.misses[0].layer} is not fused: its gate cannot be told", hint="drop --gates"
        )


def _write_graphs(
    directory: Path, prepared: Prepared, variant: Variant | None, proof: Proof, announce: Announce
) -> tuple[tuple[Artifact, ...], tuple[ParityReport, ...]]:
    """Save the portable graph and the variant, compare each; raises ParityError where one fails."""
    path = directory / GRAPH
    onnx.save(prepared.model, path)
    reports = [passed(verify_graph(path, "fp32", proof), announce)]
    artifacts = [
        Artifact(
            path=GRAPH,
            sha256=sha256_file(path),
            runtime="portable",
            kind="graph",
            precision="fp32",
            profiles=(Profile(),),
            versions=prepared.versions,
            verified=True,
        )
    ]
    if variant is not None:
        for note in variant.notes:
            announce(f"note: {note}")
        path = directory / variant.name
        onnx.save(variant.model, path)
        blamed = partial(_blamed, prepared.model, variant, proof.images)
        report = verify_graph(path, variant.precision, proof, runtime=variant.runtime)
        reports.append(passed(report, announce, blamed))
        artifacts.append(
            artifacts[0].model_copy(
                update={
                    "path": variant.name,
                    "sha256": sha256_file(path),
                    "runtime": variant.target,
                    "precision": variant.precision,
                    "source": GRAPH,
                }
            )
        )
    return tuple(artifacts), tuple(reports)


def _write_gates(
    directory: Path, prepared: Prepared, proof: Proof, announce: Announce
) -> tuple[Artifact, ParityReport]:
    """Save the portable graph that gives contexts and gates too, and compare it, them included."""
    path = directory / GATES
    onnx.save(with_gates(prepared.model), path)
    report = passed(verify_gates(path, proof), announce)
    artifact = Artifact(
        path=GATES,
        sha256=sha256_file(path),
        runtime="portable",
        kind="gates",
        precision="fp32",
        profiles=(Profile(),),
        versions=prepared.versions,
        verified=True,
        source=GRAPH,
    )
    return artifact, report


def passed(report: OneReport, announce: Announce, blamed: Callable[[], str] | None = None) -> OneReport:
    """The report, announced; with a failure goes what `blamed` finds, as the graph itself is not kept."""
    announce(describe_parity(report))
    if report.passed:
        return report
    if blamed and report.precision != "fp32":
        announce(blamed())
    raise ParityError(
        f"{report.artifact} does not agree with {report.reference}, no bundle is written",
        hint="the lines marked failure above say by how much",
    )


def _blamed(source: ModelProto, variant: Variant, images: ParityImages) -> str:
    """The layer whose precision costs most, in words."""
    try:
        return describe_blame(blame(source, variant.model, images.images[spread(IMAGES, len(images.images))]))
    except ExportError as error:
        return f"note: which layer is to blame cannot be told: {error}"


def _write_golden(path: Path, proof: Proof) -> None:
    """A few inputs, spread over real and synthetic ones, with the reference's logits."""
    chosen = spread(GOLDEN_IMAGES, len(proof.images.images))
    np.savez_compressed(path, images=proof.images.images[chosen], logits=proof.reference.logits[chosen])
