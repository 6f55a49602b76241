"""What takes what arrives on a stream of HTTP/2: answers to a client's requests, and content.

Tunnels are in `http2_tunnel.py`; who hands things out is `http2.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from qvpn_core.errors import ProtocolViolation, QvpnError, TunnelLost
from qvpn_core.transport.http3 import Response
from qvpn_core.transport.interface import Headers, Refused

Fields = Sequence[tuple[bytes, bytes]]


class StreamLost(TunnelLost):
    """The peer reset one stream with an error `code` of HTTP/2; the connection lives."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the peer reset the tunnel (HTTP/2 error {code:#x})")
        self.code = code


class Taker(Protocol):
    """Who takes what arrives on a stream."""

    def headers(self, fields: Fields) -> None:
        """At the client: a final answer's head."""

    def data(self, data: bytes) -> None:
        """The next bytes."""

    def end(self) -> None:
        """The peer finished its side."""

    def lost(self, error: QvpnError) -> None:
        """The stream, or the whole connection, is gone."""


class Answer:
    """Waits for the answer to a request for a tunnel or a stream."""

    def __init__(
        self,
        opened: Callable[[Fields], None],
        refused: Callable[[Refused], None],
        failed: Callable[[QvpnError], None],
    ) -> None:
        self._opened, self._refused, self._failed = opened, refused, failed

    def headers(self, fields: Fields) -> None:
        status = int(dict(fields)[b":status"])
        if status < 300:
            self._opened(fields)
        else:
            self._refused(Refused(status, text_fields(fields)))

    def data(self, data: bytes) -> None:
        pass  # the page that comes with a refusal

    def end(self) -> None:
        pass

    def lost(self, error: QvpnError) -> None:
        self._failed(error)


class Fetch:
    """Gathers an answer with its content."""

    def __init__(self, limit: int, done: Callable[[Response | Exception], None]) -> None:
        self._limit, self._done = limit, done
        self._fields: Fields = ()
        self._body = b""

    def headers(self, fields: Fields) -> None:
        self._fields = fields

    def data(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._limit:
            self._done(ProtocolViolation("the answer is too long"))
            self._body = b""

    def end(self) -> None:
        status = int(dict(self._fields)[b":status"])
        self._done(Response(status, text_fields(self._fields), self._body))

    def lost(self, error: QvpnError) -> None:
        self._done(Refused(None) if isinstance(error, StreamLost) else error)


def text_fields(fields: Fields) -> Headers:
    """The fields of a message without its pseudo-header fields."""
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in fields
        if not name.startswith(b":")
    )


class Body:
    """Gathers a request's content up to `limit` bytes, then calls `done`, once."""

    def __init__(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        self._limit = limit
        self._done: Callable[[bytes | None], None] | None = done
        self._data = b""

    def headers(self, fields: Fields) -> None:
        pass

    def data(self, data: bytes) -> None:
        if self._done is None:
            return
        self._data += data
        if len(self._data) > self._limit:
            self._finish(None)

    def end(self) -> None:
        self._finish(self._data)

    def lost(self, error: QvpnError) -> None:
        self._done = None  # there is nobody left to answer

    def _finish(self, body: bytes | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(body)
