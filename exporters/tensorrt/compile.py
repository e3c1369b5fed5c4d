"""`lct-deploy compile --runtime tensorrt|tensorrt-rtx`: engines into a bundle."""

import hashlib
import shlex
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from exporters.compiled import moved_in, prove_by_graph, record
from exporters.images import ParityImages, parity_images
from exporters.options import ExportOptions, Target
from exporters.tensorrt.build import BuiltEngine, build_engine
from exporters.tensorrt.cache import Place, build_key, find_build
from exporters.tensorrt.features import check_flags, check_size, target_gpus
from exporters.tensorrt.layers import of_profile, summarize
from exporters.tensorrt.options import BuildOptions, capability
from exporters.variants import CALIBRATED, make_variant, verify_graph
from lct_deploy.atomic import check_writable, sha256_file
from lct_deploy.bundle import MANIFEST, Bundle
from lct_deploy.errors import BundleError, ParityError, RuntimeUnavailableError
from lct_deploy.golden import check_golden
from lct_deploy.manifest import Artifact, EngineBuild, Manifest, ParityReport, Precision
from lct_deploy.report import describe_layers, describe_parity
from lct_deploy.runtime import RuntimeOptions, open_artifact
from lct_deploy.runtime.flavours import (
    Flavour,
    FlavourName,
    driver_version,
    gpu_capability,
    gpu_name,
    load_flavour,
)

DIRECTORY = "engines"
GRAPHS: Target = "tensorrt"  # the runtime that a bundle's graphs for both flavours are made for

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """One engine to build; the options' `gpus` are those that it is for."""

    bundle: Bundle
    flavour: Flavour
    options: BuildOptions
    place: Place
    images: Path | None
    command: str
    announce: Announce


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """What an engine is built from; with `images` to prove it on where the bundle does not hold it yet."""

    model: ModelProto
    artifact: Artifact
    images: ParityImages | None = None


def compile_engine(
    bundle: Bundle,
    runtime: FlavourName,
    options: BuildOptions,
    *,
    images: Path | None,
    command: str,
    announce: Announce,
) -> Manifest:
    """Build an engine from the bundle's graph of the precision, which is made and proven if it has none.

    An equal engine is not built again. Where a GPU can run it, it is compared with the golden logits at
    once; else it is kept as unverified. Raises UsageError for options that the flavour does not have,
    RuntimeUnavailableError without it or its GPU, ExportError for a graph that cannot be built,
    ParityError for what does not agree; the bundle is then as it was.
    """
    check_flags(options, runtime)
    flavour = load_flavour(runtime)
    place = Place(gpu=gpu_capability(), device=gpu_name(), driver=driver_version())
    gpus = target_gpus(options, flavour, place.gpu)
    request = _Request(
        bundle=bundle,
        flavour=flavour,
        options=options.model_copy(update={"gpus": gpus}),
        place=place,
        images=images,
        command=command,
        announce=announce,
    )
    check_writable(bundle.path / MANIFEST)
    if options.timing_cache is not None:
        check_writable(options.timing_cache)
    try:
        with tempfile.TemporaryDirectory(dir=bundle.path, prefix=".compile.") as work:
            return _compile(request, Path(work))
    except OSError as error:
        raise BundleError(f"{error.filename or bundle.path}: cannot be written: {error.strerror}") from error


def _compile(request: _Request, work: Path) -> Manifest:
    bundle, options = request.bundle, request.options
    graph = _graph(request, work)
    model = _with_plugins(request, graph.model) if options.attention == "plugin" else graph.model
    found = find_build(bundle.manifest.artifacts, _key(request, model))
    if found is not None and bundle.is_whole(found):
        request.announce(f"{found.path}: nothing has changed since it was built, it is not built again")
        return bundle.manifest
    check_size(model, options.profiles)
    reports = [] if graph.images is None else [_prove(request, graph, graph.images, work)]
    built = build_engine(model, options, flavour=request.flavour, announce=request.announce)
    engine = _saved(request, built, work, source=graph.artifact, key=_key(request, model))
    engine = engine.model_copy(update={"verified": _verify_here(request, engine, work)})
    added = [graph.artifact, engine] if reports else [engine]
    with moved_in(bundle, work, added):
        return record(bundle, added, reports, request.command, replaces=_replaces(engine))


def _key(request: _Request, model: ModelProto) -> str:
    digest = hashlib.sha256(model.SerializeToString()).hexdigest()
    return build_key(digest, request.options, flavour=request.flavour, place=request.place)


def _with_plugins(request: _Request, model: ModelProto) -> ModelProto:
    """The graph with the attention as plugin nodes.

    They carry PTX for the least of the GPUs: it runs on all that are newer.
    """
    try:
        from exporters.tensorrt.plugin import with_plugins
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            f"the attention's plugin is compiled with the package {error.name}, which is not installed",
            hint="pip install 'lct-deploy[kernel]', or --attention native",
        ) from error
    bundle, least = request.bundle, min(map(capability, request.options.gpus))
    portable = onnx.load(bundle.file(bundle.artifact("portable", "fp32")))
    return with_plugins(model, portable, least, request.flavour.name)


