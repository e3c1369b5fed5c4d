"""Images and logits in memory that an HTTP process and an engine share: a row of each per slot."""

import mmap
import os
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class State(IntEnum):
    """How far the image in a slot has come; after a crash it tells what was lost and what was not."""

    FREE = 0
    COMING = 1  # reserved; the image is being decoded
    WAITING = 2
    RUNNING = 3


class Geometry(BaseModel):
    """How many slots, and what each holds: an image (height, width, 3) and its logits (classes,)."""

    model_config = ConfigDict(frozen=True)

    count: int
    height: int
    width: int
    classes: int

    @property
    def nbytes(self) -> int:
        return self.count * (self.height * self.width * 3 + self.classes * 4 + 1)


def create_memory(geometry: Geometry) -> int:
    """A descriptor of memory without a name, which the kernel frees whatever happens to the processes."""
    descriptor = os.memfd_create("lct-slots")
    os.ftruncate(descriptor, geometry.nbytes)
    return descriptor


class Slots:
    """The three arrays over one piece of memory; it lives as long as somebody holds its descriptor."""

    def __init__(self, descriptor: int, geometry: Geometry) -> None:
        """Owns `descriptor` from now on."""
        self.descriptor, self.geometry = descriptor, geometry
        memory = mmap.mmap(descriptor, geometry.nbytes)
        count, pixels = geometry.count, (geometry.height, geometry.width, 3)
        logits_bytes = count * geometry.classes * 4
        # Logits first: float32 has to be aligned, bytes have not.
        self.logits: NDArray[np.float32] = np.frombuffer(memory, np.float32, count * geometry.classes)
        self.logits = self.logits.reshape(count, geometry.classes)
        self.images: NDArray[np.uint8] = np.frombuffer(
            memory, np.uint8, count * geometry.height * geometry.width * 3, logits_bytes
        ).reshape(count, *pixels)
        self.states = memoryview(memory)[logits_bytes + self.images.nbytes :]

    def coming(self) -> int:
        """Images that are being decoded."""
        return self.states.tobytes().count(State.COMING)

    def mark(self, slots: Sequence[int], state: State) -> None:
        for slot in slots:
            self.states[slot] = state

    def close(self) -> None:
        """Let go of the descriptor; the arrays stay usable until they are dropped."""
        os.close(self.descriptor)
