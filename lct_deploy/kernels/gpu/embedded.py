"""The attention's compiled kernels as text, which the plugin's node carries from the graph into the engine.

So an engine holds its kernels, and whoever runs it needs neither Triton nor the right version of it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lct_deploy.errors import BundleError
from lct_deploy.kernels.gpu.spec import CompiledKernel, KernelSpec

WORKSPACE = "partials"  # the one pointer that is no tensor of the node


class EmbeddedKernels(BaseModel):
    """What is computed, and the kernels that compute it, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: KernelSpec
    kernels: Annotated[tuple[CompiledKernel, ...], Field(min_length=1)]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The node's inputs and its output, by the names that the kernels' arguments have."""
        return ("x", *(["identity"] if self.spec.residual else []), "w", "b", "y")

    def workspace_bytes(self, samples: int) -> int:
        return max(kernel.workspace_bytes(samples) for kernel in self.kernels)


def read_kernels(text: str) -> EmbeddedKernels:
    """Kernels from their JSON; raises BundleError for what is not or contradicts itself."""
    try:
        kernels = EmbeddedKernels.model_validate_json(text)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'text'}: {e['msg']}" for e in error.errors()[:3]]
        raise BundleError(
            f"the plugin's kernels cannot be read: {'; '.join(lines)}", hint="compile the engine again"
        ) from error
    known = {*kernels.tensors, WORKSPACE}
    unknown = {name for kernel in kernels.kernels for name in kernel.arguments} - known
    if unknown:
        raise BundleError(
            f"the plugin's kernels take {', '.join(sorted(unknown))}, its node has {', '.join(sorted(known))}",
            hint="compile the engine again",
        )
    return kernels
