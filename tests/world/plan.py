"""The address plan of the test world: who has which address on which link.

Only names and numbers, taken from the documentation ranges (RFC 5737, RFC 3849) and, for the home
networks, from private space, so nothing here can be mistaken for a real host. Nothing is configured
here; `topology` does that.

::

    client eth0 ── lan0 router wan0 ──(relay)── isp0 internet dc0 ── eth0 gateway
    client2 eth0 ── lan1 router                 lo: the SITES
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Lan:
    """One home network: the router's address in it and those its client can take.

    IPv4 is behind the router's NAT; IPv6 is global, routed, behind a stateful firewall.
    """

    net4: str
    net6: str

    @property
    def router4(self) -> str:
        return f"{self.net4}.1"

    @property
    def router6(self) -> str:
        return f"{self.net6}::1"

    @property
    def prefix6(self) -> str:
        return f"{self.net6}::/64"

    def client4(self, number: int = 2) -> str:
        """The client's address when it is host `number` (2 to 254)."""
        return f"{self.net4}.{number}"

    def client6(self, number: int = 2) -> str:
        """The client's address when it is host `number`."""
        return f"{self.net6}::{number:x}"


LANS: Final = (
    Lan("192.168.50", "2001:db8:50"),
    Lan("192.168.60", "2001:db8:60"),
)

#: The first client's addresses until it is moved.
CLIENT4: Final = LANS[0].client4()
CLIENT6: Final = LANS[0].client6()

#: The router's side of its uplink: the source the internet sees for everything behind the NAT.
ROUTER4: Final = "203.0.113.2"
ROUTER6: Final = "2001:db8:1::2"
#: The provider's side of that link.
ISP4: Final = "203.0.113.1"
ISP6: Final = "2001:db8:1::1"

GATEWAY4: Final = "203.0.113.130"
GATEWAY6: Final = "2001:db8:2::2"
#: The gateway's default routers.
DATACENTRE4: Final = "203.0.113.129"
DATACENTRE6: Final = "2001:db8:2::1"


@dataclass(frozen=True, slots=True)
class Site:
    """One host of the internet, reachable with and without a tunnel. All run all services."""

    name: str
    v4: str
    v6: str

    def address(self, version: int) -> str:
        """Its IPv4 or its IPv6 address."""
        return self.v4 if version == 4 else self.v6


#: Two networks of sites, so that one can be tunnelled and the other left out.
NETS: Final = (("192.0.2.0/24", "2001:db8:a::/64"), ("198.51.100.0/24", "2001:db8:b::/64"))
SITES: Final = (
    Site("www.alpha.test", "192.0.2.10", "2001:db8:a::10"),
    Site("files.alpha.test", "192.0.2.20", "2001:db8:a::20"),
    Site("dns.alpha.test", "192.0.2.53", "2001:db8:a::53"),
    Site("www.beta.test", "198.51.100.10", "2001:db8:b::10"),
    Site("files.beta.test", "198.51.100.20", "2001:db8:b::20"),
    Site("dns.beta.test", "198.51.100.53", "2001:db8:b::53"),
)
#: A site in either network, for tests that need just one.
ALPHA: Final = SITES[0]
BETA: Final = SITES[3]
#: The resolvers of a company behind the tunnel and of the client's provider.
COMPANY_DNS: Final = SITES[2]
PROVIDER_DNS: Final = SITES[5]

#: Host names that the DNS service knows, with their addresses.
NAMES: Final = {site.name: (site.v4, site.v6) for site in SITES} | {
    "gateway.test": (GATEWAY4, GATEWAY6),
    "router.test": (ROUTER4, ROUTER6),
}

HTTP_PORT: Final = 80
ECHO_PORT: Final = 7
DNS_PORT: Final = 53
