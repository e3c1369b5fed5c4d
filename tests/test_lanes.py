"""Which of an engine's runtimes runs a batch: the one with all cores, or one of those side by side."""

import socket
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lct_deploy.bundle import open_bundle
from lct_deploy.runtime import Runtime, RuntimeOptions, RuntimeSpec, open_bundled
from lct_deploy.runtime.base import Stages
from server.engine.config import BatchSizes
from server.engine.engine import Engine
from server.engine.messages import LONGEST, Done, Status, pack_submit, unpack_for_client
from server.engine.slots import Geometry, Slots, State, create_memory

SECONDS = 20  # for anything to happen
A_WHILE = 0.2  # in which something would have happened


class Watched:
    """A runtime that waits where it is told to, and counts how often it has begun."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    @property
    def spec(self) -> RuntimeSpec:
        return self._runtime.spec

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.begun.release()
        assert self.go.wait(SECONDS)
        return self._runtime.infer(images)

    def profile(self, images: NDArray[np.uint8]) -> Stages:
        return self._runtime.profile(images)

    def close(self) -> None:
        self._runtime.close()


class Caller:
    """The other end of an engine, with the slots that they share."""

    def __init__(self, control: socket.socket, spec: RuntimeSpec) -> None:
        geometry = Geometry(count=8, height=spec.height, width=spec.width, classes=spec.num_classes)
        memory = create_memory(geometry)
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(SECONDS)
        with theirs:
            socket.send_fds(control, [geometry.model_dump_json().encode()], [theirs.fileno(), memory])
        self.slots = Slots(memory, geometry)
        self.slots.images[:] = np.random.default_rng(0).integers(0, 256, self.slots.images.shape, np.uint8)
        self.slots.images[:] = self.slots.images[0]

    def close(self) -> None:
        self._link.close()
        self.slots.close()

    def submit(self, *slots: int) -> None:
        """A request of one image for each slot, all in one packet."""
        deadline = time.monotonic() + SECONDS
        self.slots.mark(slots, State.WAITING)
        self._link.send(b"".join(pack_submit(slot, deadline, [slot]) for slot in slots))

    def answers(self, count: int) -> None:
        """Wait for as many, all of them good."""
        found: list[Done] = []
        while len(found) < count:
            packet = unpack_for_client(self._link.recv(LONGEST))
            assert isinstance(packet, list)
            found += packet
        assert {done.status for done in found} == {Status.OK}
        self.slots.mark([done.request for done in found], State.FREE)


class Bench:
    """An engine in a thread of this process: two lanes, and all cores for who is alone."""

    def __init__(self, bundle: Path) -> None:
        opened = open_bundle(bundle)

        def watched(threads: int) -> Watched:
            return Watched(open_bundled(opened, "onnxruntime", RuntimeOptions(threads=threads)))

        self.beside, self.alone = [watched(1), watched(1)], watched(2)
        spec = self.alone.spec
        self.control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        engine = Engine(
            self.beside,
            BatchSizes(largest=1),
            alone=self.alone,
            max_delay=0,
            fill_delay=0,
            control=self._theirs,
            running=np.zeros(2),
        )
        self._thread = threading.Thread(target=engine.run, daemon=True)
        self._thread.start()
        self.caller = Caller(self.control, spec)

    def close(self) -> None:
        for runtime in (*self.beside, self.alone):
            runtime.go.set()
        self.control.close()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        self._theirs.close()
        self.caller.close()


@contextmanager
def _closing(bench: Bench) -> Generator[Bench]:
    try:
        yield bench
    finally:
        bench.close()


@pytest.fixture
def bench(demo_bundle: Path) -> Iterator[Bench]:
    with _closing(Bench(demo_bundle)) as bench:
        yield bench


def begun(*runtimes: Watched, within: float = SECONDS) -> bool:
    return all(runtime.begun.acquire(timeout=within) for runtime in runtimes)


def test_who_is_alone_has_all_cores_again_and_again(bench: Bench) -> None:
    for _ in range(5):
        bench.caller.submit(0)
        bench.caller.answers(1)
        assert begun(bench.alone)
    assert not any(begun(runtime, within=0) for runtime in bench.beside)


def test_two_at_once_run_side_by_side(bench: Bench) -> None:
    for runtime in bench.beside:
        runtime.go.clear()
    bench.caller.submit(0, 1)
    assert begun(*bench.beside)
    for runtime in bench.beside:
        runtime.go.set()
    bench.caller.answers(2)
    assert not begun(bench.alone, within=0)


def test_nobody_is_alone_while_an_image_is_being_decoded(bench: Bench) -> None:
    bench.caller.slots.mark([7], State.COMING)
    bench.caller.submit(0)
    bench.caller.answers(1)
    assert not begun(bench.alone, within=0)
    bench.caller.slots.mark([7], State.FREE)
    bench.caller.submit(0)
    bench.caller.answers(1)
    assert begun(bench.alone)


def test_nobody_is_alone_while_a_lane_computes(bench: Bench) -> None:
    for runtime in bench.beside:
        runtime.go.clear()
    bench.caller.submit(0, 1)
    assert begun(*bench.beside)
    bench.beside[0].go.set()
    bench.caller.answers(1)
    bench.caller.submit(2)
    bench.caller.answers(1)
    assert not begun(bench.alone, within=0)
    bench.beside[1].go.set()
    bench.caller.answers(1)


def test_nobody_begins_beside_who_is_alone(bench: Bench) -> None:
    for runtime in (bench.alone, *bench.beside):
        runtime.go.clear()
    bench.caller.submit(0)
    assert begun(bench.alone)
    bench.caller.submit(1, 2)
    assert not any(begun(runtime, within=A_WHILE) for runtime in bench.beside)
    bench.alone.go.set()
    assert begun(*bench.beside)
    for runtime in bench.beside:
        runtime.go.set()
    bench.caller.answers(3)


def test_answers_are_the_same_to_the_bit(slow_bundle: Path) -> None:
    with _closing(Bench(slow_bundle)) as bench:
        bench.caller.submit(0)
        bench.caller.answers(1)
        bench.caller.submit(*range(1, 8))
        bench.caller.answers(7)
        assert begun(bench.alone)
        assert begun(*bench.beside)
        assert np.abs(bench.caller.slots.logits[0]).max() > 0
        assert (bench.caller.slots.logits == bench.caller.slots.logits[0]).all()
