"""Who is compared: of each network and precision, all ways to run it that there are."""

from collections.abc import Iterator
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


def subjects(prepared: Prepared, precision: Precision, threads: int) -> Iterator[Subject]:
    """First ours, which the ratios are to. bf16 is what some compute an fp32 network in."""
    bundle = prepared.bundle("int8" if precision == "int8" else "fp32")
    if precision != "bf16":
        yield Subject(bundle=bundle, threads=threads)
    own = prepared.plain_graph(precision)
    others: list[Subject] = [
        Subject(kind="onnxruntime", bundle=bundle, graph=prepared.naive(precision), threads=threads),
        Subject(kind="openvino", bundle=bundle, graph=own, python=OPENVINO.python, threads=threads),
        Subject(
            kind="onnxruntime openvino",
            bundle=bundle,
            graph=own,
            python=ONNXRUNTIME_OPENVINO.python,
            threads=threads,
        ),
        Subject(kind="torch eager", bundle=bundle, graph=prepared.checkpoint, threads=threads),
        Subject(kind="torch compile", bundle=bundle, graph=prepared.checkpoint, threads=threads),
    ]
    able = {"fp32": range(5), "int8": range(3), "bf16": (1, 3, 4)}[precision]
    for index in able:
        yield others[index].model_copy(update={"precision": precision})
