"""HTTP/3 over one QUIC connection, on an event loop: requests, tunnels, path MTU, timers.

Used by both ends; `dial.py` and `listen.py` give it datagrams and take them. What is protocol lives
in aioquic, in `aioquic_adapter` and in `pmtud`; what is here binds them to a clock and to the
owners' callbacks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from aioquic.h3 import events as h3_events
from aioquic.quic import events as quic_events
from aioquic.quic.connection import NetworkAddress

from qvpn_core.errors import PathTooNarrow, ProtocolViolation, QvpnError, TunnelLost
from qvpn_core.masque.varint import encode_varint
from qvpn_core.transport import settings
from qvpn_core.transport.aioquic_adapter import TunnelH3Connection
from qvpn_core.transport.aioquic_offload import OffloadConnection
from qvpn_core.transport.interface import (
    H3_DATAGRAM_ERROR,
    H3_REQUEST_CANCELLED,
    Address,
    Headers,
    IncomingRequest,
    Refused,
    Request,
    StreamReset,
    TransportName,
    TunnelCounters,
    TunnelHandler,
)
from qvpn_core.transport.liveness import Liveness, Step
from qvpn_core.transport.offload import CarriedRules, CarriedStats, EventKind, OffloadEngine, Ranges
from qvpn_core.transport.pmtud import PathMtuDiscovery, Phase
from qvpn_core.transport.queue import EXPIRED, FULL, SendQueue
from qvpn_core.transport.streams import ByteStream
from qvpn_core.transport.udp import UdpPath

log = logging.getLogger(__name__)

CONNECT_IP = "connect-ip"
H3_NO_ERROR = 0x100  # RFC 9114 section 8.1
H3_INTERNAL_ERROR = 0x102
H3_EXCESSIVE_LOAD = 0x107
IPV6_MIN_MTU = 1280  # RFC 8200 section 5; RFC 9484 section 7.2
#: Bytes of answers that a peer may leave unacknowledged before it gets no more of them.
MAX_BUFFERED = 256 << 10
TOO_BIG = "too-big"
UNKNOWN_CONTEXT = "unknown-context"

_T = TypeVar("_T")
#: Sends UDP payloads on a path; returns the sizes that the local interface refuses.
Send = Callable[[Sequence[bytes], UdpPath], list[int]]


class Http3Tunnel:
    """An accepted tunnel request on an HTTP/3 connection; see `interface.HttpTunnel`."""

    transport: TransportName = "quic"

    def __init__(
        self, connection: Http3Connection, stream_id: int, handler: TunnelHandler, *, ip: bool
    ) -> None:
        self._connection = connection
        #: Whether it carries IP packets, and so has no use on a path too narrow for IPv6.
        self.ip = ip
        self._stream_id = stream_id
        self._handler: TunnelHandler | None = handler
        #: What an engine did not move.
        self.slow = TunnelCounters()
        self.response_headers: Headers = ()
        self.queue = SendQueue()
        #: Quarter Stream ID (RFC 9297 section 2.1) and Context ID 0 (RFC 9484 section 6).
        self.prefix = encode_quarter_stream_id(stream_id) + b"\0"
        self.mtu = connection.tunnel_mtu(len(self.prefix))
        self._early = b""
        self._end_told = False

    @property
    def peer(self) -> Address:
        return self._connection.peer

    @property
    def rtt(self) -> float:
        return self._connection.quic.rtt

    @property
    def silence(self) -> float:
        return self._connection.silence

    @property
    def counters(self) -> TunnelCounters:
        stats = self._connection.carried_stats(self)
        return self.slow if stats is None else _sum(self.slow, stats)

    def send_capsules(self, data: bytes) -> None:
        if self._handler is not None:
            self._connection.send_data(self._stream_id, data)

    def send_packets(self, packets: Sequence[bytes]) -> None:
        if self._handler is None:
            return
        mtu = self.mtu
        if max(map(len, packets), default=0) > mtu:
            self._refuse_oversize(packets, mtu)
            packets = [packet for packet in packets if len(packet) <= mtu]
        full = self.queue.push(packets, self._connection.now())
        if full:
            self.slow.drop(FULL, full)
        self._connection.transmit_datagrams()

    def _refuse_oversize(self, packets: Sequence[bytes], mtu: int) -> None:
        for packet in packets:
            if len(packet) > mtu:
                self.slow.drop(TOO_BIG)
                if self._handler is not None:
                    self._handler.packet_too_big(packet, mtu)

    def hold(self) -> None:
        self._connection.hold()

    async def rebind(self, slept: float = 0.0) -> bool:
        return self._handler is not None and await self._connection.rebind(slept)

    def close(self, error: int | None = None) -> None:
        if self._handler is not None:
            self._connection.end_stream(self._stream_id, error)
            self.ended(None)

    @property
    def carried(self) -> bool:
        return self._connection.carried_stats(self) is not None

    def carry(self, engine: OffloadEngine, rules: CarriedRules) -> bool:
        return self._handler is not None and self._connection.carry(self, engine, rules)

    def allow(self, rules: CarriedRules) -> None:
        carried = self._connection.quic.carried
        if carried is not None and self.carried:
            carried.set_rules(rules)

    def unroute(self) -> None:
        carried = self._connection.quic.carried
        if carried is not None and self.carried:
            carried.unroute()

    def uncarry(self) -> None:
        if self.carried:
            self._connection.uncarry()

    # From the connection

    def resume(self, early: bytes, *, ended: bool) -> None:
        """Take what came before the answer: soon, when the owner is ready, and before all else."""
        self._early = early
        soon = self._connection.call_soon
        if early:
            soon(self.received_data, b"")
        if ended:
            soon(self.received_end)

    def received_data(self, data: bytes) -> None:
        data, self._early = self._early + data, b""
        if data and self._handler is not None:
            self._handler.capsule_data(data)

    def received_end(self) -> None:
        self.received_data(b"")
        if self._handler is not None and not self._end_told:
            self._end_told = True
            self._handler.capsule_end()

    def received_packets(self, packets: list[bytes]) -> None:
        if self._handler is not None:
            self.slow.rx_packets += len(packets)
            self.slow.rx_bytes += sum(map(len, packets))
            self._handler.packets(packets)

    def set_mtu(self, mtu: int) -> None:
        if mtu == self.mtu or self._handler is None:
            return
        self.mtu = mtu
        # What was queued for a wider path must not wait for ever at the head of the queue.
        waiting = list(self.queue.pending)
        if waiting and max(map(len, waiting)) > mtu:
            self.queue.clear()
            self._refuse_oversize(waiting, mtu)
            self.queue.push(
                [packet for packet in waiting if len(packet) <= mtu], self._connection.now()
            )
        self._handler.mtu_changed(mtu)

    def ended(self, error: QvpnError | None) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            self.uncarry()
            self._connection.tunnel_ended(self._stream_id)
            handler.closed(error)


class Http3Request:
    """A request at the gateway; see `interface.IncomingRequest`."""

    transport: TransportName = "quic"

    def __init__(
        self, connection: Http3Connection, stream_id: int, request: Request, *, ended: bool
    ) -> None:
        self._connection = connection
        self._stream_id = stream_id
        self._ended = ended
        self.request = request

    @property
    def peer(self) -> Address:
        return self._connection.peer

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return self._connection.quic.export_keying_material(label, context, length)

    def read_body(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        if self._ended:
            asyncio.get_running_loop().call_soon(done, b"")
            return

        def whole(body: bytes | None) -> None:
            self._ended = body is not None
            done(body)

        self._connection.read_body(self._stream_id, limit, whole)

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        self._connection.respond(self._stream_id, status, headers, body, stop=not self._ended)

    def accept(self, handler: TunnelHandler, headers: Headers = ()) -> Http3Tunnel:
        ip = self.request.protocol == CONNECT_IP
        return self._connection.accept(self._stream_id, handler, headers, ip=ip, ended=self._ended)

    def hold(self) -> ByteStream:
        return self._connection.own_stream(self._stream_id, ended=self._ended)

    def accept_stream(self, headers: Headers = ()) -> ByteStream:
        return self._connection.accept_stream(self._stream_id, headers, ended=self._ended)


@dataclass(slots=True)
class _Body:
    """Content that is gathered until the stream ends or `limit` bytes are exceeded."""

    limit: int
    done: Callable[[bytes | None], None]
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to a request that opens no tunnel."""

    status: int
    headers: Headers
    body: bytes


