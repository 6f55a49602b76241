"""The seam between HTTP and everything above it.

An :class:`HttpTunnel` is one accepted CONNECT-IP request (RFC 9484) or CONNECT-UDP request
(RFC 9298): a byte stream of capsules and a flow of packets beside it, IP packets of the one, UDP
payloads of the other. An :class:`HttpStream` is one classic CONNECT request (RFC 9110 section
9.3.6): bytes both ways. HTTP/3 on QUIC and HTTP/2 on TLS implement both; the gateway, the client
and the datapath use nothing else. All calls happen on the event loop that made the tunnel or the
stream; only those that are awaited wait, and callbacks must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.transport.offload import CarriedRules, OffloadEngine

TransportName = Literal["quic", "tls"]
Address = tuple[str, int]
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request head. Field names are lower case, values as received."""

    method: str
    scheme: str
    authority: str
    path: str
    #: The `:protocol` pseudo-header of extended CONNECT (RFC 9220), or None.
    protocol: str | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def header(self, name: str) -> str | None:
        """The first value of a field, or None."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(slots=True)
class TunnelCounters:
    """What a tunnel moved and dropped since it opened. `dropped` counts packets by reason."""

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    #: Of the packets sent, those that the transport declared lost; a transport that repeats what
    #: is lost has none.
    lost_packets: int = 0
    #: At a client with an engine: packets from the TUN whose source is not the session's.
    bad_source: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` packets dropped for `reason` (a slug such as ``queue-expired``)."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count


class TunnelHandler(Protocol):
    """What the owner of a tunnel is told. Bound once, before any event can arrive."""

    def capsule_data(self, data: bytes) -> None:
        """The next bytes of the capsule stream, split anywhere."""

    def capsule_end(self) -> None:
        """The peer finished its side of the capsule stream."""

    def packets(self, packets: list[bytes]) -> None:
        """Packets in arrival order (context ID 0, whole, unchecked), never an empty list."""

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        """`packet` was given to send but exceeds `mtu` bytes; it was dropped and counted.

        Called from within `send_packets`. The owner answers with ICMP Packet Too Big.
        """

    def mtu_changed(self, mtu: int) -> None:
        """The largest IP packet that can be sent is now `mtu` bytes."""

    def closed(self, error: QvpnError | None) -> None:
        """The tunnel is gone; None when either side ended it in order. Called exactly once."""


class HttpTunnel(Protocol):
    """One open CONNECT-IP or CONNECT-UDP request."""

    @property
    def transport(self) -> TransportName:
        """What carries this tunnel."""

    @property
    def peer(self) -> Address:
        """The peer's current UDP or TCP address."""

    @property
    def mtu(self) -> int:
        """The largest packet in bytes that `send_packets` takes now."""

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""

    @property
    def silence(self) -> float:
        """Seconds for which the peer has owed an answer; 0.0 while it owes none."""

    @property
    def counters(self) -> TunnelCounters:
        """Live counters, read only."""

    @property
    def response_headers(self) -> Headers:
        """At the client: the fields that came with the gateway's 200."""

    def send_capsules(self, data: bytes) -> None:
        """Send whole encoded capsules on the stream, reliably and in order.

        Whole, since on TLS packets go between two calls.
        """

    def send_packets(self, packets: Sequence[bytes]) -> None:
        """Send packets as HTTP Datagrams, unreliably; transmits as one batch.

        Packets over `mtu` go to `packet_too_big`; the queue is bounded in packets and time and
        drops its oldest.
        """

    def hold(self) -> None:
        """At the client: there is no path to the gateway now.

        Keep what is given to send, bounded, until `rebind`; the gateway's silence means nothing.
        """

    async def rebind(self, slept: float = 0.0) -> bool:
        """At the client: go on from a new socket, over the path that its packets take now.

        `slept` is for how many seconds this machine was suspended. False says that this connection
        cannot go on: it runs over TCP, the peer does not allow it (RFC 9000 section 18.2), or the
        peer has forgotten it by now; then open another. True only says that it was begun: a path
        that does not answer ends the tunnel soon. Raises GatewayUnreachable without any path, and
        what the socket factory raises; then the tunnel is as before.
        """

    def carry(self, engine: OffloadEngine, rules: CarriedRules) -> bool:
        """Let an engine move the IP packets of this tunnel that pass `rules`.

        All others still come to the handler, and `send_packets` still works. False where that is
        not possible, as on TLS; then nothing has changed.
        """

    def allow(self, rules: CarriedRules) -> None:
        """Other rules for the engine that carries this tunnel, if one does."""

    def unroute(self) -> None:
        """The engine that carries this tunnel, if one does, sends no packets of the TUN by it."""

    def uncarry(self) -> None:
        """Take the tunnel back from its engine, which may have failed. Idempotent."""

    @property
    def carried(self) -> bool:
        """Whether an engine moves this tunnel's packets."""

    def close(self, error: int | None = None) -> None:
        """End the tunnel: in order with None, else reset the stream with that HTTP/3 error code,
        on HTTP/2 with the one that means the same.

        Idempotent. `TunnelHandler.closed` follows, also for a local close.
        """


