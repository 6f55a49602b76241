"""HTTP/1.1 for a gateway's web site, sans-IO: what speaks no HTTP/2 is answered, one by one.

Frames are h11's. There are no tunnels here: a request that asks for one is an ordinary request.
What is no HTTP gets the short answer of any web server, and the connection ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from http import HTTPStatus

import h11

from qvpn_core.errors import QvpnError
from qvpn_core.transport import tls_settings
from qvpn_core.transport.carrier import Carrier
from qvpn_core.transport.http2_streams import Body
from qvpn_core.transport.interface import (
    Address,
    Headers,
    HttpStream,
    HttpTunnel,
    IncomingRequest,
    Request,
    TransportName,
    TunnelHandler,
)

log = logging.getLogger(__name__)

_BITE = 4 << 10  # bytes between two looks whether a head has become too long


class Http1Connection:
    """One connection at the gateway; a `carrier.Speaker`."""

    def __init__(self, carrier: Carrier, on_request: Callable[[IncomingRequest], None]) -> None:
        self.carrier = carrier
        self._on_request = on_request
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=tls_settings.MAX_HEADERS)
        self._out: list[bytes] = []
        #: Content that is still to be sent, and how much of it was.
        self._content: memoryview | None = None
        self._body: Body | None = None
        #: Whether the request that was read last has content.
        self._has_content = False
        #: Bytes that arrived while an answer was under way.
        self._ahead = 0
        self.over = False
        self.answered = False
        self.last_request: float | None = None

    def receive(self, data: bytes) -> None:
        self._ahead = self._ahead + len(data) if self._content is not None else 0
        if self._ahead > tls_settings.MAX_BUFFERED:
            self.over = True  # asks on and on and takes no answers
        for at in range(0, len(data), _BITE):
            if not self.over:
                self._h11.receive_data(data[at : at + _BITE])
                self._proceed()
        self.carrier.wake()

    def _proceed(self) -> None:
        """Take events until more must arrive or an answer is due."""
        while not self.over:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint)
                return
            match event:
                case h11.Request():
                    self._request(event)
                case h11.Data() if self._body is not None:
                    self._body.data(bytes(event.data))
                case h11.EndOfMessage():
                    if self._body is not None:
                        self._body.end()
                case h11.Data():
                    pass  # of a request that is answered already
                case _:
                    # NEED_DATA, PAUSED: the next request waits for the answer to this one.
                    self.over = isinstance(event, h11.ConnectionClosed) or self.over
                    return

    def _request(self, event: h11.Request) -> None:
        self.last_request = self.carrier.now()
        fields = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers
        )
        self._has_content = any(
            name == "transfer-encoding" or (name == "content-length" and value != "0")
            for name, value in fields
        )
        authority = next((value for name, value in fields if name == "host"), "")
        target = event.target.decode("latin-1")
        for scheme in ("https://", "http://"):  # absolute form, RFC 9112 section 3.2.2
            if target.lower().startswith(scheme):
                authority, slash, rest = target[len(scheme) :].partition("/")
                target = slash + rest or "/"
        method = event.method.decode("latin-1")
        request = Request(method, "https", authority, target, None, fields)
        try:
            self._on_request(Http1Request(self, request))
        except Exception:
            log.exception("a request of %s failed by a defect", self.carrier.peer)
            self.over = True

    def _refuse(self, status: int) -> None:
        """What cannot be read gets a short answer, and no other follows."""
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._content:
            self._out.append(plain_refusal(status))
        self.over = True

    def read_body(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        """See `interface.IncomingRequest.read_body`."""
        self._body = Body(limit, done)

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer the request that was read last."""
        self.answered = True
        self._body = None
        if self.over or self._h11.our_state is not h11.SEND_RESPONSE:
            return  # nobody wants to hear it
        fields = [(name.title(), value) for name, value in headers]
        if self._has_content and self._h11.their_state is h11.SEND_BODY:
            # The rest of the request is not wanted, nor waited for (RFC 9112 section 9.6).
            fields.append(("Connection", "close"))
        reason = HTTPStatus(status).phrase
        self._send(h11.Response(status_code=status, headers=fields, reason=reason))
        self._content = memoryview(body)
        self.carrier.wake()

    def pull(self) -> bytes:
        if not self._out and self._content is not None:
            self._send_content(self._content)
        data, self._out = b"".join(self._out), []
        return data

    def _send_content(self, content: memoryview) -> None:
        self.last_request = self.carrier.now()
        if content:
            self._send(h11.Data(data=bytes(content[: tls_settings.CHUNK])))
            self._content = content[tls_settings.CHUNK :]
        if not self._content:
            self._content = None
            self._send(h11.EndOfMessage())
            self._next_request()

    def _next_request(self) -> None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._proceed()
        elif self._h11.our_state is not h11.DONE:
            self.over = True

    def _send(self, event: h11.Event) -> None:
        self._out.append(self._h11.send(event) or b"")

    def close(self) -> None:
        self.over = True
        self.carrier.wake()

    def lost(self, error: QvpnError) -> None:
        self.over = True
        if self._body is not None:
            self._body.lost(error)


class Http1Request:
    """A request at the gateway; see `interface.IncomingRequest`."""

    transport: TransportName = "tls"

    def __init__(self, connection: Http1Connection, request: Request) -> None:
        self._connection = connection
        self.request = request

    @property
    def peer(self) -> Address:
        return self._connection.carrier.peer

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return self._connection.carrier.export_keying_material(label, context, length)

    def read_body(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        self._connection.read_body(limit, done)

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        fields = (*headers, tls_settings.alt_svc(self.request.authority))
        self._connection.respond(status, fields, body)

    def accept(self, handler: TunnelHandler, headers: Headers = ()) -> HttpTunnel:
        """Never: its requests have no `:protocol`. Raises RuntimeError."""
        raise RuntimeError("HTTP/1.1 carries no tunnels here")

    def hold(self) -> HttpStream:
        """Never: all its requests have a scheme. Raises RuntimeError."""
        raise RuntimeError("HTTP/1.1 carries no streams here")

    def accept_stream(self, headers: Headers = ()) -> HttpStream:
        """Never, as `hold`. Raises RuntimeError."""
        raise RuntimeError("HTTP/1.1 carries no streams here")


def plain_refusal(status: int) -> bytes:
    """A whole answer to what cannot be read as a request."""
    title = f"{status} {HTTPStatus(status).phrase}"
    body = (
        f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body>{title}</body></html>\n"
    )
    head = (
        f"HTTP/1.1 {title}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return (head + body).encode()
