"""Live sessions: who holds which address, and one session per device. Pure bookkeeping, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qvpn_core.transport.interface import HttpTunnel
from qvpn_server.destinations import Destinations
from qvpn_server.pool import IPAddress
from qvpn_server.ratelimit import TokenBucket
from qvpn_server.registry.records import DevicePolicy

#: ICMP errors towards one device: per second in the long run, and at once.
ICMP_RATE = 100.0
ICMP_BURST = 50.0


@dataclass(slots=True, eq=False)
class Session:
    """One live tunnel of one device."""

    #: The device's number in the registry, and its name.
    id: int
    device: str
    addresses: tuple[IPAddress, ...]
    tunnel: HttpTunnel
    #: When it began, in UNIX seconds.
    since: float
    #: The largest packet in bytes that the tunnel takes now.
    mtu: int
    #: The device's groups, what they let it do, and where it may send.
    groups: tuple[str, ...]
    policy: DevicePolicy
    destinations: Destinations
    #: Tells the device that `policy` has changed from the one that is passed.
    tell: Callable[[DevicePolicy], None]
    #: Packets that the gateway dropped, by reason; those of the tunnel itself come on top.
    drops: dict[str, int] = field(default_factory=dict)
    icmp: TokenBucket = field(default_factory=lambda: TokenBucket(ICMP_RATE, ICMP_BURST))
    #: The assigned addresses as they stand in a packet; empty without one of that family.
    source4: bytes = field(init=False)
    source6: bytes = field(init=False)

    def __post_init__(self) -> None:
        packed = {address.version: address.packed for address in self.addresses}
        self.source4 = packed.get(4, b"")
        self.source6 = packed.get(6, b"")

    def drop(self, reason: str, count: int = 1) -> None:
        """Count packets dropped for `reason`."""
        self.drops[reason] = self.drops.get(reason, 0) + count


class SessionTable:
    """All live sessions, by device and by address."""

    def __init__(self) -> None:
        #: From an address as it stands in a packet to its session; read by the packet path.
        self.by_address: dict[bytes, Session] = {}
        self._by_device: dict[int, Session] = {}

    def __len__(self) -> int:
        return len(self._by_device)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_device.values()))

    def of_device(self, number: int) -> Session | None:
        """The live session of the device that has this number in the registry."""
        return self._by_device.get(number)

    def add(self, session: Session) -> Session | None:
        """Enter a session. Returns the one of the same device that it replaces, for closing.

        From here on packets for the device's addresses go to the new session.
        """
        replaced = self._by_device.get(session.id)
        if replaced is not None:
            self.remove(replaced)
        self._by_device[session.id] = session
        for address in session.addresses:
            self.by_address[address.packed] = session
        return replaced

    def remove(self, session: Session) -> bool:
        """Take a session out, unless another one has replaced it. Returns whether it was there."""
        if self._by_device.get(session.id) is not session:
            return False
        del self._by_device[session.id]
        for address in session.addresses:
            if self.by_address.get(address.packed) is session:
                del self.by_address[address.packed]
        return True
