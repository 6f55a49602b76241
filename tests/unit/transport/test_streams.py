"""Byte streams of CONNECT over real QUIC on the loopback: order, ends, resets, windows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from qvpn_core.transport import settings
from qvpn_core.transport.aioquic_streams import MAX_STREAM_WINDOW, WINDOW_GROWTH
from qvpn_core.transport.dial import QuicClient
from qvpn_core.transport.interface import (
    H3_CONNECT_ERROR,
    H3_REQUEST_CANCELLED,
    Address,
    HttpStream,
    IncomingRequest,
    Request,
)
from qvpn_core.transport.reach import open_connection
from qvpn_core.transport.streams import MAX_UNSENT
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import (
    CONNECT_IP,
    Changes,
    Identity,
    RecordingHandler,
    in_loop,
    make_identity,
)
from tests.unit.transport.peers import gateway, relay

PATIENCE = 40.0  # seconds that anything may take on a busy machine


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


def connect_to(authority: str = "host.example:80") -> Request:
    return Request("CONNECT", "", authority, "")


class StreamServer:
    """A gateway's `on_request` that opens every stream and keeps it."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.requests: list[IncomingRequest] = []
        self.streams: list[HttpStream] = []

    def __call__(self, incoming: IncomingRequest) -> None:
        self.requests.append(incoming)
        self.streams.append(incoming.accept_stream((("x-test", "yes"),)))
        self.changes.note()

    async def stream(self, number: int = 0) -> HttpStream:
        await self.changes.until(lambda: len(self.streams) > number)
        return self.streams[number]


@asynccontextmanager
async def client(address: Address, identity: Identity) -> AsyncIterator[QuicClient]:
    connection = await open_connection(*address, trust=Trust(pins=(identity.pin,)))
    assert isinstance(connection, QuicClient)
    try:
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def pair(
    identity: Identity, authority: str = "host.example:80"
) -> AsyncIterator[tuple[HttpStream, HttpStream, QuicClient]]:
    """The two ends of an open stream."""
    server = StreamServer()
    async with gateway(identity, server) as listener:
        async with client(listener.addresses[0], identity) as connection:
            near = await connection.open_stream(connect_to(authority))
            yield near, await server.stream(), connection


async def read_all(stream: HttpStream) -> bytes:
    got = bytearray()
    async with asyncio.timeout(PATIENCE):
        while data := await stream.receive():
            got += data
    return bytes(got)


async def echo(stream: HttpStream) -> None:
    while data := await stream.receive():
        await stream.send(data)
    stream.end()


def buffered(connection: QuicClient) -> int:
    """Bytes that the client keeps to send, or to send again."""
    return connection._dial.http.quic.buffered


@in_loop
async def test_a_sender_waits_for_a_reader_that_does_not_read(identity: Identity) -> None:
    async with pair(identity) as (near, far, connection):
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            while True:
                await near.send(bytes(16 << 10))
                sent += 16 << 10

        sending = asyncio.ensure_future(send_all())
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.2)
        # What the window lets through, what waits to be sent, and the last piece.
        assert sent <= settings.MAX_STREAM_DATA + MAX_UNSENT + (16 << 10)
        assert buffered(connection) <= MAX_UNSENT + (32 << 10)
        got = 0
        async with asyncio.timeout(PATIENCE):
            while got < 1 << 20:  # reading makes it go on
                got += len(await far.receive())
        sending.cancel()
        near.reset(H3_REQUEST_CANCELLED)


@in_loop
async def test_a_window_grows_for_a_reader_that_keeps_up_and_not_for_ever(
    identity: Identity,
) -> None:
    async with pair(identity) as (near, far, connection):
        quic = connection._dial.http.quic
        reading = asyncio.ensure_future(read_all(near))
        for _ in range(64):
            await far.send(bytes(128 << 10))
        far.end()
        assert len(await reading) == 8 << 20
        [window] = quic._windows.values()
        assert settings.MAX_STREAM_DATA < window <= MAX_STREAM_WINDOW
        assert quic._growth_left == WINDOW_GROWTH - (window - settings.MAX_STREAM_DATA)
        near.end()
        assert (quic._windows, quic._growth_left) == ({}, WINDOW_GROWTH)
        assert (quic._unread, quic._unread_total) == ({}, 0)


@in_loop
async def test_hundreds_of_streams_at_once_one_of_them_stalled(identity: Identity) -> None:
    server = StreamServer()
    stalled_bytes = 4 << 20

    def serve(incoming: IncomingRequest) -> None:
        server(incoming)
        stream = server.streams[-1]
        if incoming.request.authority == "stalled:1":
            tasks.add(asyncio.ensure_future(stream.send(bytes(stalled_bytes))))
        else:
            tasks.add(asyncio.ensure_future(echo(stream)))

    tasks: set[asyncio.Future[None]] = set()
    async with gateway(identity, serve) as listener:
        async with client(listener.addresses[0], identity) as connection:
            stalled = await connection.open_stream(connect_to("stalled:1"))

            async def one(number: int) -> None:
                stream = await connection.open_stream(connect_to(f"host:{number + 1}"))
                data = random.Random(number).randbytes(20_000)
                await stream.send(data)
                stream.end()
                assert await read_all(stream) == data

            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                for number in range(300):
                    group.create_task(one(number))
            # The stalled one has not moved meanwhile beyond its first window.
            quic = connection._dial.http.quic
            assert 0 < quic._unread_total <= settings.MAX_STREAM_DATA
            got = 0
            async with asyncio.timeout(PATIENCE):
                while got < stalled_bytes:
                    got += len(await stalled.receive())
            stalled.reset(H3_REQUEST_CANCELLED)
            for task in tasks:
                task.cancel()


