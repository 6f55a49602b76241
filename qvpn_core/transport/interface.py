"""The seam between HTTP and everything above it.

An :class:`HttpTunnel` is one accepted CONNECT-IP request (RFC 9484): a byte stream of capsules and
a flow of IP packets beside it. HTTP/3 on QUIC and HTTP/2 on TLS implement it; the gateway, the
client and the datapath use nothing else. All calls happen on the event loop that made the tunnel;
none blocks, and callbacks must not raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from qvpn_core.errors import QvpnError

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
        """IP packets in arrival order (context ID 0, whole, unchecked), never an empty list."""

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        """`packet` was given to send but exceeds `mtu` bytes; it was dropped and counted.

        Called from within `send_packets`. The owner answers with ICMP Packet Too Big.
        """

    def mtu_changed(self, mtu: int) -> None:
        """The largest IP packet that can be sent is now `mtu` bytes."""

    def closed(self, error: QvpnError | None) -> None:
        """The tunnel is gone; None when either side ended it in order. Called exactly once."""


class HttpTunnel(Protocol):
    """One open CONNECT-IP request."""

    @property
    def transport(self) -> TransportName:
        """What carries this tunnel."""

    @property
    def peer(self) -> Address:
        """The peer's current UDP or TCP address."""

    @property
    def mtu(self) -> int:
        """The largest IP packet in bytes that `send_packets` takes now."""

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""

    @property
    def counters(self) -> TunnelCounters:
        """Live counters, read only."""

    @property
    def response_headers(self) -> Headers:
        """At the client: the fields that came with the gateway's 200."""

    def send_capsules(self, data: bytes) -> None:
        """Send encoded capsules on the stream, reliably and in order."""

    def send_packets(self, packets: Sequence[bytes]) -> None:
        """Send IP packets as HTTP Datagrams, unreliably; transmits as one batch.

        Packets over `mtu` go to `packet_too_big`; the queue is bounded in packets and time and
        drops its oldest.
        """

    def close(self, error: int | None = None) -> None:
        """End the tunnel: in order with None, else reset the stream with that HTTP/3 error code.

        Idempotent. `TunnelHandler.closed` follows, also for a local close.
        """


class IncomingRequest(Protocol):
    """A request at the gateway, waiting for exactly one of `respond` and `accept`.

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


# HTTP/3 error codes that users of a tunnel close it with.
H3_DATAGRAM_ERROR = 0x33  # RFC 9297 section 5.2
H3_REQUEST_CANCELLED = 0x10C  # RFC 9114 section 8.1
H3_MESSAGE_ERROR = 0x10E  # RFC 9114 section 8.1
