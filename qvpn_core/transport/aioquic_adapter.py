"""What touches aioquic's private attributes (pinned to 1.7, see pyproject.toml).

Together with `aioquic_streams.py`, which it builds upon, and nobody else.

:class:`TunnelConnection` is aioquic's `QuicConnection` with a short way for 1-RTT packets of the
active path, in both directions. aioquic stays the authority for handshake, keys, streams,
connection IDs, timers, loss detection and close; what is added here:

- DATAGRAM frames (RFC 9221) are packed from and unpacked to plain lists, several to a packet, with
  no buffer objects, no events, and no queue inside aioquic, where one frame that is too large would
  block all others for ever;
- the packet size can change while the connection lives, and padded probes of any size can be sent
  (RFC 9000 section 14.4);
- the client can move to another local address, and the server follows it carefully (RFC 9000
  section 9): what aioquic lacks of that is here, what it has (challenges, the anti-amplification
  limit, going back to a validated path) is its own;
- keys are updated before the AEAD's confidentiality limit (RFC 9001 section 6.6);
- the TLS exporter (RFC 8446 section 7.5), the peer's certificate and the counters can be read.

It does no I/O. tests/unit/transport/test_aioquic_contract.py fails when aioquic changes underneath.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from math import inf
from typing import Any, NamedTuple

from aioquic import tls
from aioquic.buffer import Buffer, BufferReadError
from aioquic.h3.connection import ErrorCode, H3Connection, Setting
from aioquic.h3.events import H3Event
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnectionError,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoContext, CryptoError, CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicPacketType,
    decode_packet_number,
    pull_quic_transport_parameters,
    push_ack_frame,
)
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
)
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from cryptography import x509
from cryptography.exceptions import InvalidTag

from qvpn_core.auth.exporter import Exporter, tls_exporter
from qvpn_core.transport.aioquic_streams import (
    AEAD_TAG,
    NONCE,
    PACKET_NUMBER,
    SAMPLE,
    SAMPLE_AT,
    STREAM_KINDS,
    BurstPacer,
    StreamConnection,
)

# Packets with datagrams that may be unacknowledged: a bound on memory when the peer falls silent,
# above any bandwidth-delay product that Python can fill.
MAX_UNACKNOWLEDGED = 1 << 14

# Large packets lost in a row, none acknowledged between, that make it worth asking whether the path
# became a black hole for their size (RFC 8899 section 4.3). An inner TCP that meets one sends them
# one by one, at ever longer intervals, so few must do.
BLACK_HOLE_LOSSES = 3
# Bytes below the full size that still count as large; inner packets are rarely full to the byte.
_LARGE_MARGIN = 64
# Bytes that an ACK frame gets or else waits for a packet of its own: a few ranges.
_ACK_ROOM = 48

# Bytes of an HTTP/3 frame that are kept until the rest arrives: no honest head is larger.
MAX_BUFFERED_FRAME = 64 << 10

#: Bytes of UDP payload that every QUIC path carries (RFC 9000 section 14).
BASE_PACKET = 1200
#: What may be sent to an address that has not been validated, per byte received from there
#: (RFC 9000 section 8.1).
AMPLIFICATION = 3

_DATAGRAM = int(QuicFrameType.DATAGRAM)
_DATAGRAM_WITH_LENGTH = int(QuicFrameType.DATAGRAM_WITH_LENGTH)
_ACK = int(QuicFrameType.ACK)
_PADDING = int(QuicFrameType.PADDING)
_ONE_RTT = tls.Epoch.ONE_RTT
_CONNECTED = QuicConnectionState.CONNECTED

ProbeHandler = Callable[[int, bool], None]


#: Seconds that a timer may be late on a busy machine; later than that, this process was stopped or
#: the machine slept.
STOOD_STILL = 1.0
#: The estimate of the round trip (RFC 9002 section 5).
_RTT = ("_rtt_latest", "_rtt_min", "_rtt_smoothed", "_rtt_variance")


class OneRttKeys(CryptoPair):
    """1-RTT keys that for a while still open packets of the previous key phase.

    aioquic's own forget them at once, and with them all packets that are under way when an update
    is initiated, or that overtake each other (RFC 9001 sections 6.3 and 6.5).
    """

    def __init__(self) -> None:
        super().__init__()
        self._previous: CryptoContext | None = None
        self._forget_at: float | None = None

    def decrypt_packet(
        self, packet: bytes, encrypted_offset: int, expected_packet_number: int
    ) -> tuple[bytes, bytes, int]:
        try:
            return super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        except CryptoError:
            if self._previous is None:
                raise
            return self._previous.decrypt_packet(packet, encrypted_offset, expected_packet_number)[
                :3
            ]

    def forget_previous(self, now: float, after: float) -> None:
        """Drop old keys `after` seconds from the first call that finds them."""
        if self._previous is None:
            return
        if self._forget_at is None:
            self._forget_at = now + after
        elif now >= self._forget_at:
            self._previous = self._forget_at = None

    def _update_key(self, trigger: str) -> None:
        self._previous = copy(self.recv)
        self._forget_at = None
        super()._update_key(trigger)


class Batch(NamedTuple):
    """UDP payloads for the active path, and what they hold: DATAGRAM payloads and their bytes."""

    packets: Sequence[bytes]
    payloads: int
    payload_bytes: int


class TunnelConnection(StreamConnection):
    """A QUIC connection with a short way for datagrams.

    Received DATAGRAM payloads gather in `datagrams_received` until the owner takes them. The
    configuration must have a `max_datagram_frame_size`.
    """

    def __init__(self, *, configuration: QuicConfiguration, **arguments: Any) -> None:
        super().__init__(configuration=configuration, **arguments)
        self.datagrams_received: list[bytes] = []
        #: Set when anything but DATAGRAM and ACK frames was received; the owner clears it.
        self.control_received = False
        self._last_received = 0.0
        #: Set when another path is in use than before, by our doing or the peer's; the owner, who
        #: then asks anew what the path carries, clears it.
        self.moved = False
        self._peer_forbids_moving = False
        #: Whether the path is known to carry `packet_size`.
        self.size_confirmed = True
        #: The active path since it was last known to be the peer's.
        self._settled_path: QuicNetworkPath | None = None
        self._to_challenge: list[QuicNetworkPath] = []
        self._challenge_again_at = 0.0
        #: Packets of ours with datagrams that were declared lost.
        self.packets_lost = 0
        self._large_lost_in_a_row = 0
        #: The first packet number since this process last stood still.
        self._awake_since = 0
        self._exporter: Exporter | None = None
        # Shared by all packets of a kind: what to tell when one is acknowledged or lost.
        self._small_handlers: list[tuple[Any, Any]] = [(self._delivered, ())]
        self._large_handlers: list[tuple[Any, Any]] = [(self._large_delivered, ())]

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._cryptos[_ONE_RTT] = OneRttKeys()
        # No tickets for early data: whoever recorded it could send it again (RFC 8446 section 8).
        self.tls._max_early_data = None

    def _update_traffic_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        # RFC 8446 section 7.1 derives the exporter master secret from the same transcript as the
        # first 1-RTT secrets: up to the server's Finished. Later the client's would be in it too.
        if epoch is _ONE_RTT and self._exporter is None:
            schedule = self.tls.key_schedule
            assert schedule is not None
            master = schedule.derive_secret(b"exp master")
            self._exporter = partial(tls_exporter, master, schedule.algorithm)
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        if not from_session_ticket:
            # RFC 9000 section 18.2. aioquic reads the parameter and drops it.
            parameters = pull_quic_transport_parameters(Buffer(data=data))
            self._peer_forbids_moving = bool(parameters.disable_active_migration)

    # What the owner may read

    @property
    def established(self) -> bool:
        """Whether the handshake is complete and the connection is not ending."""
        return self._handshake_complete and self._state is _CONNECTED and not self._close_pending

    @property
    def ended(self) -> bool:
        """Whether nothing will be sent any more, except by timers of the closing period."""
        return self._state not in (QuicConnectionState.FIRSTFLIGHT, _CONNECTED)

    @property
    def last_received(self) -> float:
        """When the last valid packet arrived, 0.0 before the first."""
        return self._last_received

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds, 0.0 before a sample."""
        return self._loss._rtt_smoothed

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The peer's end-entity certificate once it was received."""
        return self.tls._peer_certificate

    @property
    def resumed(self) -> bool:
        """Whether a session ticket took the place of the certificate."""
        return self.tls.session_resumed

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """`length` bytes that only the two ends of this connection know (RFC 8446 section 7.5).

        Not before the handshake has come to the 1-RTT secrets.
        """
        assert self._exporter is not None
        return self._exporter(label, context, length)

    @property
    def buffered(self) -> int:
        """Bytes on streams that the peer has not acknowledged yet."""
        return sum(len(stream.sender._buffer) for stream in self._streams.values())

    @property
    def peer_takes_datagrams(self) -> bool:
        """Whether the peer's transport parameters allow DATAGRAM frames (RFC 9221 section 3)."""
        return bool(self._remote_max_datagram_frame_size)

    @property
    def alpn(self) -> str | None:
        """The application protocol that TLS chose."""
        return self.tls.alpn_negotiated

    def take_issued_connection_ids(self) -> list[bytes]:
        """Connection IDs of ours that were sent to the peer since the last call."""
        issued = [
            event for event in self._events if isinstance(event, quic_events.ConnectionIdIssued)
        ]
        for event in issued:
            self._events.remove(event)
        return [event.connection_id for event in issued]

    def ack_due(self, now: float) -> bool:
        """Whether an ACK that is not delayed any longer waits to be sent."""
        ack_at = self._spaces[_ONE_RTT].ack_at
        return ack_at is not None and ack_at <= now

    # Packet size

    @property
    def packet_size(self) -> int:
        """The largest UDP payload in bytes that datagrams are packed to now.

        Setting it says that the path is known to carry so much. After a move it is only hoped for,
        and everything but datagrams travels in packets of `BASE_PACKET` bytes.
        """
        return self._max_datagram_size

    @packet_size.setter
    def packet_size(self, size: int) -> None:
        self._max_datagram_size = size
        self._loss._pacer._max_datagram_size = size
        self.size_confirmed = True

    def packet_size_for(self, payload: int) -> int:
        """The UDP payload that carries one DATAGRAM frame of `payload` bytes, alone."""
        return 1 + len(self._peer_cid.cid) + PACKET_NUMBER + 1 + payload + AEAD_TAG

    @property
    def max_datagram_payload(self) -> int:
        """The largest DATAGRAM payload in bytes that fits a packet now."""
        limit = self._max_datagram_size - self.packet_size_for(0)
        # The peer's limit counts the whole frame (RFC 9221 section 3).
        return min(limit, (self._remote_max_datagram_frame_size or 0) - 1)

    @property
    def black_hole_suspected(self) -> bool:
        """Whether of late only packets of the largest size were lost (RFC 8899 section 4.3)."""
        return self._large_lost_in_a_row >= BLACK_HOLE_LOSSES

    def reset_black_hole(self) -> None:
        """Start counting anew."""
        self._large_lost_in_a_row = 0

    def _delivered(self, state: QuicDeliveryState) -> None:
        if state is QuicDeliveryState.LOST:
            self.packets_lost += 1

    def _large_delivered(self, state: QuicDeliveryState) -> None:
        if state is QuicDeliveryState.LOST:
            self.packets_lost += 1
            self._large_lost_in_a_row += 1
        else:
            self._large_lost_in_a_row = 0

    @property
    def can_probe(self) -> bool:
        """Whether `probe` can build one now; not while a new path is being validated."""
        return self._handshake_complete and not self.ended and self._network_paths[0].is_validated

    def probe(
        self, size: int, now: float, done: ProbeHandler
    ) -> list[tuple[bytes, NetworkAddress]]:
        """Build a probe of `size` bytes: PING and PADDING (RFC 9000 section 14.4).

        `done(size, arrived)` is called once, later; a PING that the next `datagrams_to_send` sends
        brings the evidence. A probe is exempt from the congestion window and its loss is no
        congestion (RFC 9000 section 14.4, RFC 8899 section 3).
        """
        if not self.can_probe:
            return []
        path = self._network_paths[0]

        def delivered(state: QuicDeliveryState) -> None:
            done(size, state is QuicDeliveryState.ACKED)

        builder = self._builder(size)
        try:
            builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[_ONE_RTT])
            builder.start_frame(QuicFrameType.PING, handler=delivered)
            # The builder pads a datagram that must be expanded to the size it was made with.
            builder._datagram_needs_padding = True
            datagrams, packets = builder.flush()
        except QuicPacketBuilderStop:
            return []
        self._packet_number = builder.packet_number
        for packet in packets:
            packet.sent_time = now
            # Kept out of the window, and of the probe timeout, which in an outage or when the path
            # becomes slow takes the oldest packet for lost, with no evidence.
            packet.in_flight = packet.is_ack_eliciting = False
            self._loss.on_packet_sent(packet=packet, space=self._spaces[_ONE_RTT])
        # The evidence: once this small one is acknowledged, the probe has arrived or is lost.
        self.send_ping(0)
        return [(datagram, path.addr) for datagram in datagrams]

    def _builder(self, size: int) -> QuicPacketBuilder:
        """What builds a datagram of at most `size` bytes for the active path."""
        return QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            peer_token=self._peer_token,
            spin_bit=self._spin_bit,
            version=self._version,  # type: ignore[arg-type]  # known since the handshake
        )

    # Sending

    def pack_datagrams(self, pending: deque[bytes], prefix: bytes, now: float) -> Batch:
        """Take payloads from the left of `pending` and make packets of them.

        They are not congestion controlled, as RFC 9484 section 10 allows for what is congestion
        controlled inside (docs/decisions/0003); `MAX_UNACKNOWLEDGED` only bounds memory. Each goes
        into a DATAGRAM frame behind `prefix`; small ones share a packet, which is as large as
        `packet_size` at most. Every payload must fit (`max_datagram_payload` less the prefix).
        """
        path = self._network_paths[0]
        if not pending or not self.established:
            return Batch((), 0, 0)
        space = self._spaces[_ONE_RTT]
        limit = MAX_UNACKNOWLEDGED - len(space.sent_packets)
        if not path.is_validated:
            # RFC 9000 section 9.3.1: whoever is there may not have asked for it.
            credit = AMPLIFICATION * path.bytes_received - path.bytes_sent
            limit = min(limit, credit // self._max_datagram_size)
        room = self._max_datagram_size - self.packet_size_for(0) + 1
        ack = self._ack_frame(space, room - len(prefix) - len(pending[0]) - 3, now)
        plains, payloads, payload_bytes = self._fill_packets(pending, prefix, room, ack, limit)
        if not plains:
            return Batch((), 0, 0)
        large = self._max_datagram_size - _LARGE_MARGIN - self.packet_size_for(0) + 1
        handlers = [
            self._large_handlers if len(plain) >= large else self._small_handlers
            for plain in plains
        ]
        if ack:
            space.ack_at = None
            told = (self._on_ack_delivery, (space, space.largest_received_packet))
            handlers[0] = [*handlers[0], told]
        packets = self._send_packets(plains, handlers, now, in_flight=False)
        return Batch(packets, payloads, payload_bytes)

    def _ack_frame(self, space: QuicPacketSpace, room: int, now: float) -> bytes:
        """An ACK frame for what waits to be acknowledged, due or not, if it fits `room` bytes.

        It rides with the first datagram: in a conversation no packet is spent on ACKs alone.
        """
        received_at = space.largest_received_time
        if space.ack_at is None or received_at is None or room < _ACK_ROOM:
            return b""
        delay = int((now - received_at) * 1_000_000) >> self._local_ack_delay_exponent
        buffer = Buffer(capacity=room)
        buffer.push_uint_var(_ACK)
        push_ack_frame(buffer, space.ack_queue, delay, room - 1)
        return buffer.data

    def _fill_packets(
        self, pending: deque[bytes], prefix: bytes, room: int, ack: bytes, limit: int
    ) -> tuple[list[bytes], int, int]:
        """Plain packet payloads of `room` bytes, at most `limit`, for what is `pending`.

        The first begins with `ack`, which fits together with the first datagram.
        """
        overhead = len(prefix) + 3
        alone = b"\x30" + prefix
        plains: list[bytes] = []
        payloads = payload_bytes = 0
        while pending and len(plains) < limit:
            payload = pending.popleft()
            payloads += 1
            payload_bytes += len(payload)
            left = room - len(payload) - overhead - len(ack)
            if not pending or len(pending[0]) + overhead > left:
                # Alone in its packet: by far the most frequent case under load.
                plain = ack + alone + payload
            else:
                frames = [ack]
                while True:
                    length = len(payload) + len(prefix)
                    frames += (
                        b"\x31",
                        bytes((length,)) if length < 64 else (length | 0x4000).to_bytes(2, "big"),
                        prefix,
                        payload,
                    )
                    if not pending or len(pending[0]) + overhead > left:
                        break
                    payload = pending.popleft()
                    payloads += 1
                    payload_bytes += len(payload)
                    left -= len(payload) + overhead
                plain = b"".join(frames)
            ack = b""
            plains.append(plain)
        return plains, payloads, payload_bytes

    # Moving

    @property
    def path_validated(self) -> bool:
        """Whether the peer is known to be where packets go now; until then few may be sent."""
        path = self._active_path
        return path is not None and path.is_validated

    def may_migrate(self) -> bool:
        """Whether the client may move: handshake confirmed, a connection ID to spare, allowed.

        RFC 9000 sections 9, 9.5 and 18.2. Also not to a server that chose empty connection IDs.
        """
        return (
            self._is_client
            and self.established
            and self._handshake_confirmed
            and bool(self._peer_cid_available)
            and not self._peer_forbids_moving
        )

    def migrate(self, addr: NetworkAddress, now: float) -> None:
        """Use another local address from now on; `addr` is the server as it is seen from there.

        The client's side, and only when `may_migrate`. Does not wait for a validation (RFC 9000
        section 9.2): it moves because the old path is gone or about to go, and the server's address
        is known to be good. What arrives on the path before is still read. The next
        `datagrams_to_send` challenges the new path, in a packet that also makes the server follow.
        """
        before = self._network_paths[0]
        for older in self._network_paths[1:]:
            if older.peer_cid is not None:
                self._retire_peer_cid(older.peer_cid)
        path = QuicNetworkPath(addr, is_validated=True)
        self._network_paths = [path, before]
        self.change_connection_id()  # RFC 9000 section 9.5
        self._begin_path()
        self._to_challenge = [path]

    def _follow(self, before: QuicNetworkPath | None, host_cid: bytes, now: float) -> None:
        """The server's side, after a packet: look where the client is now (RFC 9000 section 9.3).

        aioquic has followed it, and will challenge a path that it does not know.
        """
        path = self._active_path
        if path is None:
            return
        if not path.is_validated and now >= self._challenge_again_at:
            # An answer is sent only once and may be lost, although the challenge was acknowledged
            # (RFC 9000 sections 8.2.1 and 8.2.2). As often as an Initial is sent again.
            path.local_challenge_sent = False
            self._challenge_again_at = now + 2 * self._configuration.initial_rtt
        if path is not before and before is not None and not path.is_validated:
            if before.is_validated and self.host_cid == host_cid:
                # Not a move by the client's will, which takes another connection ID: a NAT that
                # forgot it, or somebody who forwards copies of its packets. RFC 9000 section 9.3.3:
                # ask on the former path, and whoever is there brings the connection back.
                self._to_challenge = [before]
        if path.is_validated and path is not self._settled_path:
            settled, self._settled_path = self._settled_path, path
            if settled is not None and settled.addr[0] != path.addr[0]:
                self._begin_path()

    @property
    def _active_path(self) -> QuicNetworkPath | None:
        return self._network_paths[0] if self._network_paths else None

    def _begin_path(self) -> None:
        """Forget what was learned of another path (RFC 9000 section 9.4).

        What is under way there may still be acknowledged, but says nothing about this one.
        """
        loss, space = self._loss, self._spaces[_ONE_RTT]
        for packet in space.sent_packets.values():
            packet.in_flight = packet.is_ack_eliciting = False
            if packet.delivery_handlers is self._large_handlers:
                packet.delivery_handlers = self._small_handlers
        space.ack_eliciting_in_flight = 0
        self._large_lost_in_a_row = 0
        loss._cc = create_congestion_control(
            self._configuration.congestion_control_algorithm, max_datagram_size=BASE_PACKET
        )
        loss._pacer = BurstPacer(max_datagram_size=BASE_PACKET)
        loss._rtt_initialized = False
        loss._rtt_latest = loss._rtt_smoothed = loss._rtt_variance = 0.0
        loss._rtt_min = inf
        loss._pto_count = 0
        self.size_confirmed = False
        self.moved = True

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """As aioquic's, with our challenges, and small packets where the path is not known yet."""
        path = self._active_path
        if path is not None and path.is_validated and self.size_confirmed:
            if not self._to_challenge:
                return self.send_streams(now)
        size = self._max_datagram_size
        # A challenge is as large as a packet may be (RFC 9000 section 8.2.1). In one that the new
        # path does not carry, it would be lost again and again.
        self._max_datagram_size = min(size, BASE_PACKET)
        try:
            sent = self._challenges(now)
            return sent + super().datagrams_to_send(now)
        finally:
            self._max_datagram_size = size

    def _challenges(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """A PATH_CHALLENGE for each path that waits for one, in a packet of its own."""
        sent: list[tuple[bytes, NetworkAddress]] = []
        paths, self._to_challenge = self._to_challenge, []
        for path in paths:
            if not self.established:
                break
            builder = self._builder(BASE_PACKET)
            builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[_ONE_RTT])
            self._write_path_challenge_frame(builder, path)
            if path is self._active_path:
                # No probing frame, so that the server follows (RFC 9000 section 9.2).
                builder.start_frame(QuicFrameType.PING)
            sent += self._flush_builder(builder, path, self._peer_cid.cid, now)
        return sent

    def _handle_path_challenge_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_path_challenge_frame(context, frame_type, buf)
        if context.network_path is self._active_path:
            # RFC 9000 section 9.3.3: not only a probing frame in answer, so that a server which was
            # led astray comes back.
            self.send_ping(0)

    # Silence

    @property
    def unanswered_since(self) -> float | None:
        """When the first packet was sent that asks for an answer and since which none came.

        None when the peer owes nothing, or has sent anything since.
        """
        return self._unanswered_since if self._ack_eliciting_sent_since_receipt else None

    def probe_timeout(self) -> float:
        """Seconds after which an answer is late (RFC 9002 section 6.2.1)."""
        return self._loss.get_probe_timeout()

    def _flush_builder(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, peer_cid: bytes, now: float
    ) -> list[tuple[bytes, NetworkAddress]]:
        asked = self._ack_eliciting_sent_since_receipt
        sent = super()._flush_builder(builder, network_path, peer_cid, now)
        if self._ack_eliciting_sent_since_receipt and not asked:
            self._unanswered_since = now
        return sent

    # Time

    def handle_timer(self, now: float) -> None:
        """Handle the timer, and notice when it was due long ago: this process stood still."""
        due = self.get_timer()
        if due is not None and now - due > STOOD_STILL:
            self._awake_since = self._packet_number
        super().handle_timer(now)

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        loss, space = self._loss, self._spaces[context.epoch]
        if space.largest_acked_packet >= self._awake_since:
            super()._handle_ack_frame(context, frame_type, buf)
            return
        before = {name: getattr(loss, name) for name in _RTT}
        super()._handle_ack_frame(context, frame_type, buf)
        if space.largest_acked_packet < self._awake_since:
            # Sent before we stood still: that time is in the sample, and not the network's.
            for name, value in before.items():
                setattr(loss, name, value)

    # Receiving

    def receive_datagrams(self, batch: Sequence[bytes], addr: NetworkAddress, now: float) -> None:
        """Handle UDP payloads from one address: the short way where it applies, else aioquic's."""
        if now - self._last_received > STOOD_STILL:
            due = self.get_timer()
            if due is not None and now - due > STOOD_STILL:
                self.handle_timer(now)  # what was due before these were read
        if self._handshake_confirmed:
            keys = self._cryptos[_ONE_RTT]
            assert isinstance(keys, OneRttKeys)
            keys.forget_previous(now, 3 * self._loss.get_probe_timeout())
        index = 0
        while index < len(batch):
            run = self._short_run(batch, index, addr)
            if run:
                self._receive_short(batch[index : index + run], now)
                index += run
            else:
                self.control_received = True
                self._receive_long(batch[index], addr, now)
                index += 1

    def _receive_long(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """aioquic's own way, for everything that the short one leaves out."""
        before, host_cid, close_at = self._active_path, self.host_cid, self._close_at
        self.receive_datagram(data, addr, now)
        if self._close_at != close_at:  # which every valid packet moves
            self._last_received = now
        if not self._is_client:
            self._follow(before, host_cid, now)

    def _short_run(self, batch: Sequence[bytes], start: int, addr: NetworkAddress) -> int:
        """How many payloads from `start` may take the short way: 1-RTT, on the active path."""
        if self._state is not _CONNECTED or not self._handshake_confirmed or self._close_pending:
            return 0
        path = self._network_paths[0]
        if path.addr != addr or not path.is_validated:
            return 0
        if self._cryptos[_ONE_RTT].recv.hp._is_chacha20:  # type: ignore[union-attr]
            return 0  # its masks cannot be made in one call
        cid = batch[start][1 : 1 + len(self.host_cid)]
        if cid != self.host_cid and not (
            self._is_client and any(cid == host.cid for host in self._host_cids)
        ):
            return 0
        cid_end = 1 + len(cid)
        minimum = cid_end + SAMPLE_AT + SAMPLE
        index = start
        for index in range(start, len(batch)):
            data = batch[index]
            if len(data) < minimum or data[0] & 0xC0 != 0x40 or data[1:cid_end] != cid:
                return index - start
        return index + 1 - start

    def _receive_short(self, batch: Sequence[bytes], now: float) -> None:
        """`QuicConnection.receive_datagram` for 1-RTT packets on the active, validated path.

        The same steps in the same order, without those that cannot apply, and those that concern
        the connection once for the batch. Header protection of the batch is one cipher call, which
        is why this does not use `CryptoPair.decrypt_packet` (RFC 9001 sections 5.3 and 5.4).
        """
        space = self._spaces[_ONE_RTT]
        window = space.received_packets
        crypto = self._cryptos[_ONE_RTT]
        recv = crypto.recv
        decrypt, iv, key_phase = _opened(recv)
        cid_end = 1 + len(self.host_cid)
        sample_at = cid_end + SAMPLE_AT
        masks = recv.hp._encryptor.update(  # type: ignore[union-attr]
            b"".join([data[sample_at : sample_at + SAMPLE] for data in batch])
        )
        cid = batch[0][1:cid_end]
        acked_from = acked_to = -1  # a run of packet numbers to acknowledge
        handled = False
        for index, data in enumerate(batch):
            mask = masks[index * SAMPLE : index * SAMPLE + 5]
            first = data[0] ^ mask[0] & 0x1F
            length = (first & 0x03) + 1
            body_at = cid_end + length
            number_bytes = (
                int.from_bytes(data[cid_end:body_at], "big")
                ^ int.from_bytes(mask[1 : 1 + length], "big")
            ).to_bytes(length, "big")
            number = decode_packet_number(
                int.from_bytes(number_bytes, "big"), length * 8, space.expected_packet_number
            )
            try:
                if (first & 4) >> 2 == key_phase:
                    payload = decrypt(
                        (iv ^ number).to_bytes(NONCE, "big"),
                        data[body_at:],
                        bytes((first,)) + cid + number_bytes,
                    )
                else:
                    # The peer updated its keys, or somebody flipped a bit.
                    _header, payload, number = crypto.decrypt_packet(
                        data, cid_end, space.expected_packet_number
                    )
                    decrypt, iv, key_phase = _opened(recv)
            except (InvalidTag, CryptoError):
                continue
            if number <= space.largest_received_packet and (
                number < window._lower or number in window._received
            ):
                continue
            if first & 0x18:
                self.close(
                    error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                    frame_type=QuicFrameType.PADDING,
                    reason_phrase="Reserved bits must be zero",
                )
                break
            if number > space.expected_packet_number:
                space.expected_packet_number = number + 1
            if number > self._spin_highest_pn:
                spin = bool(first & 0x20)
                self._spin_bit = not spin if self._is_client else spin
                self._spin_highest_pn = number

            ack_eliciting = self._receive_frames(payload, cid, now)
            if self._close_pending or self._state is not _CONNECTED:
                break
            handled = True
            if number > space.largest_received_packet:
                space.largest_received_packet = number
                space.largest_received_time = now
            if number == acked_to:
                acked_to += 1
            else:
                if acked_to >= 0:
                    self._acknowledge(space, acked_from, acked_to)
                acked_from, acked_to = number, number + 1
            window._received.add(number)
            if ack_eliciting and space.ack_at is None:
                space.ack_at = now + self._ack_delay
        if handled:
            self._acknowledge(space, acked_from, acked_to)
            self._last_received = now
            if self._state is _CONNECTED:  # else it is when the draining period ends
                self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = False

    @staticmethod
    def _acknowledge(space: QuicPacketSpace, start: int, stop: int) -> None:
        space.ack_queue.add(start, stop)
        if len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        space.received_packets.add(stop - 1)  # slides the window of known numbers

    def _receive_frames(self, payload: bytes, cid: bytes, now: float) -> bool:
        """Handle the frames of a packet; returns whether it elicits an ACK."""
        received = self.datagrams_received
        end = len(payload)
        at = 0
        ack_eliciting = False
        context: QuicReceiveContext | None = None
        while at < end:
            kind = payload[at]
            if kind == _DATAGRAM:
                received.append(payload[at + 1 :])
                return True
            if kind == _DATAGRAM_WITH_LENGTH and at + 3 <= end:
                first = payload[at + 1]
                if first < 64:
                    start, stop = at + 2, at + 2 + first
                else:
                    start = at + 3
                    stop = start + ((first & 0x3F) << 8 | payload[at + 2])
                if first < 128 and stop <= end:
                    received.append(payload[start:stop])
                    ack_eliciting = True
                    at = stop
                    continue
            elif kind in STREAM_KINDS:
                stop = self._receive_stream(payload, at)
                if stop:
                    ack_eliciting = True
                    at = stop
                    continue
            elif kind == _PADDING and payload.count(0, at) == end - at:
                break
            if context is None:
                context = QuicReceiveContext(
                    epoch=_ONE_RTT,
                    host_cid=cid,
                    network_path=self._network_paths[0],
                    quic_logger_frames=None,
                    time=now,
                    version=None,
                )
            try:
                if kind == _ACK:
                    buffer = Buffer(data=payload[at:])
                    buffer.pull_uint_var()
                    try:
                        self._handle_ack_frame(context, kind, buffer)
                    except BufferReadError:
                        raise QuicConnectionError(
                            error_code=QuicErrorCode.FRAME_ENCODING_ERROR,
                            frame_type=kind,
                            reason_phrase="Failed to parse frame",
                        ) from None
                    at += buffer.tell()
                    continue
                self.control_received = True
                eliciting, _probing = self._payload_received(context, payload[at:])
                return ack_eliciting or eliciting
            except QuicConnectionError as error:
                self.close(
                    error_code=error.error_code,
                    frame_type=error.frame_type,
                    reason_phrase=error.reason_phrase,
                )
                return False
        if not payload:
            self.close(
                error_code=QuicErrorCode.PROTOCOL_VIOLATION,
                frame_type=QuicFrameType.PADDING,
                reason_phrase="Packet contains no frames",
            )
        return ack_eliciting

    def _handle_datagram_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        """A DATAGRAM frame that came with other frames: the same list, no event."""
        start = buf.tell()
        if frame_type == _DATAGRAM_WITH_LENGTH:
            length = buf.pull_uint_var()
        else:
            length = buf.capacity - start
        self.datagrams_received.append(buf.pull_bytes(length))


def _opened(context: CryptoContext) -> tuple[Callable[[bytes, bytes, bytes], bytes], int, int]:
    """What opens packets now: the AEAD's decrypt(nonce, data, associated data), IV, key phase."""
    aead = context.aead
    assert aead is not None
    return aead._aead.decrypt, aead._iv, context.key_phase


class TunnelH3Connection(H3Connection):
    """HTTP/3 that announces HTTP Datagrams (RFC 9297 section 2.1.1).

    aioquic announces them only together with WebTransport, which we do not speak; a strict CONNECT-
    IP peer would then accept a request and deliver no datagram.
    """

    def _get_local_settings(self) -> dict[int, int]:
        return {**super()._get_local_settings(), Setting.H3_DATAGRAM: 1}

    def handle_event(self, event: quic_events.QuicEvent) -> list[H3Event]:
        """As aioquic's, but what waits for the end of its frame is bounded (RFC 9114 section 10.5).

        aioquic gathers a HEADERS frame of any announced length before it looks at it.
        """
        http_events = super().handle_event(event)
        if isinstance(event, quic_events.StreamDataReceived):
            stream = self._stream.get(event.stream_id)
            if stream is not None and len(stream.buffer) > MAX_BUFFERED_FRAME:
                self._is_done = True
                self._quic.close(error_code=ErrorCode.H3_EXCESSIVE_LOAD)
        return http_events

    def stopped_sending(self, stream_id: int) -> None:
        """Our direction of a stream was reset: forget the stream when the peer's is over too."""
        stream = self._stream.get(stream_id)
        if stream is not None:
            stream.sending_ended = True
            if stream.is_ended():
                del self._stream[stream_id]

    @property
    def peer_takes_tunnels(self) -> bool | None:
        """Whether the peer's SETTINGS allow tunnels; None before they arrived."""
        settings = self.received_settings
        if settings is None:
            return None
        return bool(
            settings.get(Setting.ENABLE_CONNECT_PROTOCOL) and settings.get(Setting.H3_DATAGRAM)
        )