@in_loop
async def test_a_loss_on_one_stream_holds_up_no_other(identity: Identity) -> None:
    server = StreamServer()
    lost = asyncio.Event()

    def lose_one(direction: str, data: bytes) -> list[tuple[float, bytes]]:
        if direction == "down" and len(data) > 900 and not lost.is_set():
            lost.set()
            return []
        return [(0.05, data)]

    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        async with client(path.address, identity) as connection:
            first = await connection.open_stream(connect_to())
            second = await connection.open_stream(connect_to())
            far = await server.stream(0), await server.stream(1)
            # So that no probe for the path's MTU is in the way.
            await connection._dial.http.path_usable
            path.treatment = lose_one
            await far[0].send(b"a" * 1000)
            await lost.wait()
            reading = asyncio.ensure_future(first.receive())
            async with asyncio.timeout(PATIENCE):
                for _ in range(4):
                    await far[1].send(b"b" * 1000)
                got = b""
                while len(got) < 4000:
                    got += await second.receive()
                # The first needs a round trip more: nobody knows of its loss before.
                assert not reading.done()
                assert await reading == b"a" * 1000


@in_loop
async def test_a_path_that_loses_packets_of_every_kind_loses_no_byte(identity: Identity) -> None:
    """Also those that open windows: the transfer is many windows long."""
    server, chance = StreamServer(), random.Random(2)
    data = random.Random(3).randbytes(1 << 20)
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        async with client(path.address, identity) as connection:
            near = await connection.open_stream(connect_to())
            far = await server.stream()
            path.treatment = lambda _way, packet: [] if chance.random() < 0.05 else [(0.0, packet)]
            async with asyncio.TaskGroup() as group:
                group.create_task(echo(far))
                received = group.create_task(read_all(near))
                await near.send(data)
                near.end()
                assert await received == data


@in_loop
async def test_what_comes_before_the_answer_is_kept(identity: Identity) -> None:
    waiting: list[IncomingRequest] = []
    changes = Changes()

    def hold(incoming: IncomingRequest) -> None:
        incoming.hold()
        waiting.append(incoming)
        changes.note()

    async with gateway(identity, hold) as listener:
        async with client(listener.addresses[0], identity) as connection:
            http = connection._dial.http
            opening = asyncio.ensure_future(connection.open_stream(connect_to()))
            await changes.until(lambda: waiting)
            http.write_stream(next(iter(http.streams)), b"early")
            far = waiting[0].accept_stream()
            await opening
            async with asyncio.timeout(PATIENCE):
                assert await far.receive() == b"early"


@in_loop
async def test_capsules_that_come_before_the_answer_reach_the_tunnel(identity: Identity) -> None:
    waiting: list[IncomingRequest] = []
    handler, changes = RecordingHandler(), Changes()

    def hold(incoming: IncomingRequest) -> None:
        incoming.hold()
        waiting.append(incoming)
        changes.note()

    async with gateway(identity, hold) as listener:
        async with client(listener.addresses[0], identity) as connection:
            http = connection._dial.http
            ours = RecordingHandler()
            opening = asyncio.ensure_future(connection.open_tunnel(CONNECT_IP, ours))
            await changes.until(lambda: waiting)
            http.send_data(next(iter(http._responses)), b"early capsule")
            tunnel = waiting[0].accept(handler)
            await opening
            await handler.until(lambda: handler.data == b"early capsule")
            tunnel.send_packets([b"packet"])
            await ours.until(lambda: ours.received == [b"packet"])


@in_loop
async def test_streams_that_come_and_go_leave_nothing(identity: Identity) -> None:
    server = StreamServer()
    endings: list[Callable[[HttpStream, HttpStream], None]] = [
        lambda near, far: (near.end(), far.end())[0],
        lambda near, far: near.reset(H3_REQUEST_CANCELLED),
        lambda near, far: far.reset(H3_CONNECT_ERROR),
    ]
    async with gateway(identity, server) as listener:
        async with client(listener.addresses[0], identity) as connection:
            for number in range(90):
                near = await connection.open_stream(connect_to())
                far = await server.stream(number)
                await near.send(b"x" * 3000)
                await far.receive()
                endings[number % 3](near, far)
                for stream in (near, far):
                    if number % 3 == 0:
                        await read_all(stream)
            [accepted] = listener._accepted
            for http in (connection._dial.http, accepted.http):
                for _ in range(1000):
                    if not http.streams and len(http.quic._streams) <= 8:
                        break
                    await asyncio.sleep(0.02)
                assert (http.streams, len(http.quic._streams) <= 8) == ({}, True)
                assert (http.quic._unread, http.quic._windows) == ({}, {})
                assert http._h3 is not None
                assert len(http._h3._stream) <= 8  # control, QPACK, and no request
                assert not http._openings
