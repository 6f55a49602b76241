"""The native engine, for asyncio: what it hands up comes in batches, on the loop.

The Rust extension `qvpn_datapath` is optional; `NativeEngine.available` says whether it can be used
here. It is used by a client's datapath (`native.py`) and by the gateway. Nothing in here looks into
a packet. docs/datapath.md explains the whole.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from qvpn_core.transport.offload import (
    Carried,
    CarriedOwner,
    CarriedRules,
    CarriedSetup,
    CarriedStats,
    HandedBack,
    OneRtt,
    Ranges,
)
from qvpn_core.transport.udp import IP_PKTINFO, LocalAddress, Received, UdpSocket

try:
    import qvpn_datapath
except ImportError:  # not built for this machine, or not installed
    qvpn_datapath = None

log = logging.getLogger(__name__)

#: Chooses the datapath, for tests and benchmarks: `aioquic` never uses the native one.
CHOICE = "QVPN_DATAPATH"


class NativeEngine:
    """One engine with its thread; see `qvpn_core.transport.offload.OffloadEngine`.

    `tun` is the descriptor of a TUN whose packets have a `virtio_net_hdr`; it stays the caller's.
    `on_tun` gets packets from it that belong to no session or are too big for theirs; `on_gone` is
    told when the device was deleted, `on_failure` when the engine failed by a defect, in words.
    After either it moves nothing any more, and sessions must be detached. `key_limit` is after how
    many packets keys are updated; as the AEAD allows without it.
    """

    def __init__(
        self,
        *,
        gateway: bool,
        tun: int | None,
        on_tun: Callable[[list[bytes]], None],
        on_gone: Callable[[], None],
        on_failure: Callable[[str], None],
        key_limit: int | None = None,
    ) -> None:
        limit = {} if key_limit is None else {"key_limit": key_limit}
        self._engine: Any = qvpn_datapath.Engine(gateway, tun, **limit)
        self._loop = asyncio.get_running_loop()
        self._on_tun = on_tun
        self._on_gone = on_gone
        self._on_failure = on_failure
        self._sockets: dict[int, Callable[[Received], None]] = {}
        self._indexes: dict[UdpSocket, int] = {}
        self._owners: dict[int, CarriedOwner] = {}
        self._loop.add_reader(self._engine.fileno(), self._readable)
        self._open = True

    @staticmethod
    def available() -> bool:
        """Whether the extension is installed and nobody chose otherwise."""
        return qvpn_datapath is not None and os.environ.get(CHOICE, "") != "aioquic"

    def close(self) -> None:
        """End the thread. Sessions can still be detached. Idempotent."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._engine.fileno())
            self._engine.stop()

    def fail(self) -> None:
        """Fail as by a defect: for tests of what happens then."""
        self._engine.fail()

    @property
    def drops(self) -> dict[str, int]:
        """Packets that the engine itself dropped, by reason."""
        return {reason: count for reason, count in self._engine.drops() if count}

    # Sockets

    def add_socket(self, sock: UdpSocket, receive: Callable[[Received], None]) -> None:
        index = self._engine.add_socket(sock.fileno())
        self._indexes[sock] = index
        self._sockets[index] = receive

    def remove_socket(self, sock: UdpSocket) -> None:
        index = self._indexes.pop(sock, None)
        if index is not None:
            self._engine.remove_socket(index)
            del self._sockets[index]

    def index_of(self, sock: UdpSocket) -> int | None:
        """The engine's number of a socket that it reads."""
        return self._indexes.get(sock)

    # Sessions

    def attach(self, setup: CarriedSetup, owner: CarriedOwner) -> Carried:
        number = self._engine.attach(
            suite=setup.keys.suite,
            phase=setup.keys.phase,
            sealing=setup.keys.sealing,
            opening=setup.keys.opening,
            own_ids=list(setup.own_ids),
            peer_id=setup.peer_id,
            prefix=setup.prefix,
            packet_size=setup.packet_size,
            mtu=setup.mtu,
            own=list(setup.rules.own),
            destinations=setup.rules.destinations,
            next_number=setup.next_number,
            received=setup.received,
            ack_waits=setup.ack_waits,
            outstanding=setup.outstanding,
            ack_delay_exponent=setup.ack_delay_exponent,
            max_ack_delay=setup.max_ack_delay,
            rtt=setup.rtt,
        )
        self._owners[number] = owner
        return _Session(self, self._engine, number)

    def forget(self, number: int) -> None:
        """A session was detached."""
        self._owners.pop(number, None)

    # What comes up

    def _readable(self) -> None:
        packets: list[bytes] = []
        received: dict[int, Received] = {}
        datagrams: dict[int, list[bytes]] = {}
        ending: tuple[Callable[..., None], tuple[str, ...]] | None = None
        for item in self._engine.take():
            match item:
                case ("udp", index, (host, port, scope), local, data):
                    # As Python's own sockets name a sender, so that a path is the same path.
                    sender: Any = (host, port, 0, scope) if ":" in host else (host, port)
                    received.setdefault(index, []).append((data, sender, _ancillary(local)))
                case ("tun", packet):
                    packets.append(packet)
                case ("datagram", number, payload):
                    datagrams.setdefault(number, []).append(payload)
                case ("acked", number, ranges, delay):
                    if number in self._owners:
                        self._owners[number].carried_acked(ranges, delay)
                case ("tun-gone",):
                    ending = (self._on_gone, ())
                case ("failed", words):
                    ending = (self._on_failure, (words,))
                case (kind, number, value):
                    if number in self._owners:
                        self._owners[number].carried_event(kind, value)
        for index, batch in received.items():
            receive = self._sockets.get(index)
            if receive is not None:
                receive(batch)
        for number, payloads in datagrams.items():
            if number in self._owners:
                self._owners[number].carried_datagrams(payloads)
        if packets:
            self._on_tun(packets)
        if ending is not None:
            ending[0](*ending[1])


