"""Joins an HTTP stream and a TCP connection until both directions are over.

The gateway uses it towards a service, the client towards a local program. What TCP can say is
carried through both ways: a half-close, a reset, and that the reader is slow: nothing is read from
one side that the other has not taken. It refuses to look at a byte.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from qvpn_core.errors import QvpnError
from qvpn_core.transport.interface import H3_CONNECT_ERROR, HttpStream

#: Bytes read from a TCP connection at once.
CHUNK = 64 << 10
#: Seconds without a byte in either direction after which both are given up, as for a NAT of TCP
#: (RFC 5382, requirement 5), and once one direction has ended.
IDLE = 7440.0
IDLE_HALF_CLOSED = 600.0
#: struct linger, on and 0 seconds: close with a RST (socket(7); Windows has shorts in it).
_ABORT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


@dataclass(slots=True)
class RelayCounters:
    """Bytes from the TCP connection into the stream (`sent`) and back."""

    sent: int = 0
    received: int = 0


async def relay(
    stream: HttpStream,
    sock: socket.socket,
    counters: RelayCounters,
    *,
    idle: float = IDLE,
    idle_half_closed: float = IDLE_HALF_CLOSED,
) -> None:
    """Carry bytes both ways until each direction ended, one broke, or nothing moved for `idle`.

    Takes over `sock`, which is connected and non-blocking, and `stream`. Returns normally in every
    case; cancelling resets both.
    """
    watch = _Watch(asyncio.get_running_loop().time, idle, idle_half_closed)
    clean = False
    try:
        clean = await _both_ways(stream, sock, counters, watch)
    finally:
        if not clean:
            _abort_on_close(sock)
        sock.close()
        stream.reset(H3_CONNECT_ERROR)  # nothing is left to reset after a clean end


class _Watch:
    """When something moved last, in seconds of the loop's clock, and how long may pass since."""

    def __init__(self, clock: Callable[[], float], idle: float, idle_half_closed: float) -> None:
        self._clock = clock
        self._idle = idle
        self._idle_half_closed = idle_half_closed
        self.moved()

    def moved(self) -> None:
        """Something moved."""
        self._at = self._clock()

    def half_closed(self) -> None:
        """One direction ended: from now on less patience."""
        self._idle = min(self._idle, self._idle_half_closed)
        self.moved()

    async def expired(self) -> None:
        """Returns when nothing has moved for too long."""
        left = self._idle
        while left > 0:
            # In time for a limit that is shortened meanwhile.
            await asyncio.sleep(min(left, self._idle_half_closed))
            left = self._at + self._idle - self._clock()


async def _both_ways(
    stream: HttpStream, sock: socket.socket, counters: RelayCounters, watch: _Watch
) -> bool:
    """Whether both directions ended in order."""
    pumps = {
        asyncio.create_task(_to_stream(sock, stream, counters, watch)),
        asyncio.create_task(_to_socket(stream, sock, counters, watch)),
    }
    others = {asyncio.create_task(watch.expired()), asyncio.create_task(_broken(stream))}
    try:
        while pumps:
            done, _ = await asyncio.wait(pumps | others, return_when=asyncio.FIRST_COMPLETED)
            failures = [failure for task in done if (failure := task.exception())]
            for failure in failures:
                if not isinstance(failure, OSError | QvpnError):
                    raise failure  # a defect of ours
            if failures or done & others:
                return False
            pumps -= done
        return True
    finally:
        tasks = pumps | others
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _broken(stream: HttpStream) -> None:
    await stream.broken()


async def _to_stream(
    sock: socket.socket, stream: HttpStream, counters: RelayCounters, watch: _Watch
) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, CHUNK):
        watch.moved()
        counters.sent += len(data)
        await stream.send(data)
    stream.end()
    watch.half_closed()


async def _to_socket(
    stream: HttpStream, sock: socket.socket, counters: RelayCounters, watch: _Watch
) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.receive():
        watch.moved()
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            await loop.sock_sendall(sock, view[start : start + CHUNK])
            watch.moved()
        counters.received += len(data)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError as error:
        raise QvpnError("the connection was closed") from error
    watch.half_closed()


def _abort_on_close(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    except OSError:  # it is closed or was never connected
        return
