"""The attention's compiled kernels as text, which the plugin's node carries from the graph into the engine.

So an engine holds its kernels, and whoever runs it needs neither Triton nor the same version of it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lct_deploy.errors import BundleError
from lct_deploy.kernels.gpu.spec import CompiledKernel, KernelSpec

NAMESPACE, VERSION = "lct", "1"
# The attention alone (X, w, b), and with what ends a residual block (X, identity, w, b).
ATTENTION, TAIL = "LinearContextTransform", "AttentionTail"
FIELD = "kernels"  # the node's attribute
WORKSPACE = "partials"  # the one pointer that is no tensor of the node

_AGAIN = "compile the engine again"


class EmbeddedKernels(BaseModel):
    """What is computed, and the kernels that compute it, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: KernelSpec
    kernels: Annotated[tuple[CompiledKernel, ...], Field(min_length=1)]

    @property
    def op(self) -> str:
        return TAIL if self.spec.residual else ATTENTION

    @property
    def tensors(self) -> tuple[str, ...]:
        """The node's inputs and its output, by the names of the kernels' arguments."""
        return ("x", *(["identity"] if self.spec.residual else []), "w", "b", "y")

    def workspace_bytes(self, samples: int) -> int:
        return max(kernel.workspace_bytes(samples) for kernel in self.kernels)


def read_kernels(text: str, op: str) -> EmbeddedKernels:
    """Kernels of an operator from their JSON; raises BundleError for what is none or contradicts itself."""
    try:
        embedded = EmbeddedKernels.model_validate_json(text.rstrip("\0"))  # the ONNX parser's is a C string
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'text'}: {e['msg']}" for e in error.errors()[:3]]
        raise BundleError(f"the kernels of {op} cannot be read: {'; '.join(lines)}", hint=_AGAIN) from error
    arguments = {name for kernel in embedded.kernels for name in kernel.arguments}
    unknown = arguments - {*embedded.tensors, WORKSPACE}
    if embedded.op != op or embedded.spec.relu != embedded.spec.residual or unknown:
        raise BundleError(
            f"the kernels of {op} are for {embedded.op}({', '.join(sorted(arguments))})", hint=_AGAIN
        )
    if embedded.spec.layout != "nhwc":
        raise BundleError(f"the kernels of {op} are for {embedded.spec.layout}, not nhwc", hint=_AGAIN)
    return embedded
