"""Which names a tunnel's servers are asked for: what a gateway offers, against what the user wants.

Pure. A gateway's configurations (DNS_ASSIGN) each have servers and the domains that these answer
for. One link has one set of servers, so one configuration is chosen, and those that share its
servers. With everything in the tunnel the gateway decides, and usually its servers get all names.
With ``only`` the user has said that most traffic is not the gateway's business, and most names are
not either: its servers get the domains that they alone know, and never all. A server that would not
be asked through the tunnel is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qvpn_core.client.planner import RoutePolicy
from qvpn_core.masque.dns import DNS_PORT, DnsConfiguration
from qvpn_core.net.dns.plan import (
    MAX_DOMAINS,
    MAX_SEARCH,
    MAX_SERVERS,
    ROOT,
    DnsPlan,
    is_far,
)
from qvpn_core.net.plan import IPAddress, NetworkPlan

_NO_OFFER: Final = "the gateway offers no name servers"


@dataclass(frozen=True, slots=True)
class DnsChoice:
    """What to ask the tunnel's servers for, None for nothing, and why, in words for a person."""

    plan: DnsPlan | None
    reason: str


def choose_dns(
    offer: Sequence[DnsConfiguration],
    policy: RoutePolicy,
    network: NetworkPlan,
    *,
    wanted: bool = True,
) -> DnsChoice:
    """Choose for a tunnel with `network` in force; `wanted` is the profile's word."""
    if not wanted:
        return DnsChoice(None, "the profile leaves name servers alone")
    if not any(configuration.nameservers for configuration in offer):
        return DnsChoice(None, _NO_OFFER)
    usable: dict[tuple[IPAddress, ...], list[DnsConfiguration]] = {}
    refusal = _NO_OFFER
    for configuration in offer:
        servers, why_not = _servers(configuration, network)
        if servers:
            usable.setdefault(servers, []).append(configuration)
        refusal = why_not or refusal
    if not usable:
        return DnsChoice(None, refusal)
    if policy.mode == "only":
        return _split(usable, "the profile's routes are for some networks only")
    for servers, group in usable.items():
        if any(configuration.answers_everything for configuration in group):
            plan = _plan(servers, group, everything=True)
            return DnsChoice(plan, "all names are asked of the gateway's name servers")
    return _split(usable, "the gateway's name servers answer for some domains only")


def _split(usable: dict[tuple[IPAddress, ...], list[DnsConfiguration]], because: str) -> DnsChoice:
    for servers, group in usable.items():
        plan = _plan(servers, group, everything=False)
        if plan is not None:
            others = len(usable) - 1
            more = f"; {others} more sets of servers cannot be used beside them" if others else ""
            return DnsChoice(plan, f"{because}, and so are its name servers{more}")
    return DnsChoice(None, f"{because}, and its name servers have no domains of their own")


def _plan(
    servers: tuple[IPAddress, ...], group: list[DnsConfiguration], *, everything: bool
) -> DnsPlan | None:
    """None where there would be no domains."""
    internal = [name for configuration in group for name in configuration.internal_domains]
    searched = [name for configuration in group for name in configuration.search_domains]
    search = _bare(searched)[:MAX_SEARCH]
    # What is searched for here is looked for there: a search domain is an internal one too.
    domains = _bare([*internal, *search])[: MAX_DOMAINS - 1]
    if everything:
        domains = (ROOT, *domains)
    return DnsPlan(servers, domains, search) if domains else None


def _bare(names: Sequence[str]) -> tuple[str, ...]:
    """Names in one spelling, each once, without the root."""
    spelled = (name.removesuffix(".").lower() for name in names)
    return tuple(dict.fromkeys(name for name in spelled if name))


def _servers(
    configuration: DnsConfiguration, network: NetworkPlan
) -> tuple[tuple[IPAddress, ...], str]:
    """The addresses to ask, the preferred first, and why others are not asked."""
    servers: list[IPAddress] = []
    refusal = ""
    for nameserver in sorted(configuration.nameservers, key=lambda server: server.priority):
        if not nameserver.unencrypted or nameserver.port != DNS_PORT:
            refusal = "the gateway's name servers do not speak plain DNS on port 53"
            continue
        for address in nameserver.addresses:
            if is_far(address) and _uses_tunnel(network, address):
                servers.append(address)
            else:
                refusal = f"the name server {address} is not reached through the tunnel"
    return tuple(dict.fromkeys(servers))[:MAX_SERVERS], refusal


def _uses_tunnel(network: NetworkPlan, address: IPAddress) -> bool:
    """Whether the longest match says so, and the address is not this device's own."""
    if any(address == own.ip for own in network.addresses):
        return False
    matching = [route for route in network.routes if address in route.prefix]
    best = max(matching, key=lambda route: route.prefix.prefixlen, default=None)
    return best is not None and best.kind == "tunnel"
