"""Who resolves names on this machine, and so whom to tell: facts first, then one pure decision.

The file that programs read decides, not what is installed or running: a resolver that nobody asks
would be told in vain. Changes nothing and starts nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net.dns import networkmanager, resolv_conf, resolvconf, resolved
from qvpn_core.net.dns.bus import Bus, BusError, Where
from qvpn_core.net.dns.resolv_conf import PATH, Author
from qvpn_core.net.dns.resolvconf import Flavour

Backend = Literal["systemd-resolved", "NetworkManager", "resolvconf", "file"]

_NSSWITCH: Final = Path("/etc/nsswitch.conf")
_FLAVOURS: Final[dict[Flavour, str]] = {
    "openresolv": "openresolv",
    "debian": "Debian's resolvconf, which keeps other servers behind the tunnel's",
}
_PERHAPS_MERGED: Final = (Author.RESOLVCONF, Author.NETWORK_MANAGER)
_DNS_MANAGER: Final = "org.freedesktop.NetworkManager.DnsManager"


@dataclass(frozen=True, slots=True)
class Detection:
    """Whom to tell about the tunnel's name servers, and why, in words for a log."""

    backend: Backend
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides."""

    author: Author
    #: The C library asks systemd-resolved before it looks at the file (nss-resolve(8)).
    nss_resolve: bool = False
    resolved: Where = "absent"
    networkmanager: Where = "absent"
    #: NetworkManager's Mode and RcManager, empty when it does not run here.
    nm_mode: str = ""
    nm_rc_manager: str = ""
    #: Which resolvconf(8) there is, if one.
    resolvconf: Flavour | None = None
    #: Why the system bus could not be asked.
    bus_error: str = ""


def detect() -> Detection:
    """Look, and decide. Raises DnsSetupFailed where no choice would be right."""
    if resolv_conf.is_shared(resolv_conf.read().place):
        raise DnsSetupFailed(
            f"this network namespace shares {PATH} with the rest of the machine",
            "give it its own below /etc/netns and use ip netns exec, or leave DNS alone",
        )
    return decide(_look())


def decide(facts: Facts) -> Detection:
    """The choice. Raises DnsSetupFailed."""
    match facts.author:
        case Author.US:
            return Detection("file", f"{PATH} is qvpn's already")
        case Author.RESOLVED_STUB:
            if facts.resolved != "here":
                raise _no_resolved(facts)
            return Detection("systemd-resolved", f"{PATH} leads to systemd-resolved")
        case Author.NETWORK_MANAGER:
            return _networkmanager(facts)
        case Author.RESOLVCONF:
            if facts.resolvconf is not None:
                return Detection("resolvconf", f"{PATH} is made by {_FLAVOURS[facts.resolvconf]}")
            return _file(facts, f"{PATH} was made by resolvconf, which is not here any more")
        case Author.RESOLVED_UPLINK:
            return _file(facts, f"{PATH} only lists the servers that systemd-resolved uses")
        case Author.ANYBODY:
            return _file(facts, f"no resolver is in charge of {PATH}")


def _networkmanager(facts: Facts) -> Detection:
    if facts.networkmanager != "here":
        return _file(facts, f"{PATH} was made by NetworkManager, which does not run here")
    if facts.nm_rc_manager == "unmanaged" or facts.nm_mode == "none":
        return _file(facts, f"NetworkManager is told to leave {PATH} alone")
    if facts.nm_rc_manager == "resolvconf" and facts.resolvconf is not None:
        return Detection("resolvconf", f"NetworkManager leaves {PATH} to resolvconf")
    return Detection("NetworkManager", f"{PATH} is made by NetworkManager")


def _file(facts: Facts, reason: str) -> Detection:
    if facts.nss_resolve and facts.resolved == "here":
        return Detection(
            "systemd-resolved",
            f"most programs ask systemd-resolved (nsswitch.conf), although {reason}; those that "
            f"read {PATH} themselves go on asking the servers in it",
        )
    return Detection("file", reason)


def _no_resolved(facts: Facts) -> DnsSetupFailed:
    hint = f"start it with: systemctl start systemd-resolved; or mend {PATH}; or leave DNS alone"
    if facts.bus_error:
        return DnsSetupFailed(f"systemd-resolved cannot be reached: {facts.bus_error}", hint)
    if facts.resolved == "elsewhere":
        return DnsSetupFailed(
            f"{PATH} leads to systemd-resolved, which serves another network namespace",
            "give this one its own below /etc/netns and use ip netns exec",
        )
    return DnsSetupFailed(f"{PATH} leads to systemd-resolved, which does not run", hint)


def _look() -> Facts:
    author = resolv_conf.read().author
    if author is Author.US:
        return Facts(author)
    resolved_is: Where = "absent"
    networkmanager_is: Where = "absent"
    properties: dict[str, str] = {}
    trouble = ""
    try:
        with Bus.connect() as bus:
            resolved_is = bus.where(resolved.SERVICE)
            networkmanager_is = bus.where(networkmanager.SERVICE)
            if networkmanager_is == "here":
                service = networkmanager.SERVICE
                path = "/org/freedesktop/NetworkManager/DnsManager"
                properties = bus.get_all(service, path, _DNS_MANAGER)
    except BusError as error:
        trouble = str(error)
    return Facts(
        author,
        nss_resolve=_nss_resolve(),
        resolved=resolved_is,
        networkmanager=networkmanager_is,
        nm_mode=properties.get("Mode", ""),
        nm_rc_manager=properties.get("RcManager", ""),
        resolvconf=resolvconf.flavour() if author in _PERHAPS_MERGED else None,
        bus_error=trouble,
    )


def _nss_resolve() -> bool:
    """Whether nsswitch.conf(5) has ``resolve`` among the sources of hosts."""
    try:
        text = _NSSWITCH.read_text(errors="replace")
    except OSError:
        return False
    hosts = re.search(r"^\s*hosts:([^#\n]*)", text, re.MULTILINE)
    return hosts is not None and "resolve" in re.sub(r"\[[^]]*\]", " ", hosts[1]).split()
