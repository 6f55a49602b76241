"""The seam between a QUIC connection and an engine that carries some of its packets.

As a NIC offloads a kernel: the connection stays the authority for handshake, keys, streams,
connection IDs, paths, timers and close; the engine seals, sends, receives and opens the 1-RTT
packets that hold nothing but DATAGRAM, ACK and PADDING frames, and hands every other packet up
untouched. Values only; what fills them in on our side is `aioquic_offload.py`, the engine is
`qvpn_core.datapath.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:  # which need the types of `interface.py`, and that needs these
    from qvpn_core.transport.udp import LocalAddress, Received, UdpSocket

#: Inclusive ranges of packet numbers, the largest first.
Ranges = Sequence[tuple[int, int]]
#: For each family: a lowest address, 4 or 16 bytes, and whether packets from there on may pass.
Boundaries = Sequence[tuple[bytes, bool]]

#: `key-limit`: it is time for other keys (RFC 9001 section 6.6). `silent`: the peer owes an answer.
#: `black-hole`: only large packets are lost (RFC 8899 section 4.3). `too-large`: the interface
#: refuses packets of the size that comes with it.
EventKind = Literal["key-limit", "silent", "black-hole", "too-large"]


@dataclass(frozen=True, slots=True)
class CarriedRules:
    """Which inner packets an engine may move by itself; all others go up.

    `own` are the addresses that the session has, 4 or 16 bytes each. With `destinations` this is a
    gateway: packets from `own` to where they allow, IPv4 and IPv6. Without, a client: packets to
    `own` come in, and from `own` go out.
    """

    own: tuple[bytes, ...]
    destinations: tuple[Boundaries, Boundaries] | None = None


class Secrets(NamedTuple):
    """What protects one direction (RFC 9001 section 5.1)."""

    key: bytes
    iv: bytes
    header: bytes


@dataclass(frozen=True, slots=True)
class OneRtt:
    """The 1-RTT keys of both directions in one key phase; `suite` is TLS's number of it."""

    suite: int
    phase: bool
    sealing: Secrets
    opening: Secrets


@dataclass(frozen=True, slots=True)
class CarriedSetup:
    """Where a connection stands in the moment in which an engine takes over.

    `received` are packet numbers that arrived, of which some wait for an ACK if `ack_waits`;
    `outstanding` those of ours that are not acknowledged; inclusive ranges, the largest first.
    Times are in seconds, sizes in bytes.
    """

    keys: OneRtt
    own_ids: tuple[bytes, ...]
    peer_id: bytes
    prefix: bytes
    packet_size: int
    mtu: int
    rules: CarriedRules
    next_number: int
    received: Ranges
    ack_waits: bool
    outstanding: Ranges
    ack_delay_exponent: int
    max_ack_delay: float
    rtt: float


class CarriedStats(NamedTuple):
    """What an engine knows of a session; see `TunnelCounters`. Times are the loop's, in seconds.

    `expired` and `full` are packets that the queue dropped. `expected` is the packet number after
    the largest that arrived, `largest` the largest from the address of the path.
    `unanswered_since` is None while the peer owes nothing.
    """

    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
    lost_packets: int
    bad_source: int
    expired: int
    full: int
    expected: int
    largest: int
    last_received: float
    unanswered_since: float | None
    rtt: float
    next_number: int


@dataclass(frozen=True, slots=True)
class HandedBack:
    """Where a connection stands when an engine gives it back; `queued` are IP packets.

    Of the packets `received`, the connection has been `handed_up` some, and may still have to
    handle them.
    """

    next_number: int
    received: Ranges
    handed_up: Sequence[int]
    ack_waits: bool
    queued: list[bytes] = field(default_factory=list)


class Carried(Protocol):
    """One connection on an engine."""

    def begin_send(self) -> int:
        """The next packet number; the engine sends nothing until `end_send`."""

    def end_send(self, next_number: int) -> None:
        """Numbers below `next_number` were used."""

    def received(self, ranges: Ranges, *, eliciting: bool) -> None:
        """The connection itself opened these packets; the engine acknowledges them."""

    def set_keys(self, keys: OneRtt) -> None:
        """Keys of the next phase."""

    def set_ids(self, own_ids: Sequence[bytes], peer_id: bytes) -> None: ...

    def set_route(
        self,
        sock: UdpSocket,
        peer: tuple[str, int],
        local: LocalAddress | None,
        *,
        usable: bool,
        fresh: bool,
    ) -> None:
        """Send there, if `usable`; `fresh` says that it is another path."""

    def set_size(self, packet_size: int, mtu: int) -> None: ...

    def set_rules(self, rules: CarriedRules) -> None: ...

    def unroute(self) -> None:
        """Packets for the session's addresses are another session's from now on."""

    def stats(self) -> CarriedStats: ...

    def detach(self) -> HandedBack:
        """Give the connection back; this object is of no use any more."""


class CarriedOwner(Protocol):
    """Who is told what an engine leaves to the connection; on the event loop, in batches."""

    def carried_datagrams(self, payloads: list[bytes]) -> None:
        """Payloads of DATAGRAM frames that did not pass the rules, or are not of the tunnel."""

    def carried_acked(self, ranges: Ranges, delay: float) -> None:
        """Packets that the connection itself sent were acknowledged, `delay` seconds after they
        arrived."""

    def carried_event(self, kind: EventKind, value: int) -> None: ...


class OffloadEngine(Protocol):
    """What carries connections; `qvpn_core.datapath.engine.NativeEngine` is one."""

    def add_socket(self, sock: UdpSocket, receive: Callable[[Received], None]) -> None:
        """Read the socket from now on; what is not the engine's is given to `receive`."""

    def remove_socket(self, sock: UdpSocket) -> None:
        """Leave the socket alone again. Idempotent."""

    def attach(self, setup: CarriedSetup, owner: CarriedOwner) -> Carried:
        """Carry a connection. Raises ValueError for what the engine cannot."""
