"""A stream and a TCP connection joined: ends, resets and silence pass from one to the other."""

from __future__ import annotations

import asyncio
import socket
from collections import deque

import pytest

from qvpn_core.errors import QvpnError
from qvpn_core.transport.interface import H3_CONNECT_ERROR, Headers, StreamReset, TransportName
from qvpn_core.transport.relay import RelayCounters, relay
from tests.unit.transport.helpers import in_loop

PATIENCE = 15.0


class Pipe:
    """An HttpStream whose peer is the test."""

    transport: TransportName = "quic"
    response_headers: Headers = ()

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.sent: deque[bytes] = deque()
        self.ended = asyncio.Event()
        self.resets: list[int] = []
        self.room = asyncio.Event()
        self.room.set()
        self.break_with: asyncio.Future[QvpnError] = asyncio.get_running_loop().create_future()

    async def receive(self) -> bytes:
        return await self.incoming.get()

    async def send(self, data: bytes) -> None:
        self.sent.append(data)
        await self.room.wait()

    def end(self) -> None:
        self.ended.set()

    def reset(self, error: int) -> None:
        self.resets.append(error)

    async def broken(self) -> QvpnError:
        return await asyncio.shield(self.break_with)


async def connected() -> tuple[socket.socket, socket.socket]:
    """The two ends of a TCP connection: ours, and the program's, which blocks."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


@in_loop
async def test_bytes_and_ends_pass_both_ways() -> None:
    near, far = await connected()
    loop = asyncio.get_running_loop()
    pipe, counters = Pipe(), RelayCounters()
    with far:
        task = asyncio.create_task(relay(pipe, near, counters))
        await loop.sock_sendall(far, b"from the program")
        await pipe.incoming.put(b"for the program")
        assert await loop.sock_recv(far, 100) == b"for the program"
        await pipe.incoming.put(b"")
        assert await loop.sock_recv(far, 100) == b""
        await loop.sock_sendall(far, b", later")
        far.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(PATIENCE):
            await task
        assert b"".join(pipe.sent) == b"from the program, later"
        assert pipe.ended.is_set()
        assert (counters.sent, counters.received) == (23, 15)


@in_loop
async def test_a_broken_stream_resets_the_connection() -> None:
    near, far = await connected()
    pipe = Pipe()
    with far:
        task = asyncio.create_task(relay(pipe, near, RelayCounters()))
        pipe.break_with.set_result(StreamReset(H3_CONNECT_ERROR))
        async with asyncio.timeout(PATIENCE):
            await task
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(far, 1)


@in_loop
async def test_a_reset_connection_resets_the_stream() -> None:
    near, far = await connected()
    pipe = Pipe()
    task = asyncio.create_task(relay(pipe, near, RelayCounters()))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    async with asyncio.timeout(PATIENCE):
        await task
    assert pipe.resets == [H3_CONNECT_ERROR]
    assert not pipe.ended.is_set()


@in_loop
async def test_a_program_is_not_read_while_the_stream_is_full() -> None:
    near, far = await connected()
    pipe = Pipe()
    pipe.room.clear()
    with far:
        task = asyncio.create_task(relay(pipe, near, RelayCounters()))
        sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(far, bytes(64 << 20)))
        await asyncio.sleep(0.3)
        assert len(pipe.sent) == 1
        assert not sending.done()
        pipe.room.set()
        async with asyncio.timeout(PATIENCE):
            await sending
            far.shutdown(socket.SHUT_WR)
            await pipe.ended.wait()
        assert sum(map(len, pipe.sent)) == 64 << 20
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("half_closed", [False, True])
def test_silence_ends_it(half_closed: bool) -> None:
    @in_loop
    async def story() -> None:
        near, far = await connected()
        pipe = Pipe()
        with far:
            if half_closed:
                far.shutdown(socket.SHUT_WR)
            idle = 60.0 if half_closed else 0.1
            async with asyncio.timeout(PATIENCE):
                await relay(pipe, near, RelayCounters(), idle=idle, idle_half_closed=0.1)
            assert pipe.resets == [H3_CONNECT_ERROR]

    story()


@in_loop
async def test_cancelling_resets_both() -> None:
    near, far = await connected()
    pipe = Pipe()
    with far:
        task = asyncio.create_task(relay(pipe, near, RelayCounters()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert pipe.resets == [H3_CONNECT_ERROR]
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(far, 1)
