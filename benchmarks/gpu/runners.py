"""A network on a runtime, ready to be timed."""

import hashlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from benchmarks.gpu.plan import Case
from benchmarks.gpu.prepared import PREPROCESSING, SIZE, architecture, load_network, make_graph
from benchmarks.stages import Profile as StageProfile
from lct_deploy.errors import RuntimeUnavailableError
from lct_deploy.manifest import Artifact, Precision, Profile
from lct_deploy.models.classifier import ImageClassifier
from lct_deploy.runtime import Runtime, RuntimeOptions, open_artifact
from lct_deploy.runtime.base import Stages
from lct_deploy.runtime.flavours import FlavourName, gpu_capability, is_flavour, load_flavour

PROFILE = Profile(min=1, opt=32, max=256)

Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Runner:
    """`infer`: images on the host to logits there. `launch`: once, on the device, without waiting."""

    infer: Callable[[Images], NDArray[np.float32]]
    profile: StageProfile
    launch: Callable[[], object] | None
    close: Callable[[], None]


def open_runner(case: Case, work: Path) -> Runner:
    """Raises what stands in the way, such as RuntimeUnavailableError or ModuleNotFoundError."""
    if case.runtime.startswith("torch"):
        return _torch(case, work)
    opened = _onnxruntime(case, work) if case.runtime == "onnxruntime cuda" else _engine(case, work)
    return Runner(infer=opened.infer, profile=opened.profile, launch=None, close=opened.close)


def _torch(case: Case, work: Path) -> Runner:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeUnavailableError(f"torch {torch.__version__} has no CUDA")
    _set_float32(case.precision)
    network = load_network(work, case.attention)
    if case.attention == "fused":
        from lct_deploy.kernels.gpu.torch_operator import fuse_attention

        network = fuse_attention(network)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(case.precision, torch.float32)
    classifier = ImageClassifier(network, PREPROCESSING).eval().to("cuda", dtype)
    classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    compiled = case.runtime == "torch compile"
    run = compile_whole(classifier) if compiled else classifier
    pinned = torch.empty((case.batch, SIZE, SIZE, 3), dtype=torch.uint8, pin_memory=True)
    images = torch.randint(0, 256, (case.batch, SIZE, SIZE, 3), dtype=torch.uint8, device="cuda")

    def infer(given: Images) -> NDArray[np.float32]:
        with torch.inference_mode():
            host = pinned[: len(given)]  # as engines have it: a copy from other memory takes its time
            host.copy_(torch.from_numpy(given))
            return run(host.to("cuda", non_blocking=True)).float().cpu().numpy()

    def launch() -> object:
        with torch.inference_mode():
            return run(images)

    def profile(given: Images) -> Stages:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        with torch.inference_mode():
            host = pinned[: len(given)]
            host.copy_(torch.from_numpy(given))
            events[0].record()
            there = host.to("cuda", non_blocking=True)
            events[1].record()
            began = time.perf_counter()
            logits = run(there).float()
            enqueue = 1e3 * (time.perf_counter() - began)
            events[2].record()
            logits.cpu()
            events[3].record()
        torch.cuda.synchronize()
        copy, compute, back = (first.elapsed_time(second) for first, second in itertools.pairwise(events))
        return Stages(host_to_device=copy, enqueue=enqueue, compute=compute, device_to_host=back)

    close = torch.compiler.reset if compiled else lambda: None
    return Runner(infer=infer, profile=profile, launch=launch, close=close)


def compile_whole(classifier: ImageClassifier) -> Callable[[Any], Any]:
    """One graph for each batch, or an error.

    PyTorch counts the graphs of all networks together, as their code is the same, and runs what is over its
    limit of 8 in eager mode: closing a group's runners resets the count.
    """
    import torch

    return torch.compile(classifier, dynamic=False, fullgraph=True)


def _set_float32(precision: Precision) -> None:
    """PyTorch's default lets convolutions round to tf32: then fp32 would not be what it says."""
    import torch

    mode = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cudnn.conv.fp32_precision = mode  # pyright: ignore[reportAttributeAccessIssue]
    torch.backends.cuda.matmul.fp32_precision = mode


def _onnxruntime(case: Case, work: Path) -> Runtime:
    from lct_deploy.runtime.onnxruntime import check_available

    check_available("CUDAExecutionProvider")
    path = work / f"onnxruntime-{case.attention}-{case.precision}.onnx"
    if not path.is_file():
        target = "onnxruntime" if case.precision == "int8" else "portable"
        onnx.save(make_graph(work, case.attention, case.precision, target), path)
    return open_artifact("onnxruntime", path, RuntimeOptions(provider="cuda"))


def _engine(case: Case, work: Path) -> Runtime:
    """Built once for all batches, which a section meets one after the other."""
    assert is_flavour(case.runtime)  # noqa: S101 - the plan's other runtimes are handled above
    load_flavour(case.runtime)  # first of all: a graph that nothing will take need not be made
    path = work / f"{case.runtime}-{case.attention}-{case.precision}.engine"
    if not path.is_file():
        path.write_bytes(_build(case, case.runtime, work))
    return open_artifact(case.runtime, path, RuntimeOptions(streams=1), _described(path, case, case.runtime))


def _build(case: Case, name: FlavourName, work: Path) -> bytes:
    from exporters.tensorrt.build import build_engine
    from exporters.tensorrt.features import target_gpus
    from exporters.tensorrt.options import BuildOptions

    flavour, gpu = load_flavour(name), gpu_capability()
    attention = "plugin" if case.attention == "plugin" else "native"
    options = BuildOptions(
        precision=case.precision,
        profiles=(PROFILE,),
        attention=attention,
        gpus=(gpu,) if gpu and flavour.is_rtx else (),
    )
    options = options.model_copy(update={"gpus": target_gpus(options, flavour, gpu)})
    graph = _engine_graph(case, work, options.gpus, flavour.name)
    return build_engine(graph, options, flavour=flavour, announce=lambda _: None).engine


def _engine_graph(case: Case, work: Path, gpus: tuple[str, ...], flavour: FlavourName) -> ModelProto:
    graph = make_graph(work, case.attention, case.precision, "tensorrt")
    if case.attention != "plugin":
        return graph
    from exporters.tensorrt.options import capability
    from exporters.tensorrt.plugin import with_plugins

    portable = onnx.load(work / f"{architecture(case.attention)}.onnx")
    return with_plugins(graph, portable, capability(gpus[0]), flavour)


def _described(path: Path, case: Case, name: FlavourName) -> Artifact:
    from lct_deploy.manifest import EngineBuild

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    attention = "plugin" if case.attention == "plugin" else "native"
    return Artifact(
        path=path.name,
        sha256=digest,
        runtime=name,
        kind="compiled",
        precision=case.precision,
        profiles=(PROFILE,),
        gpu=gpu_capability(),
        versions={name: load_flavour(name).version},
        verified=False,
        build=EngineBuild(
            key=digest,
            command="python -m benchmarks.gpu",
            layers=0,
            layer_summary={},
            attention=attention,
            options={},
        ),
    )
