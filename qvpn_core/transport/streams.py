"""A byte stream on an HTTP connection: what `interface.HttpStream` promises, for any transport.

Holds what has arrived and is not read yet, and lets a sender wait for room. It refuses to know
frames, flow control and error codes: a :class:`StreamCarrier`, HTTP/3 or HTTP/2, has those.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.transport.interface import Headers, TransportName

#: Bytes of a stream that wait for the network before its sender waits too. What is in flight is
#: bounded by the congestion window.
MAX_UNSENT = 64 << 10


class StreamCarrier(Protocol):
    """What a transport does for its streams. None of it may call back before it returns."""

    @property
    def transport(self) -> TransportName: ...

    def write_stream(self, stream_id: int, data: bytes) -> None:
        """Queue bytes behind what is queued already."""

    def finish_stream(self, stream_id: int) -> None:
        """Finish our direction."""

    def abort_stream(self, stream_id: int, error: int) -> None:
        """Reset both directions, as far as they are open."""

    def unsent(self, stream_id: int) -> int:
        """Bytes that were queued and never sent; the carrier calls `has_room` when they are."""

    def bytes_held(self, stream_id: int, count: int) -> None:
        """`count` more bytes were handed to the stream: the peer's window stays that much shut."""

    def bytes_read(self, stream_id: int, count: int) -> None:
        """`count` of those were read: the window may open again."""

    def forget_stream(self, stream_id: int) -> None:
        """Both directions are over."""


class ByteStream:
    """See `interface.HttpStream`; below are the calls of its carrier."""

    def __init__(self, carrier: StreamCarrier, stream_id: int) -> None:
        self._carrier = carrier
        self._stream_id = stream_id
        self.response_headers: Headers = ()
        self._received: deque[bytes] = deque()
        self._unread = 0
        self.ended = False  #: Whether the peer has finished its side.
        self._finished = False  # by us
        self._over = False  # both, or broken
        self._error: QvpnError | None = None
        #: Whether somebody waits for `has_room`.
        self.waiting = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._broken: asyncio.Future[QvpnError] = asyncio.get_running_loop().create_future()

    @property
    def transport(self) -> TransportName:
        return self._carrier.transport

    async def receive(self) -> bytes:
        self._read_all()
        while not self._received:
            if self.ended:
                return b""
            if self._error is not None:
                raise self._error
            self._news.clear()
            await self._news.wait()
        data = b"".join(self._received) if len(self._received) > 1 else self._received[0]
        self._received.clear()
        self._unread = len(data)
        return data

    async def send(self, data: bytes) -> None:
        self._check_sendable()
        self._carrier.write_stream(self._stream_id, data)
        while self._carrier.unsent(self._stream_id) > MAX_UNSENT:
            self._room.clear()
            self.waiting = True
            try:
                await self._room.wait()
            finally:
                self.waiting = False
            self._check_sendable()

    def end(self) -> None:
        if not self._finished and not self._over:
            self._finished = True
            self._carrier.finish_stream(self._stream_id)
            self._settle()

    def reset(self, error: int) -> None:
        if not self._over:
            self._carrier.abort_stream(self._stream_id, error)
            self._end_with(TunnelLost("the stream was closed"))

    async def broken(self) -> QvpnError:
        return await asyncio.shield(self._broken)

    # From the carrier

    def received(self, data: bytes) -> None:
        """The next bytes from the peer."""
        if not self._over:
            self._received.append(data)
            self._carrier.bytes_held(self._stream_id, len(data))
            self._news.set()

    def received_end(self) -> None:
        """The peer finished its side."""
        self.ended = True
        self._news.set()
        self._settle()

    def has_room(self) -> None:
        """Some of what waited was sent."""
        if self.waiting and self._carrier.unsent(self._stream_id) <= MAX_UNSENT // 2:
            self._room.set()

    def broke(self, error: QvpnError) -> None:
        """The peer or the connection ended the stream; the carrier has done its part."""
        if not self._over:
            self._end_with(error)
            self._broken.set_result(error)

    def take(self) -> bytes:
        """Everything that was kept, at once, for a carrier that makes something else of it."""
        data = b"".join(self._received)
        self._over = True
        self._received.clear()
        return data

    def _check_sendable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._finished:
            raise TunnelLost("our side of the stream was finished")

    def _read_all(self) -> None:
        if self._unread:
            count, self._unread = self._unread, 0
            if not self._over:
                self._carrier.bytes_read(self._stream_id, count)

    def _settle(self) -> None:
        if self.ended and self._finished and not self._over:
            self._over = True
            self._carrier.forget_stream(self._stream_id)

    def _end_with(self, error: QvpnError) -> None:
        self._error = error
        self._over = True
        if not self.ended:
            self._received.clear()
        self._carrier.forget_stream(self._stream_id)
        self._news.set()
        self._room.set()