class StreamReset(TunnelLost):
    """The peer reset a stream; `code` is its HTTP/3 error code."""

    reason = "stream-reset"

    def __init__(self, code: int) -> None:
        super().__init__(f"the other end reset the stream (HTTP/3 error {code:#x})")
        self.code = code


class HttpStream(Protocol):
    """A CONNECT request as bytes both ways (RFC 9114 section 4.4, RFC 9113 section 8.5).

    Each direction ends for itself. One task may wait in `receive` and one in `send`. When the peer
    resets either direction, or the connection ends, both directions are over, and every call raises
    the QvpnError that says why: :class:`StreamReset`, or whatever ended the connection.
    """

    @property
    def transport(self) -> TransportName: ...

    @property
    def response_headers(self) -> Headers:
        """At the client: the fields that came with the gateway's 2xx."""

    async def receive(self) -> bytes:
        """All bytes that have arrived, at least one; b"" once the peer has finished its side.

        What was returned counts as read when `receive` is called again; until then, and for what
        nobody asks for, the transport's flow control holds the peer back.
        """

    async def send(self, data: bytes) -> None:
        """Send bytes; returns when so few wait to be sent that there is room for more."""

    def end(self) -> None:
        """Finish our side, behind everything that was sent. Idempotent."""

    def reset(self, error: int) -> None:
        """Give up both directions with that HTTP/3 error code, unless both have finished.

        Idempotent. What waited to be sent or read is lost. Over HTTP/2 the code is the one of the
        same name (RFC 9114 appendix A.4).
        """

    async def broken(self) -> QvpnError:
        """Wait until the peer or the connection breaks the stream, and return why."""


class HttpConnection(Protocol):
    """A client's connection to a gateway, for any number of streams and tunnels."""

    @property
    def transport(self) -> TransportName: ...

    @property
    def peer(self) -> Address: ...

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""

    @property
    def silence(self) -> float:
        """Seconds for which the peer has owed an answer; 0.0 while it owes none."""

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """The TLS exporter (RFC 8446 section 7.5)."""

    async def open_stream(self, request: Request) -> HttpStream:
        """Make a classic CONNECT request (without scheme, path and `:protocol`).

        Raises :class:`Refused`, StreamReset, or what ended the connection, or `leave`. Cancelling
        cancels the request.
        """

    async def open_tunnel(self, request: Request, handler: TunnelHandler) -> HttpTunnel:
        """Make an extended CONNECT request (RFC 9220, RFC 8441). Raises as `open_stream` does."""

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, for whatever reason."""

    def leave(self) -> None:
        """Make no more requests, fail those without an answer, and close behind the last that is
        open. Idempotent.
        """

    async def ended(self) -> QvpnError:
        """Wait until the connection has ended, and return why."""

    def close(self) -> None:
        """Close the connection with all that is on it. Idempotent."""


class Refused(Exception):
    """The answer to a request was not 2xx; `status` is None for a reset stream."""

    def __init__(self, status: int | None, headers: Headers = ()) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class IncomingRequest(Protocol):
    """A request at the gateway, waiting for exactly one of `respond`, `accept`, `accept_stream`.

    Before `respond`, its content can be asked for with `read_body`, once.
    """

    @property
    def request(self) -> Request: ...

    @property
    def peer(self) -> Address: ...

    @property
    def transport(self) -> TransportName: ...

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """The TLS exporter of the request's connection (RFC 8446 section 7.5)."""

    def read_body(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        """Gather the request's content, then call `done` with it, once.

        With None for more than `limit` bytes. Never when the request or its connection ends first:
        then there is nobody left to answer.
        """

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Answer and finish the stream."""

    def accept(self, handler: TunnelHandler, headers: Headers = ()) -> HttpTunnel:
        """Answer 200 with `capsule-protocol: ?1` and open the tunnel.

        `handler.packets` may be called as soon as this returns, not before.
        """

    def hold(self) -> HttpStream:
        """Keep what the peer sends before the answer, for when that takes time.

        The stream says meanwhile whether the peer has given up; nothing can be sent on it yet. Then
        one of the three answers, of which `accept` hands what was kept to its handler.
        """

    def accept_stream(self, headers: Headers = ()) -> HttpStream:
        """Answer 200 and open the stream: the one of `hold` if there is one."""


# HTTP/3 error codes that users of a tunnel or a stream close it with.
H3_DATAGRAM_ERROR = 0x33  # RFC 9297 section 5.2
H3_REQUEST_CANCELLED = 0x10C  # RFC 9114 section 8.1
H3_MESSAGE_ERROR = 0x10E  # RFC 9114 section 8.1
H3_CONNECT_ERROR = 0x10F  # RFC 9114 section 4.4: the TCP connection behind a stream failed