class Http3Connection:
    """One connection. The owner feeds `receive` and calls `flush` once per batch.

    `on_request` makes it a server. While `blocked` says so, packets wait in the tunnels' queues
    until the owner calls `transmit_datagrams`. `on_end` is called exactly once, when nothing can be
    received any more, with the reason.
    """

    transport: TransportName = "quic"

    def __init__(
        self,
        quic: OffloadConnection,
        send: Send,
        *,
        on_request: Callable[[IncomingRequest], None] | None = None,
        on_end: Callable[[quic_events.ConnectionTerminated], None],
        on_connection_id: Callable[[bytes, bool], None] | None = None,
        blocked: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.call_soon = self._loop.call_soon
        self.quic = quic
        self._send = send
        self._on_request = on_request
        self._on_end = on_end
        self._on_connection_id = on_connection_id
        self._blocked = blocked
        self._h3: TunnelH3Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._receiving = False
        self._transmit_due = True
        self._ended = False
        self._pmtud: PathMtuDiscovery | None = None
        self._floor = 0
        self._search = 0  # counts paths: news of a probe on another one is none
        self._held = False  # whether there is no path to send on
        #: At the client: judges whether the peer's silence means something.
        self.liveness: Liveness | None = None
        #: At the client: what a silence calls for, `Step.DOUBT` or `Step.GIVE_UP`.
        self.on_silence: Callable[[Step], None] = lambda step: None
        #: At the client: see `interface.HttpTunnel.rebind`.
        self.rebind: Callable[[float], Awaitable[bool]] = _stay
        self.tunnels: dict[int, Http3Tunnel] = {}
        self.streams: dict[int, ByteStream] = {}
        self._transmit_soon: asyncio.Handle | None = None
        #: At the gateway: whether a request was answered without a tunnel.
        self.answered = False
        self._responses: dict[int, tuple[asyncio.Future[Http3Tunnel], TunnelHandler, bool]] = {}
        self._openings: dict[int, asyncio.Future[ByteStream]] = {}
        self._fetches: dict[int, tuple[asyncio.Future[Response], int]] = {}
        self._bodies: dict[int, _Body] = {}
        #: Done when the peer may be asked for tunnels: handshake, SETTINGS. Client only.
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        #: Done when the path is known to carry the smallest useful packet, or not to.
        self.path_usable: asyncio.Future[bool] = self._loop.create_future()
        #: Set when the first search for the path MTU is over.
        self.path_known = asyncio.Event()
        #: Called when the handshake is complete, before anything else happens.
        self.on_handshake: Callable[[], None] = lambda: None
        #: At the gateway: called when a request was accepted as a tunnel or a stream.
        self.on_accept: Callable[[], None] = lambda: None
        #: At the gateway: called when the last of them ended and the connection goes on.
        self.on_vacant: Callable[[], None] = lambda: None
        #: Hands the sockets of this connection to an engine, and takes them back.
        self.lend: Callable[[OffloadEngine], None] = lambda engine: None
        self.reclaim: Callable[[], None] = lambda: None
        #: The tunnel that an engine carries.
        self._carried: Http3Tunnel | None = None

    @property
    def peer(self) -> Address:
        """The address that packets go to now."""
        address = self.quic.get_peer_address()
        return (address[0], address[1]) if address is not None else ("", 0)

    @property
    def silence(self) -> float:
        """Seconds for which the peer has owed an answer; 0.0 while it owes none."""
        since = self.quic.unanswered_since
        return 0.0 if since is None else max(0.0, self.now() - since)

    # From the socket

    def receive(self, batch: Sequence[bytes], address: NetworkAddress, now: float) -> None:
        """Take UDP payloads from one address; call `flush` when there are no more."""
        self._receiving = True
        try:
            self.quic.receive_datagrams(batch, address, now)
        except Exception:
            self._fail()

    def flush(self) -> None:
        """Handle what was received and send what is due."""
        self._receiving = True
        try:
            self._handle_events()
            self._handle_datagrams()
        except Exception:
            self._fail()
        finally:
            self._receiving = False
        if (
            self._transmit_due
            or self.quic.control_received
            or self.quic.ack_due(self.now())
            or (self.streams and self.quic.stream_data_waits)
        ):
            self._transmit()
        else:
            # Nothing but datagrams and ACKs came. What these set free beside datagrams (a
            # retransmission) goes out with the ACK, a millisecond later.
            self.transmit_datagrams()

    def _fail(self) -> None:
        """A defect, of ours, of aioquic or of an owner, ends this connection and no other."""
        log.exception("the connection with %s failed by a defect", self.peer)
        self.quic.close(error_code=H3_INTERNAL_ERROR)
        self._transmit_due = True

    # Sending

    def _transmit(self) -> None:
        if self._receiving:
            self._transmit_due = True  # by the flush after the batch
            return
        self._transmit_due = self.quic.control_received = False
        now = self.now()
        self._discover_path_mtu(now)
        batch: list[bytes] = []
        to: NetworkAddress | None = None
        for data, address in self.quic.datagrams_to_send(now):
            if address != to and batch:
                self._send_batch(batch, to, now)
                batch = []
            to = address
            batch.append(data)
        if batch:
            self._send_batch(batch, to, now)
        if self._on_connection_id is not None:
            # Issued in what was just sent: the peer's next packet may already use them.
            for connection_id in self.quic.take_issued_connection_ids():
                self._on_connection_id(connection_id, True)
        for stream in list(self.streams.values()):
            if stream.waiting:
                stream.has_room()
        self.transmit_datagrams()

    def _transmit_later(self) -> None:
        """Send what streams have to send once, when all of them have had their turn."""
        if self._transmit_soon is None and not self._ended:
            self._transmit_soon = self._loop.call_soon(self._transmit_now)

    def _transmit_now(self) -> None:
        self._transmit_soon = None
        if not self._ended:
            self._transmit()

    def transmit_datagrams(self) -> None:
        """Send what tunnels have queued, unless the socket is blocked."""
        if self._receiving or self._ended:
            return  # the flush after the batch does it
        now = self.now()
        waiting = self._held or not self.quic.path_validated
        for tunnel in self.tunnels.values():
            queue = tunnel.queue
            if not queue.pending or self._blocked():
                continue
            expired = queue.expire(now, patient=waiting)
            if expired:
                tunnel.slow.drop(EXPIRED, expired)
            if self._held:
                continue
            batch = self.quic.pack_datagrams(queue.pending, tunnel.prefix, now)
            if batch.payloads:
                queue.taken(batch.payloads)
                tunnel.slow.tx_packets += batch.payloads
                tunnel.slow.tx_bytes += batch.payload_bytes
                tunnel.slow.lost_packets = self.quic.packets_lost
                self._send_batch(batch.packets, self.quic.get_peer_address(), now)
        self._arm_timer(now)

    def _send_batch(
        self, batch: Sequence[bytes], address: NetworkAddress | None, now: float
    ) -> None:
        if address is None:
            return
        refused = self._send(batch, address)
        if refused and self._pmtud is not None:
            # The local link became narrower than what the path was known to carry.
            self._pmtud.refused(min(refused), now)

    def _arm_timer(self, now: float) -> None:
        at = self.quic.get_timer()
        pmtud_at = self._pmtud.timer if self._pmtud is not None else None
        if at is None or (pmtud_at is not None and pmtud_at < at):
            at = pmtud_at
        silence_at = self._silence_due()
        if silence_at is not None and (at is None or silence_at < at):
            at = silence_at
        if at is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            return
        if self._timer is not None:
            # An earlier wake-up looks again; re-arming for each packet would cost more.
            if self._timer.when() <= max(at, now):
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._transmit_due = True
        now = self.now()
        at = self.quic.get_timer()
        if at is not None and now >= at:
            self.quic.handle_timer(now)
        self._judge_silence(now)
        self.flush()

    # On an engine; see `interface.HttpTunnel.carry` and `offload.CarriedOwner`

    def carry(self, tunnel: Http3Tunnel, engine: OffloadEngine, rules: CarriedRules) -> bool:
        """Let an engine carry one tunnel of this connection, if it can."""
        if self._carried is not None or self._ended or not tunnel.ip:
            return False
        self.lend(engine)
        if not self.quic.carry(engine, self, tunnel.prefix, tunnel.mtu, rules):
            self.reclaim()
            return False
        self._carried = tunnel
        waiting = list(tunnel.queue.pending)
        if waiting:
            self._transmit()
        return True

    def uncarry(self) -> None:
        """Take the connection back."""
        tunnel = self._carried
        if tunnel is None:
            return
        stats = self.carried_stats(tunnel)
        assert stats is not None
        self._carried = None
        tunnel.slow = _sum(tunnel.slow, stats)
        waiting = self.quic.uncarry()
        self.reclaim()
        if waiting and not self._ended:
            tunnel.queue.push(waiting, self.now())
        self._transmit_later()

    def carried_stats(self, tunnel: Http3Tunnel) -> CarriedStats | None:
        """What the engine knows, if it carries this tunnel."""
        carried = self.quic.carried
        return carried.stats() if carried is not None and tunnel is self._carried else None

    def carried_datagrams(self, payloads: list[bytes]) -> None:
        self.quic.datagrams_received += payloads
        self.flush()

    def carried_acked(self, ranges: Ranges, delay: float) -> None:
        self.quic.carried_acked(ranges, delay, self.now())
        self._transmit_due = True
        self.flush()

    def carried_event(self, kind: EventKind, value: int) -> None:
        now = self.now()
        match kind:
            case "key-limit":
                self.quic.update_keys()
            case "silent":
                self._arm_timer(now)
            case "black-hole":
                self.quic.suspect_black_hole()
                self._transmit()
            case "too-large":
                if self._pmtud is not None:
                    self._pmtud.refused(value, now)
                self._transmit()

    # Moving

    def hold(self) -> None:
        """There is no path: keep what is to be sent, and blame nobody for silence."""
        self._held = True
        self.quic.hold()

    def migrate(self, path: UdpPath) -> None:
        """Go on over another path; only when `quic.may_migrate`."""
        self._held = False
        self.quic.migrate(path, self.now())
        self._transmit()

    def _silence_due(self) -> float | None:
        if self.liveness is None or self._held or not self.quic.established:
            return None
        return self.liveness.due(self.quic.unanswered_since, self.quic.probe_timeout)

    def _judge_silence(self, now: float) -> None:
        due = self._silence_due()
        if due is None or now < due:
            return
        assert self.liveness is not None
        step = self.liveness.step(now, self.quic.unanswered_since, self.quic.probe_timeout)
        if step is Step.ASK:
            self.quic.send_ping(0)
        elif step is not Step.WAIT:
            self.on_silence(step)

    # Path MTU

    def tunnel_mtu(self, prefix: int) -> int:
        """The largest IP packet in bytes that fits a DATAGRAM frame behind `prefix` bytes."""
        return self.quic.max_datagram_payload - prefix

    def _start_path_mtu_discovery(self) -> None:
        self._floor, ceiling = self._packet_bounds()
        self._pmtud = PathMtuDiscovery(floor=self._floor, ceiling=ceiling)
        self._apply_path_mtu(self._pmtud)

    def _packet_bounds(self) -> tuple[int, int]:
        """The smallest useful and the largest possible UDP payload of the path."""
        floor = self.quic.packet_size_for(2 + IPV6_MIN_MTU)
        ceiling = settings.CEILING_IPV6 if ":" in self.peer[0] else settings.CEILING_IPV4
        return floor, ceiling

    def _discover_path_mtu(self, now: float) -> None:
        pmtud = self._pmtud
        if pmtud is None or self._ended or not self.quic.can_probe:
            return
        if self.quic.moved:
            self.quic.moved = False
            self._search += 1
            self._floor, ceiling = self._packet_bounds()
            pmtud.moved(floor=self._floor, ceiling=ceiling)
        if self.quic.black_hole_suspected:
            self.quic.reset_black_hole()
            pmtud.suspect()
        for size in pmtud.probes(now):
            done = partial(self._probe_done, self._search)
            for data, address in self.quic.probe(size, now, done):
                if self._send([data], address):
                    pmtud.refused(size, now)
        self._apply_path_mtu(pmtud)

    def _probe_done(self, search: int, size: int, arrived: bool) -> None:
        if self._pmtud is not None and search == self._search:
            self._transmit_due = True
            if arrived:
                self._pmtud.probe_acked(size, self.now())
            else:
                self._pmtud.probe_lost(size, self.now())

    def _apply_path_mtu(self, pmtud: PathMtuDiscovery) -> None:
        if pmtud.usable and not self.path_usable.done():
            self.path_usable.set_result(True)
        if pmtud.phase is not Phase.SEARCHING:
            self.path_known.set()
        if pmtud.phase is Phase.ERROR:
            if not self.path_usable.done():
                self.path_usable.set_result(False)
            for stream_id, tunnel in list(self.tunnels.items()):
                # Taken out first: what is sent to end it asks for the path MTU again.
                if tunnel.ip and self.tunnels.pop(stream_id, None) is not None:
                    self.end_stream(stream_id, H3_REQUEST_CANCELLED)
                    tunnel.ended(too_narrow())
            size = pmtud.size  # streams and UDP go on
        else:
            # Below the floor there is no IP tunnel: use the floor while the search finds out.
            size = max(pmtud.size, self._floor)
        if size != self.quic.packet_size or (pmtud.confirmed and not self.quic.size_confirmed):
            self.quic.packet_size = size
            for tunnel in list(self.tunnels.values()):
                tunnel.set_mtu(self.tunnel_mtu(len(tunnel.prefix)))
            if self._carried is not None and self.quic.carried is not None:
                self.quic.carried.set_size(size, self._carried.mtu)

    # Requests

    async def request(self, request: Request, handler: TunnelHandler) -> Http3Tunnel:
        """Send an extended CONNECT (RFC 9220) and wait for a 2xx. Raises :class:`Refused`."""
        headers = (("capsule-protocol", "?1"), *request.headers)
        future: asyncio.Future[Http3Tunnel] = self._loop.create_future()
        stream_id = self._send_request(replace(request, headers=headers), end=False)
        self._responses[stream_id] = (future, handler, request.protocol == CONNECT_IP)
        return await self._answered(stream_id, future)

    async def open_stream(self, request: Request) -> ByteStream:
        """Send a classic CONNECT (RFC 9114 section 4.4) and wait for a 2xx.

        Raises :class:`Refused` and StreamReset.
        """
        self.quic.admit_streams(settings.MAX_STREAMS)
        future: asyncio.Future[ByteStream] = self._loop.create_future()
        stream_id = self._send_request(request, end=False)
        self._openings[stream_id] = future
        self.own_stream(stream_id)
        return await self._answered(stream_id, future)

    async def _answered(self, stream_id: int, future: asyncio.Future[_T]) -> _T:
        try:
            return await future
        except asyncio.CancelledError:
            if not self._ended:
                self._responses.pop(stream_id, None)
                self._openings.pop(stream_id, None)
                stream = self.streams.get(stream_id)
                if stream is not None:
                    stream.reset(H3_REQUEST_CANCELLED)
                else:
                    self.abort_stream(stream_id, H3_REQUEST_CANCELLED)
            raise

    def _send_request(self, request: Request, *, end: bool) -> int:
        """Send a request head on a new stream, whose number is returned."""
        assert self._h3 is not None
        stream_id = self.quic.get_next_available_stream_id()
        pseudo = (
            (":method", request.method),
            (":protocol", request.protocol),
            (":scheme", request.scheme),
            (":authority", request.authority),
            (":path", request.path),
        )
        fields = [(name, value) for name, value in pseudo if value]
        self._h3.send_headers(
            stream_id,
            [(name.encode(), value.encode()) for name, value in (*fields, *request.headers)],
            end_stream=end,
        )
        self._transmit_later()
        return stream_id

    async def fetch(self, request: Request, body: bytes, limit: int) -> Response:
        """Send an ordinary request with its content and gather up to `limit` bytes of answer.

        Raises ProtocolViolation for a longer one, and :class:`Refused` for a reset stream.
        """
        assert self._h3 is not None
        future: asyncio.Future[Response] = self._loop.create_future()
        stream_id = self._send_request(request, end=not body)
        self._fetches[stream_id] = (future, limit)
        if body:
            self._h3.send_data(stream_id, body, end_stream=True)
        self._transmit()
        return await future

    def read_body(self, stream_id: int, limit: int, done: Callable[[bytes | None], None]) -> None:
        """Gather a request's content; see `interface.IncomingRequest.read_body`."""
        self._bodies[stream_id] = _Body(limit, done)

    def accept(
        self, stream_id: int, handler: TunnelHandler, headers: Headers, *, ip: bool, ended: bool
    ) -> Http3Tunnel:
        """Answer a request with 200 and open its tunnel.

        When the peer has gone meanwhile, or wants no answer any more, the tunnel ends at once.
        """
        held = self.streams.get(stream_id)
        if self._ended or not self.quic.can_write(stream_id):
            tunnel = Http3Tunnel(self, stream_id, handler, ip=ip)
            gone = TunnelLost("the peer cancelled its request")
            self._loop.call_soon(tunnel.ended, gone)
            return tunnel
        self._send_response(stream_id, 200, (("capsule-protocol", "?1"), *headers))
        tunnel = self._open_tunnel(stream_id, handler, ip=ip)
        early = b""
        if held is not None:
            early, ended = held.take(), ended or held.ended
            self.quic.disown_stream(stream_id)
            del self.streams[stream_id]
        tunnel.resume(early, ended=ended)
        if not ip:
            self.quic.admit_streams(settings.MAX_STREAMS)
        self.on_accept()
        self._transmit()
        return tunnel

    def own_stream(self, stream_id: int, *, ended: bool = False) -> ByteStream:
        """The byte stream of a request, which is answered with 2xx now or later."""
        stream = self.streams[stream_id] = ByteStream(self, stream_id)
        self.quic.own_stream(stream_id)
        if ended:
            stream.received_end()
        return stream

    def accept_stream(self, stream_id: int, headers: Headers, *, ended: bool) -> ByteStream:
        """Answer a request with 200 and open its stream, which is broken if the peer has gone."""
        stream = self.streams.get(stream_id)
        if self._ended or not self.quic.can_write(stream_id):
            stream = stream or ByteStream(self, stream_id)
            stream.broke(TunnelLost("the peer cancelled its request"))
            return stream
        stream = stream or self.own_stream(stream_id, ended=ended)
        self._send_response(stream_id, 200, headers)
        self.quic.admit_streams(settings.MAX_STREAMS)
        self.on_accept()
        self._transmit_later()
        return stream

    def respond(
        self, stream_id: int, status: int, headers: Headers, body: bytes, *, stop: bool
    ) -> None:
        """Answer a request and finish its stream; `stop` asks for no more of the request."""
        assert self._h3 is not None
        self.answered = True
        self.forget_stream(stream_id)
        if self._ended or not self.quic.can_write(stream_id):
            return  # nobody wants to hear it
        if self.quic.buffered > MAX_BUFFERED:
            # Who asks on and on and takes no answers makes us keep them all.
            self.quic.close(error_code=H3_EXCESSIVE_LOAD)
            self._transmit()
            return
        self._send_response(stream_id, status, headers)
        self._h3.send_data(stream_id, body, end_stream=True)
        if stop:
            self.quic.stop_stream(stream_id, H3_NO_ERROR)
        self._transmit()

    def _send_response(self, stream_id: int, status: int, headers: Headers) -> None:
        assert self._h3 is not None
        fields = ((name.encode(), value.encode()) for name, value in headers)
        self._h3.send_headers(stream_id, [(b":status", str(status).encode()), *fields])

    def _open_tunnel(self, stream_id: int, handler: TunnelHandler, *, ip: bool) -> Http3Tunnel:
        tunnel = Http3Tunnel(self, stream_id, handler, ip=ip)
        self.tunnels[stream_id] = tunnel
        return tunnel

    def tunnel_ended(self, stream_id: int) -> None:
        """Forget a tunnel."""
        if self.tunnels.pop(stream_id, None):
            self._notice_vacancy()

    @property
    def in_use(self) -> bool:
        """Whether the connection carries a tunnel or a stream."""
        return bool(self.tunnels or self.streams)

    def _notice_vacancy(self) -> None:
        if not self.in_use and not self._ended:
            self.on_vacant()

    # For streams; see `streams.StreamCarrier`

    def write_stream(self, stream_id: int, data: bytes) -> None:
        assert self._h3 is not None
        if not self._ended and self.quic.can_write(stream_id):
            self._h3.send_data(stream_id, data, end_stream=False)
            self._transmit_later()

    def finish_stream(self, stream_id: int) -> None:
        assert self._h3 is not None
        if not self._ended and self.quic.can_write(stream_id):
            self._h3.send_data(stream_id, b"", end_stream=True)
            self._transmit_later()

    def abort_stream(self, stream_id: int, error: int) -> None:
        assert self._h3 is not None
        if not self._ended:
            self.quic.abort_stream(stream_id, error)
            self._h3.stopped_sending(stream_id)
            self._transmit_later()

    def unsent(self, stream_id: int) -> int:
        return self.quic.unsent(stream_id)

    def bytes_held(self, stream_id: int, count: int) -> None:
        self.quic.bytes_held(stream_id, count)

    def bytes_read(self, stream_id: int, count: int) -> None:
        self.quic.bytes_read(stream_id, count)
        self._transmit_later()

    def forget_stream(self, stream_id: int) -> None:
        self.quic.disown_stream(stream_id)
        if self.streams.pop(stream_id, None):
            self._notice_vacancy()

    def send_data(self, stream_id: int, data: bytes) -> None:
        """Send capsule bytes."""
        assert self._h3 is not None
        if not self._ended and self.quic.can_write(stream_id):
            self._h3.send_data(stream_id, data, end_stream=False)
            self._transmit()

    def end_stream(self, stream_id: int, error: int | None) -> None:
        """Finish a tunnel's stream, or reset both of its directions with an error code."""
        assert self._h3 is not None
        if self._ended:
            return
        if error is not None:
            self.quic.reset_stream(stream_id, error)
            self.quic.stop_stream(stream_id, error)
        elif self.quic.can_write(stream_id):
            self._h3.send_data(stream_id, b"", end_stream=True)
        self._transmit()

    def close(self, reason: str = "") -> None:
        """Close the connection; the peer is told with CONNECTION_CLOSE."""
        self.quic.close(error_code=H3_NO_ERROR, reason_phrase=reason)
        self._receiving = False
        self._transmit()

    def keep_alive(self) -> None:
        """Send a PING, which the peer acknowledges and a NAT notices."""
        self.quic.send_ping(0)
        self._transmit()

    def give_up(self, error: QvpnError) -> None:
        """End the connection for a reason of ours; the peer is told, if it hears."""
        self.close()
        self.abandon(error)
        for tunnel in list(self.tunnels.values()):
            tunnel.ended(error)

    def withdraw(self, error: QvpnError) -> None:
        """Take back the requests that have no answer yet: they fail with `error`."""
        for stream_id in list(self._openings):
            opening = self._openings.pop(stream_id)
            if not opening.done():
                opening.set_exception(error)
            self.streams[stream_id].reset(H3_REQUEST_CANCELLED)
        for stream_id in list(self._responses):
            future, _handler, _ip = self._responses.pop(stream_id)
            if not future.done():
                future.set_exception(error)
            self.abort_stream(stream_id, H3_REQUEST_CANCELLED)

    def abandon(self, error: QvpnError | None = None) -> None:
        """Stop all timers and streams; nothing is sent or received from now on."""
        self._ended = True
        self.uncarry()
        error = error or TunnelLost("the connection was closed")
        for stream in list(self.streams.values()):
            stream.broke(error)
        for opening in self._openings.values():
            if not opening.done():
                opening.set_exception(error)
        for future, _handler, _ip in self._responses.values():
            if not future.done():
                future.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transmit_soon is not None:
            self._transmit_soon.cancel()
            self._transmit_soon = None

    # Events

    def _handle_events(self) -> None:
        event = self.quic.next_event()
        while event is not None:
            if isinstance(event, quic_events.ProtocolNegotiated):
                self._h3 = TunnelH3Connection(self.quic)
            elif isinstance(event, quic_events.HandshakeCompleted):
                self.on_handshake()
                if self.quic.established:
                    self._start_path_mtu_discovery()
            elif isinstance(event, quic_events.ConnectionTerminated):
                self._terminated(event)
                return
            elif isinstance(event, quic_events.StreamReset) or (
                isinstance(event, quic_events.StopSendingReceived)
                # With NO_ERROR only the rest of a request is not wanted, and a response comes
                # that must not be discarded (RFC 9114 section 4.1).
                and (
                    event.error_code != H3_NO_ERROR
                    or event.stream_id in self.tunnels
                    or event.stream_id in self.streams.keys() - self._openings.keys()
                )
            ):
                self._stream_reset(event.stream_id, event.error_code)
            elif isinstance(event, quic_events.ConnectionIdRetired):
                if self._on_connection_id is not None:
                    self._on_connection_id(event.connection_id, False)
            if self._h3 is not None:
                for http_event in self._h3.handle_event(event):
                    self._handle_http_event(http_event)
                if not self.ready.done() and self._h3.peer_takes_tunnels is not None:
                    self.ready.set_result(
                        self._h3.peer_takes_tunnels and self.quic.peer_takes_datagrams
                    )
            event = self.quic.next_event()

    def _handle_datagrams(self) -> None:
        received = self.quic.datagrams_received
        if not received:
            return
        self.quic.datagrams_received = []
        if len(self.tunnels) > 1:
            received = self._sort_datagrams(received)
        else:
            for tunnel in list(self.tunnels.values()):
                received = self._deliver(tunnel, received)
        if not all(data and len(data) >= 1 << (data[0] >> 6) for data in received):
            # Too short for a Quarter Stream ID (RFC 9297 section 2.1).
            self.quic.close(error_code=H3_DATAGRAM_ERROR)
            self._transmit_due = True

    def _deliver(self, tunnel: Http3Tunnel, received: list[bytes]) -> list[bytes]:
        """Hand a tunnel its own of some datagrams. Returns those of others."""
        prefix = tunnel.prefix
        start = len(prefix)
        packets = [data[start:] for data in received if data.startswith(prefix)]
        if packets:
            tunnel.received_packets(packets)
        if len(packets) == len(received):
            return []
        strange = sum(
            data.startswith(prefix[:-1]) and data[start - 1 : start] != b"\0" for data in received
        )
        if strange:
            tunnel.slow.drop(UNKNOWN_CONTEXT, strange)
        return [data for data in received if not data.startswith(prefix[:-1])]

    def _sort_datagrams(self, received: list[bytes]) -> list[bytes]:
        """The same for many tunnels, each datagram looked at once."""
        tunnels = {tunnel.prefix[:-1]: tunnel for tunnel in self.tunnels.values()}
        sorted_: dict[bytes, list[bytes]] = {}
        others = []
        for data in received:
            quarter = data[: 1 << (data[0] >> 6)] if data else b""
            if quarter in tunnels:
                sorted_.setdefault(quarter, []).append(data)
            else:
                others.append(data)
        for quarter, datagrams in sorted_.items():
            self._deliver(tunnels[quarter], datagrams)
        return others

    def _handle_http_event(self, event: h3_events.H3Event) -> None:
        if isinstance(event, h3_events.HeadersReceived):
            if not event.headers or not event.headers[0][0].startswith(b":"):
                pass  # trailers: nothing in them concerns us (RFC 9114 section 4.3)
            elif self._on_request is not None:
                request = parse_request(event.headers)
                self._on_request(
                    Http3Request(self, event.stream_id, request, ended=event.stream_ended)
                )
            else:
                self._response(event.stream_id, event.headers)
            if event.stream_ended:
                self._stream_ended(event.stream_id)
        elif isinstance(event, h3_events.DataReceived):
            tunnel = self.tunnels.get(event.stream_id)
            stream = self.streams.get(event.stream_id)
            if tunnel is not None and event.data:
                tunnel.received_data(event.data)
            elif stream is not None and event.data:
                stream.received(event.data)
            elif event.stream_id in self._bodies:
                self._body_data(event.stream_id, event.data)
            if event.stream_ended:
                self._stream_ended(event.stream_id)

    def _stream_ended(self, stream_id: int) -> None:
        tunnel = self.tunnels.get(stream_id)
        if tunnel is not None:
            tunnel.received_end()
        stream = self.streams.get(stream_id)
        if stream is not None:
            stream.received_end()
        body = self._bodies.pop(stream_id, None)
        if body is not None:
            body.done(body.data)

    def _body_data(self, stream_id: int, data: bytes) -> None:
        body = self._bodies[stream_id]
        body.data += data
        if len(body.data) > body.limit:
            del self._bodies[stream_id]
            body.done(None)

    def _response(self, stream_id: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        status = int(dict(headers)[b":status"])
        if status < 200:
            return
        fetch = self._fetches.pop(stream_id, None)
        if fetch is not None:
            self._gather(stream_id, status, headers, *fetch)
            return
        opening = self._openings.pop(stream_id, None)
        if opening is not None and not opening.done():
            stream = self.streams[stream_id]
            stream.response_headers = _fields(headers)
            if status < 300:
                opening.set_result(stream)
            else:
                opening.set_exception(Refused(status, _fields(headers)))
                stream.reset(H3_REQUEST_CANCELLED)
        waiting = self._responses.pop(stream_id, None)
        if waiting is None:
            return
        future, handler, ip = waiting
        if future.done():
            return
        if status < 300:
            tunnel = self._open_tunnel(stream_id, handler, ip=ip)
            tunnel.response_headers = _fields(headers)
            future.set_result(tunnel)
        else:
            future.set_exception(Refused(status, _fields(headers)))
            self.abort_stream(stream_id, H3_REQUEST_CANCELLED)

    def _gather(
        self,
        stream_id: int,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        future: asyncio.Future[Response],
        limit: int,
    ) -> None:
        def done(body: bytes | None) -> None:
            self._fetches.pop(stream_id, None)
            if future.done():
                return
            if body is None:
                future.set_exception(ProtocolViolation("the answer is too long"))
            else:
                future.set_result(Response(status, _fields(headers), body))

        self._fetches[stream_id] = (future, limit)  # until its end, for a reset
        self.read_body(stream_id, limit, done)

    def _stream_reset(self, stream_id: int, error_code: int) -> None:
        """The peer ended a stream abruptly, in whichever direction; so do we in the other."""
        # Both ends look for the path MTU, and the peer may be the first to give up.
        proven = self._pmtud is not None and self._pmtud.usable
        narrow = error_code == H3_REQUEST_CANCELLED and not proven
        waiting = self._responses.pop(stream_id, None)
        if waiting is not None and not waiting[0].done():
            waiting[0].set_exception(too_narrow() if narrow and waiting[2] else Refused(None))
        fetch = self._fetches.pop(stream_id, None)
        if fetch is not None and not fetch[0].done():
            fetch[0].set_exception(Refused(None))
        self._bodies.pop(stream_id, None)
        stream = self.streams.get(stream_id)
        opening = self._openings.pop(stream_id, None)
        if opening is not None and not opening.done():
            opening.set_exception(StreamReset(error_code))
        if stream is not None:
            self.abort_stream(stream_id, H3_REQUEST_CANCELLED)
            stream.broke(StreamReset(error_code))
        tunnel = self.tunnels.get(stream_id)
        if tunnel is not None:
            self.end_stream(stream_id, H3_REQUEST_CANCELLED)
            reset = TunnelLost(f"the peer reset the tunnel (HTTP/3 error {error_code:#x})")
            tunnel.ended(too_narrow() if narrow and tunnel.ip else reset)

    def _terminated(self, event: quic_events.ConnectionTerminated) -> None:
        error = lost(event)
        self.abandon(error)
        for tunnel in list(self.tunnels.values()):
            tunnel.ended(error)
        for fetch, _limit in self._fetches.values():
            if not fetch.done():
                fetch.set_exception(error)
        self._bodies.clear()
        for flag in (self.ready, self.path_usable):
            if not flag.done():
                flag.set_exception(error)
                flag.exception()  # not everybody waits for both
        self._on_end(event)


def _sum(slow: TunnelCounters, carried: CarriedStats) -> TunnelCounters:
    """What a tunnel moved, whoever did it."""
    return TunnelCounters(
        tx_packets=slow.tx_packets + carried.tx_packets,
        tx_bytes=slow.tx_bytes + carried.tx_bytes,
        rx_packets=slow.rx_packets + carried.rx_packets,
        rx_bytes=slow.rx_bytes + carried.rx_bytes,
        lost_packets=slow.lost_packets + carried.lost_packets,
        bad_source=slow.bad_source + carried.bad_source,
        dropped={
            reason: count
            for reason, count in (
                slow.dropped
                | {
                    EXPIRED: slow.dropped.get(EXPIRED, 0) + carried.expired,
                    FULL: slow.dropped.get(FULL, 0) + carried.full,
                }
            ).items()
            if count
        },
    )


async def _stay(_slept: float) -> bool:
    """A gateway does not move (RFC 9000 section 9)."""
    return False


#: What HTTP/3 and its extensions define; any other code means H3_NO_ERROR (RFC 9114 section 8).
_H3_ERRORS = frozenset((H3_DATAGRAM_ERROR, *range(H3_NO_ERROR + 1, 0x203)))


def lost(event: quic_events.ConnectionTerminated) -> QvpnError:
    """Why an established connection ended, in words."""
    if event.reason_phrase == "Idle timeout":
        return TunnelLost(f"no packet from the peer for {settings.IDLE_TIMEOUT:.0f} seconds")
    if event.frame_type is None and event.error_code not in _H3_ERRORS:
        return TunnelLost("the peer closed the connection", event.reason_phrase)
    return TunnelLost(
        f"the connection failed (QUIC error {event.error_code:#x})", event.reason_phrase
    )


def too_narrow() -> PathTooNarrow:
    """The path does not carry what IPv6 needs."""
    return PathTooNarrow(
        f"the network path cannot carry packets of {IPV6_MIN_MTU} bytes inside the tunnel",
        "its MTU is too small for a VPN over QUIC; use another network",
    )


def encode_quarter_stream_id(stream_id: int) -> bytes:
    """RFC 9297 section 2.1."""
    return encode_varint(stream_id // 4)


def _fields(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The fields of a message without its pseudo-header fields."""
    return tuple(
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in headers
        if not name.startswith(b":")
    )


def parse_request(headers: Sequence[tuple[bytes, bytes]]) -> Request:
    """A request head from validated HTTP/3 fields."""
    pseudo: dict[str, str] = {}
    fields: list[tuple[str, str]] = []
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.startswith(":"):
            pseudo[name] = value
        else:
            fields.append((name, value))
    return Request(
        method=pseudo.get(":method", ""),
        scheme=pseudo.get(":scheme", ""),
        authority=pseudo.get(":authority", ""),
        path=pseudo.get(":path", ""),
        protocol=pseudo.get(":protocol"),
        headers=tuple(fields),
    )
