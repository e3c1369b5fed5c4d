"""Every error that a user can cause or mend.

    LctDeployError              exit code 1, HTTP 500: the work could not be done
    ├── UsageError              exit code 2, HTTP 400: the request itself is wrong
    │   ├── ArchitectureError   an unknown network, or groups that do not fit its channels
    │   ├── CheckpointError     a file that is not a checkpoint, or weights that do not fit
    │   ├── DataError           a data set or an image directory that cannot be used
    │   └── ImageError          one image that cannot be decoded or is not allowed
    │       └── ImageTooLargeError  one that is over the size limits
    ├── BundleError             a bundle that is damaged, incomplete or made by another version
    ├── RuntimeUnavailableError a runtime or a device that is not installed here
    ├── DeviceError             a GPU that fails at its work: out of memory, an illegal address
    ├── ExportError             a graph that cannot be produced from this checkpoint
    └── ParityError             an artifact that does not agree with PyTorch

A message says what is wrong, where, and what mends it; `hint` holds the mending command.
"""


class LctDeployError(Exception):
    """Base of all errors raised on purpose; `str()` gives the message with its hint."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class UsageError(LctDeployError):
    """The request cannot be met as it was put."""

    exit_code = 2


class ArchitectureError(UsageError):
    """An unknown architecture, or a group count that does not fit its channels."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be read safely or does not fit the architecture."""


class DataError(UsageError):
    """A data set, labels file or image directory that cannot be used."""


class ImageError(UsageError):
    """An image that cannot be decoded, or that the limits do not allow."""


class ImageTooLargeError(ImageError):
    """An image with more pixels than the limits allow."""


class BundleError(LctDeployError):
    """A bundle that is missing, damaged, incomplete or of another schema version."""


class RuntimeUnavailableError(LctDeployError):
    """A runtime, execution provider or device that this environment does not have."""


class DeviceError(LctDeployError):
    """A GPU that has too little memory, or fails while it computes."""


class ExportError(LctDeployError):
    """A graph that cannot be produced from this checkpoint with these options."""


class ParityError(LctDeployError):
    """An artifact that does not agree with PyTorch within its precision's limits."""
