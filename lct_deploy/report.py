"""Manifests and their parts in words, for the terminal."""

from lct_deploy.manifest import (
    AnyManifest,
    Artifact,
    BackboneManifest,
    BackboneReport,
    EngineBuild,
    FusionCertificate,
    GateParity,
    LogitParity,
    Manifest,
    MapParity,
    ParityReport,
)


def describe_certificate(certificate: FusionCertificate) -> str:
    """The fusion certificate: one line, and one more for each miss."""
    fused, blocks = len(certificate.fused), certificate.attention_blocks
    ops = ", ".join(sorted({block.op for block in certificate.fused}))
    head = f"fusion certificate: {fused} of {blocks} attention blocks are one node" + (
        f" ({ops})" if ops else ""
    )
    return "\n".join([head, *(f"  not fused: {miss.layer}: {miss.reason}" for miss in certificate.misses)])


def describe_parity(report: ParityReport | BackboneReport) -> str:
    """The parity report, a line a measure."""
    images = report.images
    lines = [
        f"parity of {report.artifact} with {report.reference}, {report.precision} on {report.runtime}: "
        f"{'PASSED' if report.passed else 'FAILED'}",
        f"  images: {images.real} real, {images.synthetic} synthetic; {images.description}",
    ]
    if isinstance(report, BackboneReport):
        lines += [f"  {describe_map(parity)}" for parity in report.maps]
    else:
        lines += _describe_logits(report.logits)
    if report.gates:
        worst = max(report.gates, key=lambda gate: gate.max_abs_error)
        lines.append(
            f"  gates: {len(report.gates)} blocks, max error {worst.max_abs_error:.1e} in {worst.layer}, "
            f"{_describe_contexts(report.gates)}"
            f"{max(gate.saturated for gate in report.gates):.1%} saturated at most; "
            + (f"first to drift: {report.drifts_first}" if report.drifts_first else "none drifts")
        )
    if isinstance(report, ParityReport) and report.accuracy:
        accuracy = report.accuracy
        lines.append(
            f"  accuracy on {accuracy.images} labelled images: {accuracy.artifact_top1:.2f} %, "
            f"{report.reference} {accuracy.reference_top1:.2f} %"
        )
    lines += [f"  warning: {warning}" for warning in report.warnings]
    lines += [f"  failure: {failure}" for failure in report.failures]
    return "\n".join(lines)


def _describe_contexts(gates: tuple[GateParity, ...]) -> str:
    errors = [gate.context_error for gate in gates if gate.context_error is not None]
    return f"contexts off by {max(errors):.1e} of their largest value, " if errors else ""


def _describe_logits(logits: LogitParity) -> list[str]:
    limit = "" if logits.max_abs_limit is None else f" (limit {logits.max_abs_limit:.2e})"
    return [
        f"  max |Δlogit| {logits.max_abs_error:.2e}{limit}, cosine ≥ {logits.min_cosine:.7f}, "
        f"KL ≤ {logits.max_kl:.1e}",
        f"  agreement: top-1 {logits.top1_agreement:.2%}, top-5 {logits.top5_agreement:.2%}, "
        f"{len(logits.flips)} flips",
    ]


def describe_map(parity: MapParity) -> str:
    """One map's measures in a line."""
    height, width = parity.worst_size
    return (
        f"{parity.name}: max |Δ| {parity.max_abs_error:.2e} (limit {parity.max_abs_limit:.2e}) "
        f"at {height}x{width}, cosine ≥ {parity.min_cosine:.7f}"
    )


def describe_bundle(manifest: Manifest | BackboneManifest) -> str:
    """All that a user wants to know of a bundle before serving it."""
    lines = [
        f"{manifest.name} version {manifest.version}, created {manifest.created}",
        f"  {manifest.arch}: {_describe_attention(manifest)}, strides {manifest.stride_placement or '?'}",
        *(
            _backbone_lines(manifest)
            if isinstance(manifest, BackboneManifest)
            else _classifier_lines(manifest)
        ),
        f"  in the graph: mean {manifest.input.mean}, std {manifest.input.std}",
        f"  checkpoint: sha256 {manifest.source.checkpoint_sha256[:16]}…, {manifest.source.weights} weights",
        *(f"  note: {note}" for note in manifest.source.notes),
    ]
    lines += [f"  {_describe_artifact(artifact)}" for artifact in manifest.artifacts]
    lines.append(describe_certificate(manifest.certificate))
    lines += [describe_parity(report) for report in manifest.parity]
    lines += [f"made by: {command}" for command in manifest.commands]
    return "\n".join(lines)


def _classifier_lines(manifest: Manifest) -> list[str]:
    spec = manifest.input
    return [
        f"  {manifest.num_classes} classes: {_shortened(manifest.labels)}",
        f"  input: {spec.dtype} {spec.layout} {spec.height}x{spec.width} RGB; resize {spec.resize} "
        f"({spec.interpolation}), crop {spec.crop}",
    ]


def _backbone_lines(manifest: BackboneManifest) -> list[str]:
    spec = manifest.input
    maps = ", ".join(f"{m.name} ({m.channels} channels, stride {m.stride})" for m in manifest.features)
    return [
        f"  a backbone, no classifier: {maps}",
        f"  input: {spec.dtype} {spec.layout} RGB of any height and width",
    ]


def _describe_attention(manifest: AnyManifest) -> str:
    attention = manifest.attention
    if attention is None:
        return "attention that differs from block to block"
    groups = f", {attention.groups} groups, ε {attention.epsilon:g}" if attention.has_groups else ""
    return f"attention {attention.kind}{groups}"


def _describe_artifact(artifact: Artifact) -> str:
    state = "verified" if artifact.verified else "NOT VERIFIED"
    form = f", attention: {artifact.attention}" if artifact.attention else ""
    return (
        f"{artifact.path}: {artifact.kind} for {artifact.runtime}, {artifact.precision}, {state}, "
        f"sha256 {artifact.sha256[:16]}…{form}{_describe_engine(artifact)}"
    )


def _describe_engine(artifact: Artifact) -> str:
    """What an engine was built for and became; nothing of other artifacts."""
    if artifact.build is None:
        return ""
    batches = ", ".join(f"{p.min}:{p.opt}:{p.max}" for p in artifact.profiles)
    return f", {artifact.gpu}, batches {batches}, {describe_layers(artifact.build)}"


def describe_layers(build: EngineBuild) -> str:
    """How many layers an engine has, and of which kinds."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in build.layer_summary.items())
    return f"{build.layers} layers ({kinds}), attention {build.attention}"


def _shortened(labels: tuple[str, ...], shown: int = 10) -> str:
    return ", ".join(labels[:shown]) + (", …" if len(labels) > shown else "")
