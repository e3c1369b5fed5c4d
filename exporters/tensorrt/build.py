"""An ONNX graph to an engine: the one path for TensorRT 10, TensorRT 11 and TensorRT-RTX.

All are strongly typed: what an engine computes in is what the graph says, but for TF32, which is a flag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from exporters.tensorrt.cache import read_timing_cache
from exporters.tensorrt.layers import EngineLayer, layers_of_inspector, layers_of_log
from exporters.tensorrt.messages import build_error, parser_error
from exporters.tensorrt.options import BuildOptions
from exporters.tensorrt.progress import build_progress
from lct_deploy.atomic import atomic_file
from lct_deploy.errors import UsageError
from lct_deploy.kernels.gpu.plugin import register_plugins
from lct_deploy.manifest import Profile
from lct_deploy.runtime.flavours import Flavour
from lct_deploy.runtime.trt_log import Messages, listening, logger

Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A serialized engine, and its layers after fusion for every profile."""

    engine: bytes
    layers: tuple[EngineLayer, ...]


def build_engine(
    graph: ModelProto, options: BuildOptions, *, flavour: Flavour, announce: Announce
) -> BuiltEngine:
    """Build an engine for a graph (`image` in, `logits` out); `announce` hears TensorRT's warnings.

    Raises ExportError for a graph that TensorRT cannot take or build, naming node and module;
    RuntimeUnavailableError without the memory or the GPU for it; UsageError for a timing cache that
    cannot be read.
    """
    trt = flavour.module
    if options.attention == "plugin":
        register_plugins(flavour)
    with listening(flavour) as messages:
        builder = _builder(trt, flavour, messages, graph)
        network = builder.create_network(_network_flags(trt, options))
        parser = trt.OnnxParser(network, logger(flavour))
        if not parser.parse(_parsed(graph, options).SerializeToString()):
            raise parser_error(parser, graph)
        config = _configure(builder, graph, options, flavour)
        cache = _timing_cache(config, options.timing_cache, messages)
        with build_progress(flavour, f"building for {flavour.name}") as monitor:
            config.progress_monitor = monitor
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise build_error(messages.reasons(), graph)
        engine = bytes(plan)
        layers = _layers(engine, graph, flavour, messages)
    for warning in dict.fromkeys(messages.warnings):
        announce(f"{flavour.name}: {warning}")
    if options.timing_cache is not None:
        _save_timing_cache(cache, options.timing_cache)
    return BuiltEngine(engine=engine, layers=layers)


def _parsed(graph: ModelProto, options: BuildOptions) -> ModelProto:
    """What the parser sees: with plugins no functions, which it would take where a plugin is not found."""
    if options.attention == "native":
        return graph
    copy = ModelProto()
    copy.CopyFrom(graph)
    del copy.functions[:]
    return copy


def _builder(trt: Any, flavour: Flavour, messages: Messages, graph: ModelProto) -> Any:
    """TensorRT's needs a GPU, and gives none without one."""
    try:
        return trt.Builder(logger(flavour))
    except TypeError as error:  # pybind11's, where the factory returns null
        raise build_error(messages.reasons(), graph) from error


def _network_flags(trt: Any, options: BuildOptions) -> int:
    """Strong typing, which TensorRT 11 takes for granted; a plugin's compiled form, not its Python."""
    wanted = ["STRONGLY_TYPED"]
    if options.attention == "plugin":
        wanted.append("PREFER_AOT_PYTHON_PLUGINS")
    known = trt.NetworkDefinitionCreationFlag.__members__
    return sum(1 << int(known[name]) for name in wanted if name in known)


def _configure(builder: Any, graph: ModelProto, options: BuildOptions, flavour: Flavour) -> Any:
    trt, config = flavour.module, builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the layers would have no details
    _set_flag(config, trt.BuilderFlag.TF32, on=options.precision == "tf32")
    if options.opt_level is not None:
        config.builder_optimization_level = options.opt_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if flavour.is_rtx:
        config.num_compute_capabilities = len(options.gpus)
        for index, gpu in enumerate(options.gpus):
            config.set_compute_capability(trt.ComputeCapability.__members__[gpu.upper()], index)
    for profile in options.profiles:
        _add_profile(builder, config, graph, profile)
    return config


def _set_flag(config: Any, flag: Any, *, on: bool) -> None:
    (config.set_flag if on else config.clear_flag)(flag)


def _add_profile(builder: Any, config: Any, graph: ModelProto, profile: Profile) -> None:
    """Batch sizes of the one input, (N, H, W, 3)."""
    image = graph.graph.input[0]
    size = [dim.dim_value for dim in image.type.tensor_type.shape.dim[1:]]
    optimization = builder.create_optimization_profile()
    batches = (profile.min, profile.opt, profile.max)
    optimization.set_shape(image.name, *((batch, *size) for batch in batches))
    if config.add_optimization_profile(optimization) < 0:
        raise UsageError(f"TensorRT takes no batch of {':'.join(map(str, batches))} for this graph")


def _timing_cache(config: Any, path: Path | None, messages: Messages) -> Any:
    """The cache attached to the build: what is in the file, or an empty one; None where there is none."""
    if path is None:
        return None
    cache = config.create_timing_cache(read_timing_cache(path) or b"")
    # TensorRT takes an empty cache for one that it cannot read, and says so in a warning.
    unread = [text for text in messages.warnings if "timing cache" in text.lower()]
    if unread or not config.set_timing_cache(cache, False):
        raise UsageError(
            f"{path}: not a timing cache of this TensorRT and GPU: {'; '.join(unread) or 'it is refused'}",
            hint="give the name of a file that does not exist yet: it is created",
        )
    return cache


def _save_timing_cache(cache: Any, path: Path) -> None:
    with atomic_file(path) as temporary:
        temporary.write_bytes(bytes(cache.serialize()))


def _layers(
    engine: bytes, graph: ModelProto, flavour: Flavour, messages: Messages
) -> tuple[EngineLayer, ...]:
    if flavour.is_rtx:
        return layers_of_log(messages.layers)
    trt = flavour.module
    runtime = trt.Runtime(logger(flavour))
    runtime.engine_host_code_allowed = True  # a version-compatible engine's, which was built just now
    opened = runtime.deserialize_cuda_engine(engine)
    if opened is None:
        raise build_error(messages.reasons(), graph)
    inspector = opened.create_engine_inspector()
    return layers_of_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
