"""Address pools: which addresses a CIDR offers and which free one comes next. Pure, no storage.

The gateway owns the first host address of each pool. The network address (for IPv6 the
Subnet-Router anycast address, RFC 4291 section 2.6.1) and the IPv4 broadcast address are never
leased. This file refuses to remember leases: the registry does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)

from qvpn_core.errors import QvpnError

IPNetwork = IPv4Network | IPv6Network
IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface

#: Host bits that a pool needs: room for its network, the gateway, one device, a broadcast address.
MIN_HOST_BITS = 2


class PoolExhausted(QvpnError):
    """Every address of a pool is leased."""

    reason = "pool-exhausted"


@dataclass(frozen=True, slots=True)
class Pool:
    """The addresses of `network` as the gateway hands them out."""

    network: IPNetwork

    @property
    def version(self) -> int:
        """4 or 6."""
        return self.network.version

    @property
    def gateway(self) -> IPAddress:
        """The gateway's own address: the first host address."""
        return self.network.network_address + 1

    @property
    def gateway_interface(self) -> IPInterface:
        """The gateway's own address with the pool's prefix length, as the TUN carries it."""
        return ip_interface(f"{self.gateway}/{self.network.prefixlen}")

    @property
    def first(self) -> int:
        """The lowest address for a device, as a number."""
        return int(self.network.network_address) + 2

    @property
    def last(self) -> int:
        """The highest address for a device, as a number."""
        end = int(self.network.broadcast_address)
        return end - 1 if self.version == 4 else end

    @property
    def capacity(self) -> int:
        """How many devices fit."""
        return self.last - self.first + 1

    def offers(self, address: IPAddress) -> bool:
        """Whether `address` is one that this pool may lease to a device."""
        return address.version == self.version and self.first <= int(address) <= self.last

    def overlaps(self, network: IPNetwork) -> bool:
        """Whether `network`, of either family, shares an address with this pool."""
        return overlap(self.network, network)

    def next_free(self, taken: Iterable[IPAddress]) -> IPAddress:
        """The lowest address not in `taken`, which comes in ascending order.

        Addresses that this pool does not offer are ignored. Raises PoolExhausted.
        """
        candidate = self.first
        for address in taken:
            number = int(address)
            if address.version != self.version or number < candidate:
                continue
            if number > candidate:
                break
            candidate += 1
        if candidate > self.last:
            raise PoolExhausted(
                f"all {self.capacity} addresses of {self.network} are taken",
                "revoke devices that are no longer used, or choose a larger pool",
            )
        return self._address(candidate)

    def _address(self, number: int) -> IPAddress:
        # ip_address() guesses the version from the size, wrongly for a small IPv6 number.
        return ip_address(number.to_bytes(4 if self.version == 4 else 16, "big"))


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """Whether two prefixes of any families share an address."""
    return one.version == other.version and one.overlaps(other)
