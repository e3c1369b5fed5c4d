"""What each part of the package needs: torch stays out of serving, heavy packages out of the rest."""

import ast
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lct_deploy.sample import DEMO_CHECKPOINT

ROOT = Path(__file__).parent.parent
PACKAGES = ("lct_deploy", "exporters", "server", "benchmarks")

# Loaded by serving, predict and inspect: must import where torch and onnx are absent.
TORCH_FREE = [
    "server.run",
    "server.alone",
    "server.workers.supervisor",
    "lct_deploy.cli",
    "lct_deploy.demo",
    "lct_deploy.predictions",
    "lct_deploy.golden",
    "lct_deploy.backbone_golden",
    "lct_deploy.cost",
    "lct_deploy.datasets",
    "lct_deploy.analysis.figures",
    "lct_deploy.analysis.graph",
    "lct_deploy.analysis.run",
    "lct_deploy.evaluation.run",
    "lct_deploy.evaluation.table",
    "lct_deploy.runtime.onnxruntime",
    "lct_deploy.runtime.backbone",
    "lct_deploy.runtime.openvino",
    "lct_deploy.runtime.tensorrt",
    "lct_deploy.kernels.cpu",
    "lct_deploy.kernels.gpu.plan",
    "lct_deploy.kernels.gpu.rtx_plugin",
]
HEAVY = ("torch", "onnx", "onnxscript", "safetensors")

_BLOCKER = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


# Programs of other servers, for environments where nothing of ours is installed.
ELSEWHERE = ROOT / "benchmarks" / "serving" / "peers" / "apps"
# What needs a library that is not among those that developers install.
NEEDS = {
    "lct_deploy.kernels.gpu.aot_plugin": "tensorrt",
    "benchmarks.measure.openers.openvino_nncf": "nncf",
}


def run_without(blocked: tuple[str, ...], code: str) -> "subprocess.CompletedProcess[str]":
    """Run `code` in an interpreter in which the `blocked` packages cannot be imported."""
    program = _BLOCKER.format(blocked=set(blocked)) + code
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_serving_imports_without_torch_and_onnx(module: str) -> None:
    done = run_without(HEAVY, f"import {module}")
    assert done.returncode == 0, done.stderr


def test_serving_loads_nothing_of_a_gpu_unless_asked() -> None:
    modules = "server.alone, server.workers.supervisor, lct_deploy.cli, lct_deploy.runtime.onnxruntime"
    code = f"import sys, {modules}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert not loaded & {"cuda", "tensorrt", "tensorrt_rtx", "triton", "torch", "openvino"}


def test_a_supervisor_is_there_before_its_workers_have_loaded_http() -> None:
    code = "import sys, server.run, server.workers.supervisor; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert not loaded & {"fastapi", "uvicorn", "onnxruntime"}


def test_the_command_line_starts_before_what_its_commands_need() -> None:
    code = (
        "import sys\nfrom lct_deploy.cli import main\nsys.argv = ['lct-deploy', '--help']\n"
        "try:\n    main()\nfinally:\n    print(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stderr)}
    assert "lct_deploy" in loaded
    assert not loaded & {*HEAVY, *PACKAGES[1:], "onnxruntime", "fastapi", "uvicorn", "triton"}


def test_engines_run_without_onnxruntime_and_triton() -> None:
    done = run_without((*HEAVY, "onnxruntime", "triton"), "import lct_deploy.runtime.tensorrt")
    assert done.returncode == 0, done.stderr


def modules() -> list[str]:
    files = [
        f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py")) if f.parent != ELSEWHERE
    ]
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    absent = [name for name, package in NEEDS.items() if find_spec(package) is None]
    return [n.removesuffix(".__init__") for n in names if not n.endswith("__main__") and n not in absent]


def test_every_module_imports_alone() -> None:
    """In a process each, so that none of ours leans on another's imports; libraries are shared."""
    listed = json.dumps(modules())
    code = f"""
import gc, importlib, os, sys
import fastapi, matplotlib.figure, numpy, onnx, onnxruntime, onnxscript, orjson, PIL.Image, prometheus_client
import pydantic_settings, rich.progress, torch, triton, typer, uvicorn, yaml
gc.disable()
gc.freeze()  # collecting what the libraries are made of would take most of each process's time
failed = []
for name in {listed}:
    pid = os.fork()
    if pid == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    failed += [name] if os.waitpid(pid, 0)[1] else []
sys.exit(bool(failed))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_itself_imports_next_to_nothing() -> None:
    code = "import sys, lct_deploy; print(sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(ast.literal_eval(done.stdout))
    assert not loaded & {"numpy", "pydantic", "typer", "PIL", *HEAVY}


def test_a_command_without_its_extra_names_the_extra() -> None:
    code = (
        "import sys\nfrom lct_deploy.cli import main\n"
        "sys.argv = ['lct-deploy', 'export', 'x.pt', '-o', 'b']\nmain()"
    )
    done = run_without(HEAVY, code)
    assert done.returncode == 1
    assert re.search("needs the package (torch|onnx|safetensors)", done.stderr)
    assert "pip install 'lct-deploy[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_runtime_that_is_not_installed_names_its_extra(demo_bundle: Path) -> None:
    code = (
        "import sys\nfrom lct_deploy.cli import main\n"
        f"sys.argv = ['lct-deploy', 'verify', {str(demo_bundle)!r}]\nmain()"
    )
    done = run_without((*HEAVY, "onnxruntime"), code)
    assert done.returncode == 1
    assert "pip install 'lct-deploy[cpu]'" in done.stderr


def test_a_graph_for_a_runtime_that_is_not_installed_is_not_begun(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    arguments = ["lct-deploy", "export", str(DEMO_CHECKPOINT), "-o", str(output), "--for", "openvino"]
    done = run_without(
        ("openvino",), f"import sys\nfrom lct_deploy.cli import main\nsys.argv = {arguments}\nmain()"
    )
    assert done.returncode == 1
    assert "pip install 'lct-deploy[openvino]'" in done.stderr
    assert "parity" not in done.stderr
    assert not output.exists()
