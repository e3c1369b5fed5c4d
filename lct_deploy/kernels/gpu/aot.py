"""The kernels compiled to PTX where there is no GPU, for runtimes that have neither Triton nor torch."""

import re
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from lct_deploy.errors import ExportError, UsageError
from lct_deploy.kernels.gpu.attention import Launch, launches
from lct_deploy.kernels.gpu.spec import CompiledKernel, KernelSpec

CAPABILITIES = (80, 86, 89, 90, 120)

_POINTERS = {"fp32": "*fp32", "fp16": "*fp16", "bf16": "*bf16"}
# The first that knows sm120, so that the oldest driver can load it.
_PTX_VERSION = 87
_ALIGNED = [["tt.divisibility", 16]]
_PARAMETERS = re.compile(r"(\.visible \.entry (\w+)\(\n)(.*?)(\n\))", re.DOTALL)


@lru_cache
def compile_kernel(spec: KernelSpec, capability: int) -> tuple[CompiledKernel, ...]:
    """The kernels for `spec`, launched in their order: one, or two where the spec needs two passes.

    For a capability that is not among `CAPABILITIES` they are those of the next lower one, which run there
    too. Raises UsageError for one below all of them, ExportError where a kernel cannot be made.
    """
    made_for = [known for known in CAPABILITIES if known <= capability]
    if not made_for:
        known = ", ".join(f"sm{known}" for known in CAPABILITIES)
        raise UsageError(f"no attention kernel is made for sm{capability}", hint=f"there are: {known}")
    return tuple(_compile(spec, launch, max(made_for)) for launch in launches(spec))


def _compile(spec: KernelSpec, launch: Launch, capability: int) -> CompiledKernel:
    compiled = triton.compile(
        _source(spec, launch),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "ptx_version": _PTX_VERSION},
    )
    name = compiled.metadata.name
    ptx = for_later_gpus(without_scratch(compiled.asm["ptx"], len(launch.arguments)))
    registers, spills = _assemble(ptx, capability)
    return CompiledKernel(
        ptx=ptx,
        name=name,
        capability=capability,
        arguments=launch.arguments,
        threads=launch.warps * 32,
        programs_per_sample=launch.programs_per_sample,
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        spills=spills,
        workspace_bytes_per_sample=launch.workspace_bytes_per_sample,
    )


def _source(spec: KernelSpec, launch: Launch) -> ASTSource:
    """The kernel with its types: constants are compiled in, pointers are 16-byte aligned."""
    tensor, vector = _POINTERS[spec.dtype], "*fp32"
    types = {"x": tensor, "identity": tensor, "y": tensor, "w": vector, "b": vector, "partials": vector}
    names: list[str] = launch.kernel.arg_names
    constants = {name: launch.constants.get(name) for name in names if name not in launch.arguments}
    return ASTSource(
        launch.kernel,
        {name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): _ALIGNED for name in launch.arguments},
    )


def without_scratch(ptx: str, arguments: int) -> str:
    """PTX whose kernel takes `arguments` pointers alone.

    Triton appends pointers to scratch memory, which only its own launcher passes.
    Raises ExportError where the kernel uses them.
    """
    found = _PARAMETERS.search(ptx)
    if not found:
        raise ExportError("Triton's PTX holds no kernel in the form known here")
    opening, name, parameters, closing = found.groups()
    listed = parameters.split(",\n")
    body = ptx[found.end() :]
    used = [index for index in range(arguments, len(listed)) if f"{name}_param_{index}]" in body]
    if used or len(listed) < arguments:
        raise ExportError(f"Triton compiled {name} to take {len(listed)} pointers instead of {arguments}")
    return ptx[: found.start()] + opening + ",\n".join(listed[:arguments]) + closing + body


def for_later_gpus(ptx: str) -> str:
    """PTX that GPUs of later generations can load too: Triton asks for sm_90a and sm_120a alone.

    What only those have, the kernels do not use: else the assembler refuses them.
    """
    return re.sub(r"^(\.target sm_\d+)a\b", r"\1", ptx, flags=re.MULTILINE)


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """Registers a thread and bytes of spills, from the assembler that Triton brings.

    Raises ExportError, with what the assembler says, where it refuses the PTX.
    """
    architecture = _found(r"(?m)^\.target (\w+)", ptx)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", f"--gpu-name={architecture}", str(source)]
        done = subprocess.run(  # noqa: S603 - Triton's own assembler
            [*command, "-o", str(source.with_suffix(".cubin"))], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise ExportError(f"ptxas refuses the kernel for sm{capability}: {done.stderr.strip()}")
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", done.stderr)
    return int(_found(r"Used (\d+) registers", done.stderr)), sum(map(int, spills))


def _found(pattern: str, text: str) -> str:
    """What the pattern's group holds. Raises ExportError where the text has no such thing."""
    found = re.search(pattern, text)
    if not found:
        raise ExportError(f"Triton's tools say something else than {pattern!r}: {text[:200]!r}")
    return found[1]
