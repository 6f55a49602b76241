"""What users of an HTTP/2 connection hold: a tunnel, and a request at the gateway.

The two sides of `interface.HttpTunnel` and `interface.IncomingRequest` here; frames and flow
control are in `http2.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.masque.capsule import CapsuleError
from qvpn_core.masque.datagram_capsule import DatagramSplitter, datagram_head
from qvpn_core.transport.http2_streams import Body, Fields
from qvpn_core.transport.http3 import TOO_BIG
from qvpn_core.transport.interface import (
    Address,
    Headers,
    Request,
    TransportName,
    TunnelCounters,
    TunnelHandler,
)
from qvpn_core.transport.offload import CarriedRules, OffloadEngine
from qvpn_core.transport.queue import EXPIRED, FULL, SendQueue
from qvpn_core.transport.streams import ByteStream
from qvpn_core.transport.tls_settings import alt_svc

if TYPE_CHECKING:
    from qvpn_core.transport.http2 import Http2Connection


class Http2Tunnel:
    """An accepted tunnel request on an HTTP/2 connection; see `interface.HttpTunnel`.

    `send_capsules` takes whole capsules: packets go between any two calls.
    """

    transport: TransportName = "tls"

    def __init__(self, connection: Http2Connection, number: int, handler: TunnelHandler) -> None:
        self._connection = connection
        self._number = number
        self._handler: TunnelHandler | None = handler
        self.counters = TunnelCounters()
        self.response_headers: Headers = ()
        self.queue = SendQueue()
        self.mtu = connection.mtu
        self._splitter = DatagramSplitter(self.counters.drop)
        self._early = b""

    @property
    def peer(self) -> Address:
        return self._connection.carrier.peer

    @property
    def rtt(self) -> float:
        return self._connection.carrier.rtt

    @property
    def silence(self) -> float:
        return self._connection.carrier.silence

    def send_capsules(self, data: bytes) -> None:
        if self._handler is not None:
            self._connection.send(self._number, data)

    def send_packets(self, packets: Sequence[bytes]) -> None:
        if self._handler is None:
            return
        mtu = self.mtu
        if max(map(len, packets), default=0) > mtu:
            for packet in packets:
                if len(packet) > mtu:
                    self.counters.drop(TOO_BIG)
                    self._handler.packet_too_big(packet, mtu)
            packets = [packet for packet in packets if len(packet) <= mtu]
        full = self.queue.push(packets, self._connection.carrier.now())
        if full:
            self.counters.drop(FULL, full)
        self._connection.carrier.wake()

    def hold(self) -> None:
        pass  # the kernel keeps what a TCP connection was given, and the queue what it was not

    async def rebind(self, slept: float = 0.0) -> bool:
        del slept
        return False  # a TCP connection stays where it was opened

    carried = False

    def carry(self, engine: OffloadEngine, rules: CarriedRules) -> bool:
        del engine, rules
        return False  # engines carry QUIC

    def allow(self, rules: CarriedRules) -> None:
        pass

    def unroute(self) -> None:
        pass

    def uncarry(self) -> None:
        pass

    def close(self, error: int | None = None) -> None:
        if self._handler is None:
            return
        if error is None:
            self._connection.finish(self._number)
        else:
            self._connection.reset(self._number, error)
        self.ended(None)

    # From the connection

    def take(self, room: int) -> bytes:
        """Whole packets that waited, as capsules of `room` bytes at most."""
        queue = self.queue
        if not queue.pending:
            return b""
        expired = queue.expire(self._connection.carrier.now())
        if expired:
            self.counters.drop(EXPIRED, expired)
        parts: list[bytes] = []
        packets = size = 0
        pending = queue.pending
        while pending:
            packet = pending[0]
            head = datagram_head(len(packet))
            room -= len(head) + len(packet)
            if room < 0:
                break
            pending.popleft()
            parts += (head, packet)
            packets += 1
            size += len(packet)
        if packets:
            queue.taken(packets)
            self.counters.tx_packets += packets
            self.counters.tx_bytes += size
        return b"".join(parts)

    def resume(self, data: bytes, *, ended: bool) -> None:
        """Take what came before the answer, before all that comes now."""
        self._early = data
        if data:
            self._connection.carrier.soon(self.data, b"")
        if ended:
            self._connection.carrier.soon(self.end)

    def headers(self, fields: Fields) -> None:
        pass  # trailers: nothing in them concerns us

    def data(self, data: bytes) -> None:
        data, self._early = self._early + data, b""
        packets, capsules = self._splitter.feed(data)
        if capsules and self._handler is not None:
            self._handler.capsule_data(capsules)
        if packets and self._handler is not None:
            self.counters.rx_packets += len(packets)
            self.counters.rx_bytes += sum(map(len, packets))
            self._handler.packets(packets)

    def end(self) -> None:
        if self._early:
            self.data(b"")
        try:
            self._splitter.end()
        except CapsuleError as error:
            self._connection.reset(self._number, error.code)
            self.ended(error)
            return
        if self._handler is not None:
            self._handler.capsule_end()

    def lost(self, error: QvpnError) -> None:
        self.ended(error)

    def ended(self, error: QvpnError | None) -> None:
        """Nothing moves any more; the owner is told, once."""
        handler, self._handler = self._handler, None
        if handler is not None:
            self._connection.tunnel_ended(self._number)
            handler.closed(error)


class Http2Request:
    """A request at the gateway; see `interface.IncomingRequest`."""

    transport: TransportName = "tls"

    def __init__(
        self, connection: Http2Connection, number: int, request: Request, *, ended: bool
    ) -> None:
        self._connection = connection
        self._number = number
        self._ended = ended
        self.request = request

    @property
    def peer(self) -> Address:
        return self._connection.carrier.peer

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return self._connection.carrier.export_keying_material(label, context, length)

    def read_body(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        if self._ended:
            self._connection.carrier.soon(done, b"")
        else:
            self._connection.take(self._number, Body(limit, done))

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        if self.request.scheme:  # else the authority is not ours, but whom CONNECT is to reach
            headers = (*headers, alt_svc(self.request.authority))
        self._connection.respond(self._number, status, headers, body)

    def accept(self, handler: TunnelHandler, headers: Headers = ()) -> Http2Tunnel:
        tunnel = self._connection.accept(self._number, handler, headers)
        if tunnel is None:
            tunnel = Http2Tunnel(self._connection, self._number, handler)
            gone = TunnelLost("the peer cancelled its request")
            self._connection.carrier.soon(tunnel.ended, gone)
        return tunnel

    def hold(self) -> ByteStream:
        return self._connection.hold(self._number, ended=self._ended)

    def accept_stream(self, headers: Headers = ()) -> ByteStream:
        return self._connection.accept_stream(self._number, headers, ended=self._ended)
