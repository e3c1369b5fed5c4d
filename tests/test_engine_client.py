"""What an HTTP process sends to its engine, read at the engine's end of a real socket."""

import asyncio
import socket
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest

from server.engine.client import EngineClient
from server.engine.messages import (
    LONGEST,
    AskStatistics,
    Cancel,
    Submit,
    pack_ask_statistics,
    pack_cancel,
    pack_submit,
    unpack_for_engine,
)
from server.engine.slots import Geometry, Slots, create_memory

Packets = list[list[Submit | Cancel | AskStatistics]]
GEOMETRY = Geometry(count=8, height=2, width=2, classes=3)


@contextmanager
def new_client() -> Generator[EngineClient]:
    client = EngineClient(Slots(create_memory(GEOMETRY), GEOMETRY), on_change=lambda _: None)
    with closing(client):
        yield client


@contextmanager
def engine_of(client: EngineClient) -> Generator[socket.socket]:
    """The other end of the connection that `client` uses from now on."""
    ours, engine = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    engine.setblocking(False)
    with closing(engine):
        client.connect(ours)
        yield engine


def sent(engine: socket.socket) -> Packets:
    """What has come, by packets."""
    packets: Packets = []
    while True:
        try:
            packets.append(list(unpack_for_engine(engine.recv(LONGEST))))
        except BlockingIOError:
            return packets


def infer(client: EngineClient, count: int) -> list["asyncio.Task[Any]"]:
    """Requests that begin in the next turn of the event loop."""
    return [asyncio.create_task(client.infer([slot], time.monotonic() + 60)) for slot in range(count)]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel(tasks: Sequence["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await turns(1)


def test_messages_of_one_packet() -> None:
    messages = [pack_submit(1, 2.5, (3, 4)), pack_cancel(1), pack_ask_statistics(), pack_submit(2, 3.5, (5,))]
    assert list(unpack_for_engine(b"".join(messages))) == [
        Submit(1, 2.5, (3, 4)),
        Cancel(1),
        AskStatistics(),
        Submit(2, 3.5, (5,)),
    ]


def test_what_is_asked_in_one_turn_wakes_the_engine_once() -> None:
    async def ask() -> tuple[Packets, Packets]:
        with new_client() as client, engine_of(client) as engine:
            requests = infer(client, 3)
            await turns(2)
            begun = sent(engine)
            await cancel(requests)
            return begun, sent(engine)

    begun, ended = asyncio.run(ask())
    ids = [message.request for packet in begun for message in packet if isinstance(message, Submit)]
    assert [len(packet) for packet in begun] == [3]
    assert ended == [[Cancel(number) for number in ids]]


def test_what_was_not_sent_yet_goes_to_the_next_engine_once() -> None:
    async def ask() -> Packets:
        with new_client() as client:
            with engine_of(client) as engine:
                requests = infer(client, 3)
                await turns(1)  # they have asked, and nothing is sent
                assert sent(engine) == []
            with engine_of(client) as engine:  # the client finds the first one gone
                await turns(1)
                packets = sent(engine)
                await cancel(requests)
            return packets

    (packet,) = asyncio.run(ask())
    assert [message.slots for message in packet if isinstance(message, Submit)] == [(0,), (1,), (2,)]


def test_a_packet_is_no_longer_than_the_engine_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.engine.client.LONGEST", 5 * len(pack_ask_statistics()))

    async def ask() -> Packets:
        with new_client() as client, engine_of(client) as engine:
            asked = [asyncio.create_task(client.statistics()) for _ in range(12)]
            await turns(2)
            packets = sent(engine)
            await cancel(asked)
            return packets

    assert [len(packet) for packet in asyncio.run(ask())] == [5, 5, 2]
