"""The adapter to the native engine (the Rust crate in `datapath/`, import name `qvpn_datapath`).

:class:`NativeEngine` owns the engine of one TUN on the event loop: it diverts UDP sockets to it,
hands up what the engine does not take, and pushes down what connections change. A fault of the
engine gives every connection back, with its books, so that no session ends. It moves no packet
itself and decides nothing about one.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from qvpn_core.datapath.interface import PacketDevice
from qvpn_core.transport.http3 import Http3Tunnel
from qvpn_core.transport.offload import ConnectionState, Handover, PhaseKeys
from qvpn_core.transport.udp import IP_PKTINFO, LocalAddress, Received, UdpSocket

log = logging.getLogger("qvpn.datapath")

#: Events taken at one wake-up; others get their turn before the rest.
EVENTS = 256
#: What of the module this adapter speaks; see datapath/src/python.rs.
INTERFACE = 1
#: Set to ``aioquic`` to leave the engine alone though it is installed.
CHOICE = "QVPN_DATAPATH"


@cache
def _module() -> Any:
    """The engine's module, or None where it is not installed, or of another version."""
    try:
        module = importlib.import_module("qvpn_datapath")
    except ImportError:
        return None
    if getattr(module, "INTERFACE", None) != INTERFACE:
        log.warning("the installed qvpn_datapath belongs to another version and is not used")
        return None
    return module


def available() -> bool:
    """Whether there is an engine and nobody switched it off."""
    return os.environ.get(CHOICE) != "aioquic" and _module() is not None


class NativeDestinations:
    """Where a device may send, in the engine's form.

    Each interval is its first address and whether packets to it are forwarded, ascending.
    """

    def __init__(
        self, ipv4: Sequence[tuple[bytes, bool]], ipv6: Sequence[tuple[bytes, bool]]
    ) -> None:
        self.table = _module().Destinations(ipv4, ipv6)


class EngineOwner(Protocol):
    """Who has the TUN: a client's datapath, or the gateway."""

    def from_tun(self, packets: Sequence[bytes]) -> None:
        """Packets that the engine read and that it cannot send as they are."""

    def inner(self, tunnel: Http3Tunnel, packets: list[bytes]) -> None:
        """Packets of a device that the engine does not forward."""

    def failed(self) -> None:
        """The engine has stopped by itself; all connections have their packets back."""


