"""Where a device may send: every IP address has one verdict, found by one binary search.

The address space is cut at the edges of all prefixes that matter and each piece gets the verdict of
the last layer that covers it, once for each policy that live sessions have. A packet then costs one
bisection over its raw destination, however many prefixes there are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import Enum
from ipaddress import ip_network
from itertools import groupby
from operator import itemgetter
from weakref import WeakValueDictionary

from qvpn_server.config import GatewayConfig
from qvpn_server.pool import IPNetwork
from qvpn_server.registry.records import DevicePolicy


class Verdict(Enum):
    """What happens to a packet for an address. The value is the reason under which it counts."""

    FORWARD = "forwarded"
    #: Another device, while devices are isolated; or what only other groups may reach.
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
        bits = 32 if version == 4 else 128
        own = (layer for layer in layers if layer[0].version == version)
        # Neighbours with the same verdict are one layer, of spans that do not touch.
        merged = [
            (verdict, _spans(network for network, _ in group))
            for verdict, group in groupby(own, itemgetter(1))
        ]
        edges = {0, *(edge for _, spans in merged for edge in spans)}
        self.starts: list[bytes] = []
        self.verdicts: list[Verdict] = []
        for edge in sorted(edges - {1 << bits}):
            # An odd number of edges before it: within a span.
            verdict = next(
                (verdict for verdict, spans in reversed(merged) if bisect_right(spans, edge) % 2),
                Verdict.NO_ROUTE,
            )
            if not self.verdicts or self.verdicts[-1] is not verdict:
                self.starts.append(edge.to_bytes(bits // 8, "big"))
                self.verdicts.append(verdict)

    def verdict(self, destination: bytes) -> Verdict:
        """The verdict for a destination of 4 or 16 bytes."""
        return self.verdicts[bisect_right(self.starts, destination) - 1]


class Destinations:
    """The tables of both families, for the sessions of one policy."""

    __slots__ = ("__weakref__", "ipv4", "ipv6")

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.ipv4 = DestinationTable(4, layers)
        self.ipv6 = DestinationTable(6, layers)


class DestinationCache:
    """The tables of the policies that live sessions have, each made once."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._made: WeakValueDictionary[DevicePolicy, Destinations] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._made)

    def of(self, policy: DevicePolicy) -> Destinations:
        """Where a device with `policy` may send."""
        made = self._made.get(policy)
        if made is None:
            made = self._made[policy] = Destinations(layers_of(self._config, policy))
        return made


def layers_of(config: GatewayConfig, policy: DevicePolicy) -> Sequence[Layer]:
    """The rules for a device with `policy`, weakest first.

    What is routed here, but not to this device, is prohibited; what is not routed has no route.
    """
    between_devices = Verdict.PROHIBITED if config.isolation else Verdict.FORWARD
    return [
        *((route, Verdict.PROHIBITED) for route in (*config.routes, *policy.routes)),
        *((network, Verdict.FORWARD) for network in policy.destinations),
        *((pool.network, between_devices) for pool in config.pools),
        *((ip_network(address), Verdict.FORWARD) for address in config.gateway_addresses),
        *((network, Verdict.DISCARD) for network in NEVER_FORWARDED),
    ]


def _spans(networks: Iterable[IPNetwork]) -> list[int]:
    """The union of `networks` as ascending edges: the first address in, the first one out, ..."""
    edges: list[int] = []
    spans = sorted((int(n.network_address), int(n.broadcast_address) + 1) for n in networks)
    for start, end in spans:
        if edges and start <= edges[-1]:
            edges[-1] = max(edges[-1], end)
        else:
            edges += (start, end)
    return edges
