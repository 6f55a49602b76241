"""What a tunnel wants of the machine's resolver: servers, and which names they are for. Pure.

A plan may come from a less trusted process, and its names end up in configuration files, so it
refuses whatever is not plainly an address or a domain name. Choosing a plan is the work of
:mod:`qvpn_core.client.dns_policy`, applying it that of the rest of this package.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qvpn_core.masque.domain import check_domain
from qvpn_core.net.plan import IPAddress

#: The root of all names: a plan with it among its domains takes every name.
ROOT: Final = "."
MAX_SERVERS: Final = 8
MAX_DOMAINS: Final = 64
MAX_SEARCH: Final = 16


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """Servers for plain DNS on port 53, the first preferred, and the names they are asked for.

    `domains` are routing domains: they and all below them are asked of `servers`; ROOT means all
    names. `search` completes single-label names, and is for `servers` as well. Names are kept in
    lower case without a last dot. Raises ValueError for what is not that, or too much of it.
    """

    servers: tuple[IPAddress, ...]
    domains: tuple[str, ...] = (ROOT,)
    search: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.servers) <= MAX_SERVERS:
            raise ValueError(f"{len(self.servers)} name servers")
        if not 0 < len(self.domains) <= MAX_DOMAINS or len(self.search) > MAX_SEARCH:
            raise ValueError(f"{len(self.domains)} domains and {len(self.search)} to search")
        for server in self.servers:
            if not is_far(server):
                raise ValueError(f"{server} cannot be a name server in a tunnel")
        if ROOT in _normal(self.search):
            raise ValueError("the root is not a domain to search")
        object.__setattr__(self, "servers", tuple(dict.fromkeys(self.servers)))
        object.__setattr__(self, "domains", _normal(self.domains))
        object.__setattr__(self, "search", _normal(self.search))

    @property
    def everything(self) -> bool:
        """Whether all names are asked of these servers."""
        return ROOT in self.domains


def is_far(server: IPAddress) -> bool:
    """Whether an address can be that of a host behind a tunnel."""
    mapped = server.version == 6 and (server.ipv4_mapped or server.scope_id)
    return not (
        mapped
        or server.is_unspecified
        or server.is_loopback
        or server.is_multicast
        or server.is_link_local
        or server.packed == b"\xff" * 4
    )


def _normal(names: Iterable[str]) -> tuple[str, ...]:
    """Names in one spelling, each once, in order. Raises ValueError for what is no name."""
    return tuple(
        dict.fromkeys(check_domain(name).removesuffix(".").lower() or ROOT for name in names)
    )