class NativeEngine:
    """The engine of one TUN. Raises OSError when the kernel or the device refuses."""

    def __init__(self, tun: PacketDevice, *, gateway: bool, owner: EngineOwner) -> None:
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._sockets: dict[UdpSocket, int] = {}
        self._by_place: dict[int, UdpSocket] = {}
        self.sessions: dict[int, NativeOffload] = {}
        self._offloads: set[NativeOffload] = set()
        self.engine = _module().Engine(tun.fileno(), gateway)
        self._open = True
        self._loop.add_reader(self.engine.fileno(), self._readable)

    def attach(self, tunnel: Http3Tunnel) -> NativeOffload | None:
        """Take the packets of a tunnel over, whenever its connection lets us.

        None for the second tunnel of a connection, whose packet numbers the first one's engine has.
        """
        offload = NativeOffload(self, tunnel)
        self._offloads.add(offload)
        if not tunnel.begin_offload(offload):
            self._offloads.discard(offload)
            return None
        return offload

    def forget(self, offload: NativeOffload) -> None:
        """An offload ended."""
        self._offloads.discard(offload)

    def place_of(self, sock: UdpSocket) -> int:
        """The engine's number for a socket, which it reads from now on."""
        place = self._sockets.get(sock)
        if place is None:
            place = int(self.engine.add_socket(sock.fileno()))
            self._sockets[sock] = place
            self._by_place[place] = sock
            sock.divert(lambda: self._release(sock))
        return place

    def drops(self) -> dict[str, int]:
        """Packets that the engine dropped and that belong to no session, by reason."""
        return {reason: count for reason, count in self.engine.drops() if count}

    def close(self) -> None:
        """Give everything back and stop. Idempotent; the TUN and the sockets stay open."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self.engine.fileno())
        self.engine.close()  # first, so that the books that are handed back are final
        while self._events():
            pass
        for offload in list(self._offloads):
            offload.tunnel.end_offload()
        for sock in list(self._sockets):
            sock.restore()
        self._sockets.clear()
        self._by_place.clear()

    def _release(self, sock: UdpSocket) -> None:
        place = self._sockets.pop(sock)
        del self._by_place[place]
        self.engine.remove_socket(place)

    def _readable(self) -> None:
        self._events()
        failure = self.engine.failure()
        if failure is not None and self._open:
            log.error("the native datapath stopped (%s); going on without it", failure)
            self.close()
            self._owner.failed()

    def _events(self) -> bool:
        """Pass on what the engine hands up; whether there was anything."""
        events = self.engine.events(EVENTS)
        datagrams: defaultdict[UdpSocket, list[Received]] = defaultdict(list)
        inner: defaultdict[int, list[bytes]] = defaultdict(list)
        from_tun: list[bytes] = []
        for event in events:
            match event:
                case ("datagram", place, peer, local, data):
                    sock = self._by_place.get(place)
                    if sock is not None:
                        datagrams[sock].append((data, _sender(peer), _local(local)))
                case ("inner", place, packet):
                    inner[place].append(packet)
                case ("tun", packet):
                    from_tun.append(packet)
                case (kind, place, *arguments):
                    # Packets that came before must be handled before.
                    self._hand_on(datagrams)
                    offload = self.sessions.get(place)
                    if offload is not None:
                        offload.event(kind, *arguments)
        self._hand_on(datagrams)
        for place, packets in inner.items():
            offload = self.sessions.get(place)
            if offload is not None:
                self._owner.inner(offload.tunnel, packets)
        if from_tun:
            self._owner.from_tun(from_tun)
        return bool(events)

    @staticmethod
    def _hand_on(datagrams: dict[UdpSocket, list[Received]]) -> None:
        for sock, received in datagrams.items():
            sock.hand_on(received)
        datagrams.clear()


class NativeOffload:
    """The engine's part in one connection; see `transport.offload.Offload`."""

    def __init__(self, owner: NativeEngine, tunnel: Http3Tunnel) -> None:
        self._owner = owner
        self._engine = owner.engine
        self.tunnel = tunnel
        self._place: int | None = None
        self._state: ConnectionState | None = None
        self._addresses: list[bytes] = []
        self._destinations: NativeDestinations | None = None
        self._told = (0, 0, 0, 0, 0)
        self._gone = (0, 0, 0, 0, 0)  # of earlier places

    @property
    def working(self) -> bool:
        """Whether the engine moves this connection's packets now."""
        return self._place is not None

    def set_addresses(self, addresses: Sequence[bytes]) -> None:
        """The inner addresses whose packets belong to this connection, 4 or 16 bytes each."""
        self._addresses = list(addresses)
        if self._place is not None:
            self._engine.set_addresses(self._place, self._addresses)

    def set_destinations(self, destinations: NativeDestinations) -> None:
        """At a gateway: where the device may send; nowhere before this is called."""
        self._destinations = destinations
        if self._place is not None:
            self._engine.set_destinations(self._place, destinations.table)

    # From the connection

    def follow(self, state: ConnectionState | None) -> None:
        before, self._state = self._state, state
        if state is None:
            self._leave()
        elif self._place is None or before is None:
            self._enter(state)
        else:
            self._follow(self._place, before, state)

    def reserve(self) -> tuple[int, int]:
        number, generation = self._engine.reserve(self._place)
        return number, generation

    def commit(self, next_number: int) -> None:
        if self._place is not None:
            self._engine.commit(self._place, next_number)

    def note_received(self, ranges: Sequence[tuple[int, int]]) -> None:
        if self._place is not None:
            self._engine.note_received(self._place, ranges)

    @property
    def expected_number(self) -> int:
        return int(self._read()[0][6])

    @property
    def last_received(self) -> float:
        return self._read()[2]

    @property
    def rtt(self) -> float:
        return self._read()[1]

    def traffic(self) -> tuple[int, int, int, int, int]:
        now = self._totals()
        told, self._told = self._told, now
        return tuple(a - b for a, b in zip(now, told, strict=True))  # type: ignore[return-value]

    def close(self) -> None:
        self._leave()
        self._owner.forget(self)

    # From the engine

    def event(self, kind: str, *arguments: Any) -> None:
        """What the engine says about this connection."""
        connection = self.tunnel.connection
        match kind, *arguments:
            case ("ack", frame, at):
                connection.engine_ack(frame, at)
            case ("keys", generation):
                connection.engine_keys(generation)
            case ("update-due",):
                connection.engine_update_due()
            case ("refused", size):
                connection.engine_refused(size)
            case ("black-hole",):
                connection.engine_black_hole()

    # Coming and going

    def _enter(self, state: ConnectionState) -> None:
        quic = self.tunnel.connection.quic
        rtt = quic.rtt
        socket_place = self._owner.place_of(state.socket)
        keys = quic.keys.export()
        books = quic.hand_over(self)
        self._place = self._engine.attach(
            self.tunnel.prefix,
            (socket_place, _address(state.peer), _local_bytes(state.local)),
            state.peer_id,
            state.packet_size,
            quic.peer_ack_delay_exponent,
            keys.suite,
            (keys.send_header, keys.receive_header),
            keys.generation,
            _parts(keys.current),
            _parts(keys.next),
            books.received,
            books.floor,
            books.next_number,
            books.unacknowledged,
            rtt,
        )
        self._owner.sessions[self._place] = self
        self._engine.set_addresses(self._place, self._addresses)
        if self._destinations is not None:
            self._engine.set_destinations(self._place, self._destinations.table)
        self._engine.set_ids(self._place, state.own_ids)

    def _follow(self, place: int, before: ConnectionState, state: ConnectionState) -> None:
        if state.own_ids != before.own_ids:
            self._engine.set_ids(place, state.own_ids)
        if state.generation != before.generation:
            keys = self.tunnel.connection.quic.keys.export()
            self._engine.set_keys(
                place, keys.suite, keys.generation, _parts(keys.current), _parts(keys.next)
            )
        target = (state.socket, state.peer, state.local, state.peer_id, state.packet_size)
        if target != (
            before.socket, before.peer, before.local, before.peer_id, before.packet_size
        ):  # fmt: skip
            socket_place = self._owner.place_of(state.socket)
            self._engine.update(
                place,
                (socket_place, _address(state.peer), _local_bytes(state.local)),
                state.peer_id,
                state.packet_size,
            )

    def _leave(self) -> None:
        if self._place is None:
            return
        self._gone = self._totals()
        place, self._place = self._place, None
        del self._owner.sessions[place]
        books = self._engine.detach(place)
        next_number, received, went_up = books
        handover = Handover(next_number=next_number, received=received, went_up=went_up)
        connection = self.tunnel.connection
        connection.quic.take_back(handover, connection.now())

    def _read(self) -> tuple[list[int], float, float]:
        counters = None if self._place is None else self._engine.counters(self._place)
        return counters or ([0] * 7, 0.0, 0.0)

    def _totals(self) -> tuple[int, int, int, int, int]:
        counters = self._read()[0]
        now = counters[:5]
        return tuple(a + b for a, b in zip(self._gone, now, strict=True))  # type: ignore[return-value]


def _parts(keys: PhaseKeys) -> tuple[bytes, bytes, bytes, bytes]:
    return keys.send_key, keys.send_iv, keys.receive_key, keys.receive_iv


def _address(peer: tuple[Any, ...]) -> tuple[str, int, int]:
    """Host, port and scope of an address as the socket module writes it."""
    return peer[0].partition("%")[0], peer[1], peer[3] if len(peer) > 3 else 0


def _sender(peer: tuple[str, int, int]) -> tuple[Any, ...]:
    host, port, scope = peer
    return (host, port, 0, scope) if ":" in host else (host, port)


def _local(address: bytes | None) -> LocalAddress | None:
    """As `UdpSocket.receive` gives it."""
    if address is None:
        return None
    if len(address) == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, bytes(4) + address + bytes(4)
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, address + bytes(4)


def _local_bytes(local: LocalAddress | None) -> bytes | None:
    if local is None:
        return None
    level, _kind, value = local
    return value[4:8] if level == socket.IPPROTO_IP else value[:16]
