"""Who is compared: of each network and precision, all ways to run it that there are."""

from pathlib import Path

from benchmarks.measure.messages import Subject
from benchmarks.peers.prepare import Prepared
from benchmarks.venvs import Venv
from lct_deploy.manifest import Precision

_REQUIREMENTS = Path(__file__).parent / "requirements"
OPENVINO, ONNXRUNTIME_OPENVINO = (
    Venv(name=name, requirements=_REQUIREMENTS / f"{name}.txt")
    for name in ("openvino", "onnxruntime-openvino")
)
VENVS = (OPENVINO, ONNXRUNTIME_OPENVINO)
ARCHS = ("resnet50", "lct_resnet50", "se_resnet50", "resnet101", "lct_resnet101", "se_resnet101")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "bf16")


def subjects(prepared: Prepared, precision: Precision, threads: int) -> list[Subject]:
    """First ours, of which the first is what the ratios are to."""
    ours = [
        Subject(bundle=prepared.bundle(precision, runtime), runtime=runtime, threads=threads)
        for runtime in prepared.runtimes(precision)
    ]
    others = [
        subject.model_copy(update={"precision": precision})
        for subject in _others(prepared, precision, ours[0].bundle, threads)
    ]
    return [*ours, *others]


def _others(prepared: Prepared, precision: Precision, bundle: Path, threads: int) -> list[Subject]:
    """bf16 is what some compute an fp32 network in."""
    fp32 = prepared.plain_graph("fp32")
    onnxruntime = Subject(kind="onnxruntime", bundle=bundle, graph=prepared.naive(precision), threads=threads)
    in_onnxruntime = Subject(
        kind="onnxruntime openvino",
        bundle=bundle,
        graph=prepared.plain_graph(precision),
        python=ONNXRUNTIME_OPENVINO.python,
        threads=threads,
    )
    openvino = Subject(kind="openvino", bundle=bundle, graph=fp32, python=OPENVINO.python, threads=threads)
    if precision == "int8":
        nncf = {"kind": "openvino nncf", "calibration": prepared.calibration}
        return [onnxruntime, openvino.model_copy(update=nncf), in_onnxruntime]
    eager, compiled = (
        Subject(kind=kind, bundle=bundle, graph=prepared.checkpoint, threads=threads)
        for kind in ("torch eager", "torch compile")
    )
    if precision == "bf16":
        return [openvino, eager, compiled]
    return [onnxruntime, openvino, in_onnxruntime, eager, compiled]