def _graph(request: _Request, work: Path) -> _Graph:
    """The bundle's graph for TensorRT in the options' precision, or one made of its portable graph."""
    bundle = request.bundle
    precision = _in_graph(request.options.precision)
    held = [
        a
        for a in bundle.manifest.artifacts
        if (a.kind, a.runtime, a.precision) == ("graph", GRAPHS, precision)
    ]
    if held:
        artifact = bundle.artifact(GRAPHS, precision)
        return _Graph(model=onnx.load(bundle.file(artifact)), artifact=artifact)
    if precision in CALIBRATED:
        raise BundleError(
            f"{bundle.path}: holds no {precision} graph for TensorRT, which takes images to calibrate",
            hint=f"lct-deploy export CHECKPOINT -o {shlex.quote(str(bundle.path))} --overwrite "
            f"--precision {precision} --for {GRAPHS} --calib-data DIR",
        )
    return _made(request, precision, work)


def _in_graph(precision: Precision) -> Precision:
    """TF32 is how an fp32 graph is computed."""
    return "fp32" if precision == "tf32" else precision


def _made(request: _Request, precision: Precision, work: Path) -> _Graph:
    """A graph for TensorRT, saved in `work`, of the bundle's portable one."""
    bundle, manifest = request.bundle, request.bundle.manifest
    portable = bundle.artifact("portable", "fp32")
    preprocessing = manifest.input.preprocessing
    images = parity_images(preprocessing, request.images, manifest.labels)
    options = ExportOptions(precision=precision, target=GRAPHS)
    variant = make_variant(onnx.load(bundle.file(portable)), options, preprocessing, images)
    path = work / variant.name
    onnx.save(variant.model, path)
    artifact = portable.model_copy(
        update={
            "path": variant.name,
            "sha256": sha256_file(path),
            "runtime": GRAPHS,
            "precision": precision,
            "source": portable.path,
        }
    )
    return _Graph(model=variant.model, artifact=artifact, images=images)


def _prove(request: _Request, graph: _Graph, images: ParityImages, work: Path) -> ParityReport:
    """The new graph against the bundle's fp32 one; raises ParityError where it does not agree."""
    proof = prove_by_graph(request.bundle, images)
    report = verify_graph(work / graph.artifact.path, graph.artifact.precision, proof)
    request.announce(describe_parity(report))
    if not report.passed:
        raise ParityError(
            f"{graph.artifact.path} does not agree with {proof.source}, nothing is added to the bundle",
            hint="the lines marked failure above say by how much",
        )
    return report


def _saved(request: _Request, built: BuiltEngine, work: Path, *, source: Artifact, key: str) -> Artifact:
    """The engine in `work` under its final name, and what the manifest says of it."""
    options, flavour = request.options, request.flavour
    digest, gpu = hashlib.sha256(built.engine).hexdigest(), ",".join(options.gpus)
    name = f"{flavour.name}-{options.precision}-{gpu}-{digest[:8]}.engine"
    (work / name).write_bytes(built.engine)
    layers = of_profile(built.layers)  # each profile has its own
    build = EngineBuild(
        key=key,
        command=request.command,
        layers=len(layers),
        layer_summary=summarize(layers),
        attention=options.attention,
        options=options.described(),
    )
    request.announce(f"{name}: {describe_layers(build)}")
    return Artifact(
        path=f"{DIRECTORY}/{name}",
        sha256=digest,
        runtime=flavour.name,
        kind="compiled",
        precision=options.precision,
        profiles=options.profiles,
        gpu=gpu,
        versions={flavour.name: flavour.version, "driver": request.place.driver or "absent"},
        verified=False,
        source=source.path,
        build=build,
    )


def _verify_here(request: _Request, engine: Artifact, work: Path) -> bool:
    """Whether the engine agrees with the golden logits on this GPU; False where it cannot run here.

    Raises ParityError for one that does not agree.
    """
    bundle, here = request.bundle, request.place.gpu
    if here not in request.options.gpus:
        request.announce(
            f"not verified: {'there is no GPU' if here is None else f'the GPU is {here}'} here; on its own, "
            f"lct-deploy verify {shlex.quote(str(bundle.path))} --runtime {engine.runtime} "
            f"--precision {engine.precision} makes it fit to be served"
        )
        return False
    path = work / Path(engine.path).name
    with closing(open_artifact(engine.runtime, path, RuntimeOptions(), engine)) as opened:
        parity = check_golden(bundle, opened)
    request.announce(f"golden logits agree on {here}, max |Δlogit| {parity.max_abs_error:.2e}")
    return True


def _replaces(engine: Artifact) -> Callable[[Artifact], bool]:
    """The engine for the same GPUs in the same precision."""
    same = (engine.runtime, engine.kind, engine.precision, engine.gpu)
    return lambda old: (old.runtime, old.kind, old.precision, old.gpu) == same
