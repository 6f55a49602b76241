"""The seam between a QUIC connection and an engine that takes its 1-RTT data packets over.

As a kernel offloads to a network card: the connection stays the authority for handshake, keys,
streams, connection IDs, path, timers and close; the engine handles 1-RTT packets of DATAGRAM, ACK,
PADDING and PING frames, and hands every other one up as it came. Packet numbers are shared, under
`reserve` and `commit`. Nothing here does I/O; the engine is in `qvpn_core.datapath.native`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qvpn_core.transport.udp import LocalAddress, UdpSocket


@dataclass(frozen=True, slots=True)
class PhaseKeys:
    """Keys and IVs of both directions in one key phase (RFC 9001 section 5.1)."""

    send_key: bytes
    send_iv: bytes
    receive_key: bytes
    receive_iv: bytes


@dataclass(frozen=True, slots=True)
class ConnectionKeys:
    """What seals and opens packets now, and after the next update.

    `suite` is the TLS number of the cipher suite; `generation` counts updates; header protection
    keys stay for the life of the connection.
    """

    suite: int
    send_header: bytes
    receive_header: bytes
    generation: int
    current: PhaseKeys
    next: PhaseKeys


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """What an engine must follow: whatever changes while a connection lives, but for the keys."""

    socket: UdpSocket
    #: Where packets go: as the socket module writes addresses.
    peer: tuple[Any, ...]
    local: LocalAddress | None
    own_ids: tuple[bytes, ...]
    peer_id: bytes
    #: The largest UDP payload in bytes.
    packet_size: int
    #: How often keys were updated.
    generation: int


@dataclass(frozen=True, slots=True)
class Handover:
    """The books of the 1-RTT packet number space, at the moment when they change hands.

    `received` are ranges of packet numbers, first and last of each, ascending; numbers below
    `floor` count as received as well. `unacknowledged`
    are numbers of packets that the connection sent and still wants to hear about. `went_up` are
    numbers of received packets that were handed up and that it may not have looked at yet.
    """

    next_number: int
    received: Sequence[tuple[int, int]]
    floor: int = 0
    unacknowledged: Sequence[int] = ()
    went_up: Sequence[int] = ()


class Offload(Protocol):
    """An engine's part in one connection. All calls happen on the event loop."""

    def follow(self, state: ConnectionState | None) -> None:
        """Called when anything in `state` has changed; with None nothing may be offloaded now."""

    def reserve(self) -> tuple[int, int]:
        """The next packet number, and the keys' generation; the engine sends nothing meanwhile."""

    def commit(self, next_number: int) -> None:
        """All numbers below were used, and sent: the engine goes on."""

    def note_received(self, ranges: Sequence[tuple[int, int]]) -> None:
        """The connection received these packet numbers, first and last: acknowledge them."""

    @property
    def expected_number(self) -> int:
        """One more than the largest packet number received; others are decoded by it."""

    @property
    def last_received(self) -> float:
        """When the engine received the last valid packet, in the loop's time; 0.0 for never."""

    @property
    def rtt(self) -> float:
        """Smoothed round-trip time in seconds; 0.0 before the first sample."""

    def traffic(self) -> tuple[int, int, int, int, int]:
        """Since the last call: packets and bytes sent and received, and packets not sent."""

    def close(self) -> None:
        """The connection ended, or the engine must let go of it. Idempotent."""
