"""Where a device may send: every IP address has one verdict, found by one binary search.

The address space is cut at the edges of all prefixes that matter and each piece gets the verdict of
the last layer that covers it, once, when the gateway starts. A packet then costs one bisection over
its raw destination, however many routes there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import Enum
from ipaddress import ip_network

from qvpn_server.config import GatewayConfig
from qvpn_server.pool import IPNetwork


class Verdict(Enum):
    """What happens to a packet for an address. The value is the reason under which it counts."""

    FORWARD = "forwarded"
    #: Another device, while devices are isolated.
    PROHIBITED = "prohibited"
    #: Outside the advertised routes.
    NO_ROUTE = "no-route"
    #: An address that no router forwards; dropped without an answer.
    DISCARD = "not-forwardable"


#: Unspecified, loopback, link-local, multicast, reserved and broadcast; for IPv6 also the
#: IPv4-mapped addresses (RFC 6890 section 2.2, RFC 4291 section 2.5, RFC 9484 section 7).
NEVER_FORWARDED = (
    *map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")),
    *map(ip_network, ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8")),
)

Layer = tuple[IPNetwork, Verdict]


class DestinationTable:
    """The verdicts of one address family. `starts` and `verdicts` are parallel, for inlining."""

    __slots__ = ("starts", "verdicts")

    def __init__(self, version: int, layers: Iterable[Layer]) -> None:
        """Later layers win; what none covers is NO_ROUTE. Other families' layers are ignored."""
        own = [layer for layer in layers if layer[0].version == version]
        bits = 32 if version == 4 else 128
        spans = [
            (int(network.network_address), int(network.broadcast_address), verdict)
            for network, verdict in own
        ]
        edges = {0, *(first for first, _, _ in spans), *(last + 1 for _, last, _ in spans)}
        self.starts: list[bytes] = []
        self.verdicts: list[Verdict] = []
        for edge in sorted(edges - {1 << bits}):
            verdict = next(
                (verdict for first, last, verdict in reversed(spans) if first <= edge <= last),
                Verdict.NO_ROUTE,
            )
            if not self.verdicts or self.verdicts[-1] is not verdict:
                self.starts.append(edge.to_bytes(bits // 8, "big"))
                self.verdicts.append(verdict)

    def verdict(self, destination: bytes) -> Verdict:
        """The verdict for a destination of 4 or 16 bytes."""
        return self.verdicts[bisect_right(self.starts, destination) - 1]


def layers_of(config: GatewayConfig) -> Sequence[Layer]:
    """A configuration's rules, weakest first."""
    between_devices = Verdict.PROHIBITED if config.isolation else Verdict.FORWARD
    return [
        *((route, Verdict.FORWARD) for route in config.routes),
        *((pool.network, between_devices) for pool in config.pools),
        *((ip_network(address), Verdict.FORWARD) for address in config.gateway_addresses),
        *((network, Verdict.DISCARD) for network in NEVER_FORWARDED),
    ]
