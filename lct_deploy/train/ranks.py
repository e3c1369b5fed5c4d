"""The processes of one run, as torchrun starts them, and what they tell each other.

Small messages go through gloo on the CPU, so that no process has to wait for its GPU to send one.
"""

import os
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch

# Its functions keep what is the default group when it is first imported, for good; the end of the process
# would then find that group's threads at work, and abort. A network in a group imports it.
import torch.distributed.nn  # pyright: ignore[reportUnusedImport]
from torch import Tensor
from torch import distributed as dist

from lct_deploy.errors import LctDeployError, RuntimeUnavailableError
from lct_deploy.progress import stderr
from lct_deploy.train.config import Device

T = TypeVar("T")


class SharedError(LctDeployError):
    """The error of one process, in all processes of its run; `own` in the one that is to tell it."""

    def __init__(self, error: LctDeployError, *, own: bool) -> None:
        super().__init__(error.message, hint=error.hint)
        self.exit_code = error.exit_code
        self.own = own


_TIMEOUT = timedelta(minutes=30)  # a rank may write a state, or list a million files, meanwhile
_LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A process among those of its run; alone it is rank 0 of 1, and all of this costs nothing."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def sums(self, *values: float) -> tuple[float, ...]:
        """Each value summed over all processes, in float64."""
        if self.size == 1:
            return values
        numbers = torch.tensor(values, dtype=torch.float64)
        with lost_peer():
            dist.all_reduce(numbers)
        return tuple(numbers.tolist())

    def average(self, tensors: list[Tensor]) -> None:
        """Float32 tensors become their means over all processes, in place."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with lost_peer():
            dist.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def fail(self, failure: LctDeployError | None) -> None:
        """Raise the `failure` that any process has, in all of them."""
        self.each(lambda: _raise(failure))

    def gather(self, value: T) -> list[T]:
        """The `value` of each process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with lost_peer():
            dist.all_gather_object(values, value)
        return values

    def each(self, work: Callable[[], T]) -> T:
        """`work()` in every process; the LctDeployError of one is a SharedError in all of them."""
        if self.size == 1:
            return work()
        try:
            result, failure = [work()], None
        except LctDeployError as error:
            result, failure = [], error
        for rank, error in enumerate(self.gather(failure)):
            if error is not None:
                raise SharedError(error, own=rank == self.rank)
        return result[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work()` gives in the main process, in all of them; its LctDeployError likewise."""
        values: list[Any] = [self.each(lambda: work() if self.main else None)]
        if self.size > 1:
            with lost_peer():
                dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_main(self, work: Callable[[], None]) -> None:
        """`work()` in the main process; its LctDeployError in all."""
        self.each(lambda: work() if self.main else None)

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.size > 1:
            with lost_peer():
                dist.barrier()


def _raise(failure: LctDeployError | None) -> None:
    if failure is not None:
        raise failure


@contextmanager
def lost_peer() -> Generator[None]:
    """What a collective raises where another process has gone, as LctDeployError."""
    try:
        yield
    except dist.DistError as error:
        raise _lost(error) from error
    except RuntimeError as error:  # gloo's own
        if "gloo" not in str(error).lower():
            raise
        raise _lost(error) from error


def _lost(error: Exception) -> LctDeployError:
    reason = str(error).strip().splitlines()[0]
    return LctDeployError(
        f"another process of this run has ended or cannot be reached: {reason}",
        hint="its own output says why; --resume goes on from the last state",
    )


@contextmanager
def joined(device: Device) -> Generator[Ranks]:
    """The group that torchrun has started this process in, or the process alone.

    Only rank 0 prints from here on. Raises RuntimeUnavailableError for a GPU that is not there; what is
    raised inside goes on to the caller from a process alone, and ends one of several here.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks(device=_device(device, 0))
        return
    absent = [name for name in _LAUNCHED if name not in os.environ]
    if absent:
        raise LctDeployError(
            f"WORLD_SIZE is {size}, but {', '.join(absent)} is not set",
            hint="start several processes with torchrun, or unset WORLD_SIZE",
        )
    chosen = _device(device, int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    with lost_peer():
        dist.init_process_group(backend, timeout=_TIMEOUT)
    quiet = stderr.quiet
    try:
        ranks = Ranks(
            device=chosen,
            rank=dist.get_rank(),
            size=size,
            local_size=int(os.environ["LOCAL_WORLD_SIZE"]),
        )
        stderr.quiet = not ranks.main
        try:
            yield ranks
        except (Exception, KeyboardInterrupt) as error:
            _leave(error, ranks)
    finally:
        stderr.quiet = quiet
        dist.destroy_process_group()


def _leave(error: BaseException, ranks: Ranks) -> NoReturn:
    """Say what is wrong and end this process, not its Python.

    A collective that a signal has cut off still has a thread, which needs the interpreter to end, and the
    interpreter would wait for that thread: it aborts then, or never ends.
    """
    if not isinstance(error, LctDeployError):
        traceback.print_exception(error)
    elif not isinstance(error, SharedError) or error.own:
        print(f"error: {error}", file=sys.stderr)
    if isinstance(error, SharedError):
        with suppress(LctDeployError):
            ranks.wait()  # torchrun stops all processes when the first has ended, also one that talks
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_code if isinstance(error, LctDeployError) else 1)


def _device(choice: Device, local_rank: int) -> torch.device:
    if choice == "cpu" or (choice == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise RuntimeUnavailableError(
            f"process {local_rank} of this machine has no GPU: {count} of them can be used",
            hint="start as many processes as there are GPUs, or give --device cpu",
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # batches have one size
    return device