class _Session:
    """See `qvpn_core.transport.offload.Carried`."""

    def __init__(self, owner: NativeEngine, engine: Any, number: int) -> None:
        self._owner = owner
        self._engine = engine
        self._number = number

    def begin_send(self) -> int:
        return int(self._engine.begin_send(self._number))

    def end_send(self, next_number: int) -> None:
        self._engine.end_send(self._number, next_number)

    def received(self, ranges: Ranges, *, eliciting: bool) -> None:
        self._engine.received(self._number, ranges, eliciting)

    def set_keys(self, keys: OneRtt) -> None:
        self._engine.set_keys(self._number, keys.suite, keys.phase, keys.sealing, keys.opening)

    def set_ids(self, own_ids: Sequence[bytes], peer_id: bytes) -> None:
        self._engine.set_ids(self._number, list(own_ids), peer_id)

    def set_route(
        self,
        sock: UdpSocket,
        peer: tuple[str, int],
        local: LocalAddress | None,
        *,
        usable: bool,
        fresh: bool,
    ) -> None:
        index = self._owner.index_of(sock)
        family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
        host = socket.inet_pton(family, peer[0].partition("%")[0])
        self._engine.set_route(
            self._number, index or 0, host, peer[1], _local_bytes(local),
            usable and index is not None, fresh,
        )  # fmt: skip

    def set_size(self, packet_size: int, mtu: int) -> None:
        self._engine.set_size(self._number, packet_size, mtu)

    def set_rules(self, rules: CarriedRules) -> None:
        self._engine.set_rules(self._number, list(rules.own), rules.destinations)

    def unroute(self) -> None:
        self._engine.unroute(self._number)

    def stats(self) -> CarriedStats:
        counts, numbers, times, following = self._engine.stats(self._number)
        return CarriedStats._make((*counts, *numbers, *times, following))

    def detach(self) -> HandedBack:
        self._owner.forget(self._number)
        return HandedBack(*self._engine.detach(self._number))


_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: index, spec_dst, addr
_PKTINFO6 = struct.Struct("=16si")  # struct in6_pktinfo: addr, index


def _ancillary(local: bytes | None) -> LocalAddress | None:
    """As `UdpSocket.receive` gives it."""
    if local is None:
        return None
    if len(local) == 4:
        return (socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(0, local, bytes(4)))
    return (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(local, 0))


def _local_bytes(local: LocalAddress | None) -> bytes | None:
    if local is None:
        return None
    return local[2][4:8] if local[0] == socket.IPPROTO_IP else local[2][:16]
