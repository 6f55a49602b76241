"""Two QUIC connections and the wire between them, without sockets: time is a number.

Packets take `DELAY` seconds; a hook may drop, duplicate or delay each. Everything that is due at
one instant is delivered as one batch, as a socket would. An end may have several addresses; what is
sent to one that it does not have is lost. It refuses to run for ever: a run ends
when its condition holds, or fails.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)
from aioquic.tls import CipherSuite

from qvpn_core.transport import settings
from qvpn_core.transport.aioquic_adapter import TunnelConnection
from qvpn_core.transport.trust import Trust

DELAY = 0.01
CLIENT_ADDRESS = ("192.0.2.1", 1111)
SERVER_ADDRESS = ("192.0.2.2", 443)

#: Given the sender, the serial number of the packet and the packet: the extra delay in seconds of
#: each copy that arrives.
Hook = Callable[["End", int, bytes], Sequence[float]]


def everything_arrives(_sender: End, _serial: int, _packet: bytes) -> Sequence[float]:
    """The hook of a clean wire."""
    return (0.0,)


class End:
    """One of the two connections, and what its owner would hold."""

    def __init__(self, name: str, quic: QuicConnection, address: NetworkAddress) -> None:
        self.name = name
        self.quic = quic
        self.address = address
        #: The addresses at which it can be reached, and what it calls the peer as seen from there.
        self.reachable: dict[NetworkAddress, NetworkAddress] = {}
        self.other: End = self
        self.queue: deque[bytes] = deque()
        self.prefix = b""
        self.packets: list[bytes] = []  # all that were sent
        self.datagrams: list[bytes] = []  # all that were received
        self.streams: dict[int, bytes] = {}
        self.events: list[QuicEvent] = []

    @property
    def tunnel(self) -> TunnelConnection:
        """The connection, as ours."""
        assert isinstance(self.quic, TunnelConnection)
        return self.quic

    @property
    def up(self) -> bool:
        """Whether the handshake is confirmed."""
        return self.quic._handshake_confirmed

    @property
    def termination(self) -> ConnectionTerminated | None:
        """Why the connection ended, once it did."""
        return next((e for e in self.events if isinstance(e, ConnectionTerminated)), None)

    def receive(self, batch: list[bytes], source: NetworkAddress, now: float) -> None:
        """Take packets that arrived together from one address."""
        if isinstance(self.quic, TunnelConnection):
            self.quic.receive_datagrams(batch, source, now)
        else:
            for packet in batch:
                self.quic.receive_datagram(packet, source, now)

    def send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """What is due now, and where it goes."""
        if not self.quic._network_paths:
            return []  # a server that has heard nothing yet
        sent = self.quic.datagrams_to_send(now)
        if self.queue:
            if isinstance(self.quic, TunnelConnection):
                batch = self.quic.pack_datagrams(self.queue, self.prefix, now)
                to = self.quic.get_peer_address()
                sent += [(packet, to) for packet in batch.packets]
            else:
                while self.queue:
                    self.quic.send_datagram_frame(self.prefix + self.queue.popleft())
                sent += self.quic.datagrams_to_send(now)
        return sent

    def collect(self) -> None:
        """Move events and datagrams out of the connection."""
        event = self.quic.next_event()
        while event is not None:
            self.events.append(event)
            if isinstance(event, DatagramFrameReceived):
                self.datagrams.append(event.data)
            elif isinstance(event, StreamDataReceived):
                self.streams[event.stream_id] = self.streams.get(event.stream_id, b"") + event.data
            event = self.quic.next_event()
        if isinstance(self.quic, TunnelConnection):
            self.datagrams += self.quic.datagrams_received
            self.quic.datagrams_received = []


class Wire:
    """Carries packets between `client` and `server`."""

    def __init__(self, client: QuicConnection, server: QuicConnection) -> None:
        self.client = End("client", client, CLIENT_ADDRESS)
        self.server = End("server", server, SERVER_ADDRESS)
        self.client.other, self.server.other = self.server, self.client
        self.ends = (self.client, self.server)
        self.now = 100.0
        self.hook: Hook = everything_arrives
        self._flying: list[tuple[float, int, End, NetworkAddress, bytes]] = []
        self._serial = 0
        self.client.reachable[CLIENT_ADDRESS] = SERVER_ADDRESS
        client.connect(SERVER_ADDRESS, self.now)

    def move_client(self, address: NetworkAddress, *, keep: bool = False) -> None:
        """The client's packets come from another address, with `keep` the old one still works.

        A NAT does this behind its back; a client that wants it says so with `migrate_client`.
        """
        seen_as = self.client.reachable[self.client.address]
        if not keep:
            self.client.reachable.clear()
        self.client.address = address
        self.client.reachable[address] = seen_as

    def migrate_client(self, address: NetworkAddress, *, keep: bool = False) -> None:
        """The client moves to another address of its own, by its will."""
        self.move_client(address, keep=keep)
        seen_as = (*SERVER_ADDRESS, address)
        self.client.reachable[address] = seen_as
        self.client.tunnel.migrate(seen_as, self.now)

    def inject(
        self,
        sender: End,
        packet: bytes,
        *,
        source: NetworkAddress | None = None,
        to: NetworkAddress | None = None,
    ) -> None:
        """Put a packet on the wire as if `sender` had sent it, from `source` if need be."""
        sender.packets.append(packet)
        receiver = sender.other
        seen_as = source or sender.address
        if receiver is self.client:
            if (to or receiver.address) not in receiver.reachable:
                return
            seen_as = receiver.reachable[to or receiver.address]
        for extra in self.hook(sender, self._serial, packet):
            heapq.heappush(
                self._flying, (self.now + DELAY + extra, self._serial, receiver, seen_as, packet)
            )
        self._serial += 1

    def transmit(self) -> None:
        """Let both ends send what they want to send now."""
        for end in self.ends:
            for packet, to in end.send(self.now):
                self.inject(end, packet, to=to)

    def run(self, until: Callable[[], object], seconds: float = 20.0) -> None:
        """Let time pass until `until()`; fails after `seconds` of it."""
        deadline = self.now + seconds
        while True:
            self.transmit()
            if until():
                return
            due = self._next()
            assert due is not None, "nothing will ever happen again"
            assert due <= deadline, f"not within {seconds} s"
            self._advance(due)

    def rest(self, seconds: float) -> None:
        """Let `seconds` pass."""
        end = self.now + seconds
        while True:
            self.transmit()
            due = self._next()
            if due is None or due > end:
                break
            self._advance(due)
        self.now = end

    def _next(self) -> float | None:
        timers = [at for end in self.ends if (at := end.quic.get_timer()) is not None]
        flying = [self._flying[0][0]] if self._flying else []
        return min(timers + flying, default=None)

    def _advance(self, due: float) -> None:
        self.now = max(self.now, due)
        for end in self.ends:
            batch: list[bytes] = []
            source: NetworkAddress = None
            while self._flying and self._flying[0][0] <= self.now:
                if self._flying[0][2] is not end:
                    break
                _, _, _, sender, packet = heapq.heappop(self._flying)
                if batch and sender != source:
                    end.receive(batch, source, self.now)
                    batch = []
                source = sender
                batch.append(packet)
            if batch:
                end.receive(batch, source, self.now)
            at = end.quic.get_timer()
            if at is not None and at <= self.now:
                end.quic.handle_timer(self.now)
            end.collect()


def client_configuration(**changes: object) -> QuicConfiguration:
    """The client's settings, with any certificate trusted."""
    configuration = settings.client_configuration("localhost", Trust(pins=("any",)))
    for name, value in changes.items():
        setattr(configuration, name, value)
    return configuration


def server_configuration(certificate: Path, key: Path, **changes: object) -> QuicConfiguration:
    """The gateway's settings."""
    configuration = settings.server_configuration(certificate, key)
    for name, value in changes.items():
        setattr(configuration, name, value)
    return configuration


def make_wire(
    certificate: Path,
    key: Path,
    *,
    client: dict[str, object] | None = None,
    server: dict[str, object] | None = None,
    client_class: type[QuicConnection] = TunnelConnection,
    server_class: type[QuicConnection] = TunnelConnection,
) -> Wire:
    """A client and a server that have not yet spoken."""
    client_quic = client_class(configuration=client_configuration(**(client or {})))
    server_quic = server_class(
        configuration=server_configuration(certificate, key, **(server or {})),
        original_destination_connection_id=client_quic.original_destination_connection_id,
    )
    return Wire(client_quic, server_quic)


def connected(wire: Wire) -> Wire:
    """The wire with its handshake done and everything quiet."""
    wire.run(lambda: wire.client.up and wire.server.up)
    assert any(isinstance(event, HandshakeCompleted) for event in wire.client.events)
    wire.rest(1.0)
    return wire


ALL_SUITES = (
    CipherSuite.AES_128_GCM_SHA256,
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
)
