"""Byte streams of CONNECT on one HTTP/2 connection, and the windows that follow their readers.

See `streams.StreamCarrier`. It refuses to know frames and requests: `http2.py` has those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from h2.errors import ErrorCodes

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.transport import tls_settings
from qvpn_core.transport.http2_streams import Fields, StreamLost
from qvpn_core.transport.interface import (
    H3_CONNECT_ERROR,
    H3_REQUEST_CANCELLED,
    StreamReset,
    TransportName,
)
from qvpn_core.transport.streams import ByteStream

if TYPE_CHECKING:
    from qvpn_core.transport.http2 import Http2Connection

#: HTTP/3's codes, in which users of streams and tunnels speak, in HTTP/2's (RFC 9114 appendix A.4).
TO_HTTP2 = {
    0x100: ErrorCodes.NO_ERROR,
    0x102: ErrorCodes.INTERNAL_ERROR,
    0x107: ErrorCodes.ENHANCE_YOUR_CALM,
    0x10B: ErrorCodes.REFUSED_STREAM,
    H3_REQUEST_CANCELLED: ErrorCodes.CANCEL,
    H3_CONNECT_ERROR: ErrorCodes.CONNECT_ERROR,
}
_TO_HTTP3 = {int(code): error for error, code in TO_HTTP2.items()}
_GENERAL_PROTOCOL_ERROR = 0x101  # H3_GENERAL_PROTOCOL_ERROR, RFC 9114 section 8.1


@dataclass(slots=True)
class _Window:
    """How far a stream's peer may be ahead of its reader, in bytes."""

    size: int = tls_settings.STREAM_WINDOW
    unread: int = 0
    read: int = 0  # since it last grew


class _Taker:
    """Hands what arrives to a byte stream; see `http2_streams.Taker`."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.data = stream.received
        self.end = stream.received_end

    def headers(self, fields: Fields) -> None:
        pass  # trailers: nothing in them concerns us

    def lost(self, error: QvpnError) -> None:
        self._stream.broke(why_broken(error))


def why_broken(error: QvpnError) -> QvpnError:
    """Why a stream is gone, as its owner is told."""
    if isinstance(error, StreamLost):
        return StreamReset(_TO_HTTP3.get(error.code, _GENERAL_PROTOCOL_ERROR))
    return error


class ByteStreams:
    """Those of one connection."""

    transport: TransportName = "tls"

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self.open: dict[int, ByteStream] = {}
        self._windows: dict[int, _Window] = {}
        self._growth_left = tls_settings.WINDOW

    def own(self, number: int) -> ByteStream:
        """The byte stream of a request: from now on what arrives waits for its reader."""
        stream = self.open[number] = ByteStream(self, number)
        self._windows[number] = _Window()
        self._connection.take(number, _Taker(stream))
        return stream

    def gone(self, number: int) -> ByteStream:
        """The byte stream of a request that the peer has cancelled."""
        stream = ByteStream(self, number)
        stream.broke(TunnelLost("the peer cancelled its request"))
        return stream

    def end_all(self, error: QvpnError) -> None:
        """The connection ends."""
        for stream in list(self.open.values()):
            stream.broke(error)

    def sent(self, number: int) -> None:
        """Some of what waited on a stream was sent."""
        stream = self.open.get(number)
        if stream is not None:
            stream.has_room()

    # See `streams.StreamCarrier`

    def write_stream(self, stream_id: int, data: bytes) -> None:
        self._connection.send(stream_id, data)

    def finish_stream(self, stream_id: int) -> None:
        self._connection.finish(stream_id)

    def abort_stream(self, stream_id: int, error: int) -> None:
        self._connection.reset(stream_id, error)

    def unsent(self, stream_id: int) -> int:
        return self._connection.unsent(stream_id)

    def bytes_held(self, stream_id: int, count: int) -> None:
        self._windows[stream_id].unread += count

    def bytes_read(self, stream_id: int, count: int) -> None:
        window = self._windows[stream_id]
        window.unread -= count
        window.read += count
        self._connection.acknowledge(stream_id, count)
        if window.unread or window.read < window.size // 2:
            return
        # Its reader keeps up.
        if window.size <= min(tls_settings.MAX_STREAM_WINDOW // 2, self._growth_left):
            if self._connection.open_window(stream_id, window.size):
                self._growth_left -= window.size
                window.size, window.read = 2 * window.size, 0

    def forget_stream(self, stream_id: int) -> None:
        window = self._windows.pop(stream_id, None)
        if window is None:
            return
        self._growth_left += window.size - tls_settings.STREAM_WINDOW
        self._connection.acknowledge(stream_id, window.unread)
        del self.open[stream_id]
        self._connection.notice_vacancy()
