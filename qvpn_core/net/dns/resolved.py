"""systemd-resolved: servers and domains for our link alone, by its D-Bus interface.

By D-Bus and not by resolvectl(1): one connection instead of a process for each setting, errors that
have names, and every interface to it is documented as stable (org.freedesktop.resolve1(5)). What we
set belongs to the link and goes with it, so that no crash can leave it behind.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net.dns.bus import Bus, BusError
from qvpn_core.net.dns.link import Link
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.dns.records import DnsRecord, Held, RevertLink
from qvpn_core.net.dns.resolv_conf import PATH
from qvpn_core.net.plan import IPAddress

SERVICE: Final = "org.freedesktop.resolve1"
_PATH: Final = "/org/freedesktop/resolve1"
_MANAGER: Final = "org.freedesktop.resolve1.Manager"
_LINK: Final = "org.freedesktop.resolve1.Link"
#: The link is gone, or the service: so is what we set.
_GONE: Final = frozenset(
    {
        "org.freedesktop.resolve1.NoSuchLink",
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
    }
)


class Resolved:
    """See the module. It asks each server for the names that are its own."""

    routes_domains: Final = True
    #: It writes the second at every change of any link, and when it starts.
    paths: Final = (PATH, Path("/run/systemd/resolve/resolv.conf"))

    def prepare(self, link: Link, held: Held) -> tuple[DnsRecord, ...]:
        """What undoes `apply`."""
        del held
        return (RevertLink(link.interface, link.index),)

    def apply(self, link: Link, plan: DnsPlan) -> None:
        """Set the link. Raises DnsSetupFailed, and then nothing is set for it."""
        try:
            with Bus.connect() as bus:
                try:
                    for method, signature, value in _settings(plan):
                        bus.call(
                            SERVICE, _PATH, _MANAGER, method, f"i{signature}", link.index, value
                        )
                except BusError:
                    _revert(bus, link.index)
                    raise
        except BusError as error:
            raise _refused(error, link) from error

    def holds(self, link: Link, plan: DnsPlan) -> bool:
        """Whether the link has what `apply` sets. Raises DnsSetupFailed when it does not say."""
        try:
            with Bus.connect() as bus:
                (path,) = bus.call(SERVICE, _PATH, _MANAGER, "GetLink", "i", link.index)
                found = bus.get_all(SERVICE, path, _LINK)
        except BusError as error:
            if error.name in _GONE:
                return False
            raise _refused(error, link) from error
        return (
            [(family, bytes(packed)) for family, packed in found["DNS"]] == _addresses(plan.servers)
            and sorted(found["Domains"]) == sorted(_domains(plan))
            and found["DefaultRoute"] == plan.everything
        )


def revert(record: RevertLink) -> None:
    """Undo `apply`, unless the device is gone and with it everything. Raises DnsSetupFailed."""
    try:
        if socket.if_nametoindex(record.interface) != record.index:
            return
    except OSError:
        return
    try:
        with Bus.connect() as bus:
            if bus.where(SERVICE) == "here":
                bus.call(SERVICE, _PATH, _MANAGER, "RevertLink", "i", record.index)
    except BusError as error:
        if error.name not in _GONE:
            raise _refused(error, Link(record.interface, record.index)) from error


def _settings(plan: DnsPlan) -> tuple[tuple[str, str, Any], ...]:
    """In the order that asks no server for the wrong name on the way: the servers come last.

    Link-local name resolution has no meaning in a tunnel, which also encrypts. DNSSEC stays as the
    administrator has it.
    """
    return (
        ("SetLinkLLMNR", "s", "no"),
        ("SetLinkMulticastDNS", "s", "no"),
        ("SetLinkDNSOverTLS", "s", "no"),
        ("SetLinkDefaultRoute", "b", plan.everything),
        ("SetLinkDomains", "a(sb)", _domains(plan)),
        ("SetLinkDNS", "a(iay)", _addresses(plan.servers)),
    )


def _domains(plan: DnsPlan) -> list[tuple[str, bool]]:
    """(name, whether it only routes) for routing and search domains."""
    routing = [(name, True) for name in plan.domains if name not in plan.search]
    return [*routing, *((name, False) for name in plan.search)]


def _addresses(servers: tuple[IPAddress, ...]) -> list[tuple[int, bytes]]:
    families = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
    return [(families[server.version], server.packed) for server in servers]


def _revert(bus: Bus, index: int) -> None:
    try:
        bus.call(SERVICE, _PATH, _MANAGER, "RevertLink", "i", index)
    except BusError:
        return  # the first error is the one to tell


def _refused(error: BusError, link: Link) -> DnsSetupFailed:
    if error.name == "org.freedesktop.resolve1.LinkBusy":
        return DnsSetupFailed(
            f"systemd-networkd manages {link.interface}", "exclude it in its .network file"
        )
    return DnsSetupFailed(
        f"systemd-resolved did not take our name servers ({error})",
        "see: systemctl status systemd-resolved",
    )
