"""Questions and their answers between two processes, over a Unix socket that carries descriptors too."""

import asyncio
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import orjson
from pydantic import BaseModel, ConfigDict

from server.problems import Problem
from server.workers.messages import MESSAGE, Message

_LONGEST = 1 << 16  # bytes of a packet; what is longer lies in memory whose descriptor is sent
_IN_MEMORY = b"\0"
_MOST_DESCRIPTORS = 253  # that Linux passes at once
logger = logging.getLogger("lct_deploy.server")


class ChannelEndedError(Problem):
    """The other process has gone."""

    def __init__(self) -> None:
        super().__init__(503, "the server is about to end")


class Handler(Protocol):
    """Answers what the other process says; the descriptors are its own from then on."""

    def __call__(self, message: Message, descriptors: Sequence[int]) -> Coroutine[Any, Any, object]:
        """Anything that JSON can say; a Problem that is raised is raised by the other's `ask`."""
        ...


class _Failure(BaseModel):
    status: int
    detail: str
    headers: dict[str, str] | None


class _Packet(BaseModel):
    """A question, or else the answer to one."""

    model_config = ConfigDict(frozen=True)

    number: int
    question: dict[str, Any] | None = None
    answer: Any = None
    failure: _Failure | None = None


class Channel:
    """One end. Neither side ever waits for the other to read; questions are handled in their order."""

    def __init__(self, link: socket.socket, handle: Handler, *, on_end: Callable[[], None]) -> None:
        link.setblocking(False)
        self._link, self._handle, self._on_end = link, handle, on_end
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._handling: set[asyncio.Task[None]] = set()
        self._ended = False

    def start(self) -> None:
        """Hear the other side, in the running event loop."""
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._receive)

    def ask(self, message: Message, descriptors: Sequence[int] = ()) -> "asyncio.Future[Any]":
        """Sent at once, whether or not the answer is awaited; `descriptors` are the channel's from now on.

        The answer is what the other's handler returns or raises; a ChannelEndedError where it has gone.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_retrieve)
        if self._ended:
            _close(descriptors)
            answer.set_exception(ChannelEndedError())
            return answer
        number = next(self._numbers)
        self._asked[number] = answer
        self._send(_Packet(number=number, question=message.model_dump(mode="json")), descriptors)
        return answer

    def close(self) -> None:
        """The other side finds that this one has gone; whoever waits for an answer gets an error."""
        if self._ended:
            return
        self._ended = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._link.fileno())
        loop.remove_writer(self._link.fileno())
        self._link.close()
        for _, descriptors in self._unsent:
            _close(descriptors)
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelEndedError())
        self._asked.clear()
        self._on_end()

    def _send(self, packet: _Packet, descriptors: Sequence[int] = ()) -> None:
        data, passed = orjson.dumps(packet.model_dump(mode="json")), list(descriptors)
        if len(data) > _LONGEST:
            passed.append(_in_memory(data))
            data = _IN_MEMORY
        self._unsent.append((data, passed))
        self._flush()

    def _flush(self) -> None:
        loop, descriptor = asyncio.get_running_loop(), self._link.fileno()
        while self._unsent:
            data, passed = self._unsent[0]
            try:
                socket.send_fds(self._link, [data], passed)
            except BlockingIOError:
                loop.add_writer(descriptor, self._flush)
                return
            except OSError:
                self.close()
                return
            _close(passed)
            self._unsent.popleft()
        loop.remove_writer(descriptor)

    def _receive(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._link, _LONGEST, _MOST_DESCRIPTORS)
        except BlockingIOError:
            return
        except ConnectionError:
            data, descriptors = b"", list[int]()
        if not data:
            self.close()
            return
        if data == _IN_MEMORY:
            data = _from_memory(descriptors.pop())
        packet = _Packet.model_validate(orjson.loads(data))
        if packet.question is None:
            self._resolve(packet)
            return
        answering = self._answer(packet.number, MESSAGE.validate_python(packet.question), descriptors)
        self._handling.add(task := asyncio.get_running_loop().create_task(answering))
        task.add_done_callback(self._handling.discard)

    def _resolve(self, packet: _Packet) -> None:
        answer = self._asked.pop(packet.number)
        if answer.done():
            return
        if packet.failure is None:
            answer.set_result(packet.answer)
        else:
            failure = packet.failure
            answer.set_exception(Problem(failure.status, failure.detail, failure.headers))

    async def _answer(self, number: int, message: Message, descriptors: Sequence[int]) -> None:
        try:
            packet = _Packet(number=number, answer=await self._handle(message, descriptors))
        except Problem as problem:
            packet = _Packet(number=number, failure=_failure(problem))
        except Exception:
            logger.exception("unexpected error")
            unexpected = Problem(500, "the server failed on this request; its log says more")
            packet = _Packet(number=number, failure=_failure(unexpected))
        if not self._ended:
            self._send(packet)


def _failure(problem: Problem) -> _Failure:
    headers = None if problem.headers is None else dict(problem.headers)
    return _Failure(status=problem.status_code, detail=str(problem.detail), headers=headers)


def _retrieve(answer: "asyncio.Future[Any]") -> None:
    """Answers that nobody awaits may be errors."""
    if not answer.cancelled():
        answer.exception()


def _in_memory(data: bytes) -> int:
    descriptor = os.memfd_create("lct-message")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return descriptor


def _from_memory(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
