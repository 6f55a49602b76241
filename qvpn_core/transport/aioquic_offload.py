"""A connection of aioquic that an engine may carry; see `offload.py`.

The third module that touches aioquic's private attributes, built on `aioquic_adapter.py`. While a
connection is carried:

- packet numbers are the engine's; a packet of ours is built between `begin_send` and `end_send`;
- all 1-RTT packets are acknowledged by the engine, those too that it hands up to us;
- what it hands up it has checked for duplicates, so that our own window may be wide;
- keys, connection IDs and the path are pushed down after whatever may have changed them;
- times and counts are the engine's where it knows more.

It does no I/O. tests/unit/transport/test_aioquic_contract.py fails when aioquic changes underneath.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnectionState, QuicReceiveContext
from aioquic.quic.crypto import CryptoContext, derive_key_iv_hp
from aioquic.quic.packet import pull_ack_frame
from aioquic.quic.rangeset import RangeSet

from qvpn_core.transport.aioquic_adapter import (
    BLACK_HOLE_LOSSES,
    Batch,
    ProbeHandler,
    TunnelConnection,
)
from qvpn_core.transport.offload import (
    Carried,
    CarriedOwner,
    CarriedRules,
    CarriedSetup,
    HandedBack,
    OffloadEngine,
    OneRtt,
    Ranges,
    Secrets,
)
from qvpn_core.transport.udp import UdpPath

_ONE_RTT = tls.Epoch.ONE_RTT
#: Packet numbers behind the largest one handed up that are told apart: the engine has looked for
#: duplicates already, and what it hands up may be far apart.
_WINDOW = 1 << 13


class OffloadConnection(TunnelConnection):
    """A tunnel's connection, carried by an engine or not."""

    def __init__(self, *, configuration: QuicConfiguration, **arguments: Any) -> None:
        super().__init__(configuration=configuration, **arguments)
        self._carried: Carried | None = None
        self._pushed_secret = b""
        self._pushed_ids: tuple[tuple[bytes, ...], bytes] = ((), b"")
        self._pushed_path: tuple[object, bool] | None = None
        self._fresh_path = False
        self._on_hold = False
        #: The first 1-RTT secrets, by direction: header protection is theirs for good (RFC 9001
        #: section 6).
        self._first_secrets: dict[tls.Direction, bytes] = {}

    def _update_traffic_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        if epoch is _ONE_RTT:
            self._first_secrets[direction] = secret
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)

    @property
    def carried(self) -> Carried | None:
        """The engine's side of this connection, while it is carried."""
        return self._carried

    def carry(
        self,
        engine: OffloadEngine,
        owner: CarriedOwner,
        prefix: bytes,
        mtu: int,
        rules: CarriedRules,
    ) -> bool:
        """Let an engine carry DATAGRAM frames that begin with `prefix`, from here on.

        False when that is not possible now.
        """
        path = self._network_paths[0]
        if (
            self._carried is not None
            or not self.established
            or not self._handshake_confirmed
            or not isinstance(path.addr, UdpPath)
        ):
            return False
        space = self._spaces[_ONE_RTT]
        ids = self._ids()
        setup = CarriedSetup(
            keys=self._keys(),
            own_ids=ids[0],
            peer_id=ids[1],
            prefix=prefix,
            packet_size=self.packet_size,
            mtu=mtu,
            rules=rules,
            next_number=self._packet_number,
            received=_falling(space.ack_queue),
            ack_waits=space.ack_at is not None,
            outstanding=_runs(space.sent_packets),
            ack_delay_exponent=self._remote_ack_delay_exponent,
            max_ack_delay=self._loss.max_ack_delay,
            rtt=self._loss._rtt_smoothed,
        )
        try:
            carried = engine.attach(setup, owner)
        except ValueError:
            return False
        self._carried = carried
        self._pushed_secret, self._pushed_ids = self._secret(), ids
        self._pushed_path = None
        space.ack_at = None
        space.ack_queue = RangeSet()
        space.received_packets._size = _WINDOW
        self._push()
        return True

    def uncarry(self) -> list[bytes]:
        """Take the connection back from the engine. Returns IP packets that waited there."""
        carried = self._carried
        if carried is None:
            return []
        self._synchronize()
        back: HandedBack = carried.detach()
        self._carried = None
        self._packet_number = max(self._packet_number, back.next_number)
        space = self._spaces[_ONE_RTT]
        for first, last in back.received:
            space.ack_queue.add(first, last + 1)
        if back.received:
            largest = back.received[0][1]
            space.largest_received_packet = max(space.largest_received_packet, largest)
            space.expected_packet_number = max(space.expected_packet_number, largest + 1)
            space.largest_received_time = self.last_received
            # Those that we were handed are ours to judge: some may be on their way to us.
            ours = set(back.handed_up)
            for first, last in back.received:
                for number in range(max(first, largest - _WINDOW), last + 1):
                    if number not in ours:
                        space.received_packets.add(number)
        if back.ack_waits:
            space.ack_at = self.last_received
        return back.queued

    # What the engine tells

    def carried_acked(self, ranges: Ranges, delay: float, now: float) -> None:
        """Packets of ours were acknowledged; the other ones in the frame are the engine's."""
        acked = RangeSet()
        for first, last in ranges:
            acked.add(first, last + 1)
        self._loss.on_ack_received(
            ack_rangeset=acked, ack_delay=delay, now=now, space=self._spaces[_ONE_RTT]
        )

    def update_keys(self) -> None:
        """Go on with other keys, at once (RFC 9001 section 6)."""
        if self._carried is None or not self.established:
            return
        with self._sending():
            self._cryptos[_ONE_RTT]._update_key("local_update")
            self._push()

    def suspect_black_hole(self) -> None:
        """The engine lost only large packets of late."""
        self._large_lost_in_a_row = BLACK_HOLE_LOSSES

    def hold(self) -> None:
        """There is no path until `migrate`."""
        self._on_hold = True
        self._push()

    # What we tell the engine

    @contextmanager
    def _sending(self) -> Iterator[None]:
        """Packet numbers are ours while inside."""
        carried = self._carried
        if carried is None:
            yield
            return
        self._packet_number = max(self._packet_number, carried.begin_send())
        try:
            yield
        finally:
            self._push()  # other keys hold for packets from here on
            carried.end_send(self._packet_number)

    def _push(self) -> None:
        """Tell the engine what is not as it was."""
        carried = self._carried
        if carried is None or self.ended:
            return  # keys go first when a connection ends
        secret = self._secret()
        if secret != self._pushed_secret:
            self._pushed_secret = secret
            carried.set_keys(self._keys())
        ids = self._ids()
        if ids != self._pushed_ids:
            self._pushed_ids = ids
            carried.set_ids(*ids)
        path = self._network_paths[0]
        usable = path.is_validated and self.established and not self._on_hold
        if self._pushed_path != (path.addr, usable) or self._fresh_path:
            assert isinstance(path.addr, UdpPath)
            self._pushed_path = (path.addr, usable)
            fresh, self._fresh_path = self._fresh_path, False
            peer = (path.addr.host, path.addr.port)
            carried.set_route(path.addr.sock, peer, path.addr.local, usable=usable, fresh=fresh)

    def _secret(self) -> bytes:
        secret = self._cryptos[_ONE_RTT].send.secret
        return secret or b""

    def _keys(self) -> OneRtt:
        crypto = self._cryptos[_ONE_RTT]
        assert crypto.send.cipher_suite is not None
        return OneRtt(
            int(crypto.send.cipher_suite),
            bool(crypto.send.key_phase),
            _expanded(crypto.send, self._first_secrets[tls.Direction.ENCRYPT]),
            _expanded(crypto.recv, self._first_secrets[tls.Direction.DECRYPT]),
        )

    def _ids(self) -> tuple[tuple[bytes, ...], bytes]:
        return tuple(host.cid for host in self._host_cids), self._peer_cid.cid

    def _begin_path(self) -> None:
        super()._begin_path()
        self._fresh_path = True

    def _synchronize(self) -> None:
        """Know what the engine knows."""
        carried = self._carried
        if carried is None:
            return
        stats = carried.stats()
        space = self._spaces[_ONE_RTT]
        space.expected_packet_number = max(space.expected_packet_number, stats.expected)
        space.largest_received_packet = max(space.largest_received_packet, stats.largest)
        if stats.last_received > self._last_received:
            self._last_received = stats.last_received
            if self._unanswered_since < stats.last_received:
                self._ack_eliciting_sent_since_receipt = False
        if self._state is QuicConnectionState.CONNECTED and self._close_at is not None:
            # RFC 9000 section 10.1: from the last packet received, and the first sent after it.
            begin = max(stats.last_received, stats.unanswered_since or 0.0)
            self._close_at = max(self._close_at, begin + self._idle_timeout())

    # What the owner may ask

    @property
    def last_received(self) -> float:
        self._synchronize()
        return self._last_received

    @property
    def unanswered_since(self) -> float | None:
        own = super().unanswered_since
        if self._carried is None:
            return own
        self._synchronize()
        own = super().unanswered_since
        other = self._carried.stats().unanswered_since
        return other if own is None else own if other is None else min(own, other)

    @property
    def rtt(self) -> float:
        measured = self._carried.stats().rtt if self._carried is not None else 0.0
        return measured or super().rtt

    def get_timer(self) -> float | None:
        self._synchronize()
        return super().get_timer()

    # Sending and receiving, as without an engine but around it

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        with self._sending():
            return super().datagrams_to_send(now)

    def pack_datagrams(self, pending: deque[bytes], prefix: bytes, now: float) -> Batch:
        with self._sending():
            return super().pack_datagrams(pending, prefix, now)

    def probe(
        self, size: int, now: float, done: ProbeHandler
    ) -> list[tuple[bytes, NetworkAddress]]:
        with self._sending():
            return super().probe(size, now, done)

    def migrate(self, addr: NetworkAddress, now: float) -> None:
        self._on_hold = False
        super().migrate(addr, now)
        self._push()

    def handle_timer(self, now: float) -> None:
        super().handle_timer(now)
        self._push()

    def receive_datagrams(self, batch: Sequence[bytes], addr: NetworkAddress, now: float) -> None:
        self._synchronize()
        super().receive_datagrams(batch, addr, now)
        carried = self._carried
        if carried is None:
            return
        # First: what came under other keys is acknowledged under them (RFC 9001 section 6.2).
        self._push()
        space = self._spaces[_ONE_RTT]
        if len(space.ack_queue):
            eliciting = space.ack_at is not None
            carried.received(_falling(space.ack_queue), eliciting=eliciting)
            space.ack_queue = RangeSet()
        space.ack_at = None

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        if self._carried is None or context.epoch is not _ONE_RTT:
            super()._handle_ack_frame(context, frame_type, buf)
            return
        # Only for packets of ours: the numbers between are the engine's, and would make ours look
        # lost (RFC 9002 section 6.1.1).
        start = buf.tell()
        try:
            ranges, delay = pull_ack_frame(buf)
        except ValueError:
            buf.seek(start)
            super()._handle_ack_frame(context, frame_type, buf)
            return
        ours = [
            (number, number) for number in self._spaces[_ONE_RTT].sent_packets if number in ranges
        ]
        if frame_type & 1:  # with ECN counts
            for _ in range(3):
                buf.pull_uint_var()
        if ours:
            seconds = (delay << self._remote_ack_delay_exponent) / 1_000_000
            self.carried_acked(ours[::-1], seconds, context.time)


def _expanded(context: CryptoContext, first_secret: bytes) -> Secrets:
    assert context.cipher_suite is not None
    assert context.secret is not None
    assert context.version is not None
    key, iv, _header = derive_key_iv_hp(
        cipher_suite=context.cipher_suite, secret=context.secret, version=context.version
    )
    _key, _iv, header = derive_key_iv_hp(
        cipher_suite=context.cipher_suite, secret=first_secret, version=context.version
    )
    return Secrets(key, iv, header)


def _falling(ranges: RangeSet) -> list[tuple[int, int]]:
    return [(part.start, part.stop - 1) for part in reversed(list(ranges))]


def _runs(numbers: Sequence[int] | dict[int, Any]) -> list[tuple[int, int]]:
    """Rising numbers as inclusive ranges, the largest first."""
    runs = RangeSet()
    for number in numbers:
        runs.add(number)
    return _falling(runs)
