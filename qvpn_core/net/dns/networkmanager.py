"""NetworkManager, where it writes /etc/resolv.conf itself: its global DNS configuration.

GlobalDnsConfiguration (org.freedesktop.NetworkManager) goes before what connections bring. Writing
the file instead would last until NetworkManager's next event. It keeps the value on disk, over
reboots, so ours carries a mark: a domain that cannot exist (RFC 6761 section 6.4) and is never
asked for. A configuration from NetworkManager.conf is the administrator's, and is refused to us.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net.dns import resolv_conf
from qvpn_core.net.dns.bus import Bus, BusError
from qvpn_core.net.dns.link import Link
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.dns.records import (
    MAX_NAMES,
    DnsRecord,
    GlobalDns,
    GlobalDomain,
    RestoreGlobalDns,
)
from qvpn_core.net.dns.resolv_conf import MAX_ASKED, PATH

SERVICE: Final = "org.freedesktop.NetworkManager"
_PATH: Final = "/org/freedesktop/NetworkManager"
_PROPERTY: Final = "GlobalDnsConfiguration"
#: The domain that marks a configuration as ours.
_MARK: Final = "qvpn.invalid"
_NONE: Final = GlobalDns()
#: Seconds that NetworkManager gets to write the file, and between two looks at it.
_PATIENCE: Final = 3.0
_PAUSE: Final = 0.02


class NetworkManager:
    """See the module. The file that it writes cannot tell names apart."""

    routes_domains: Final = False
    paths: Final = (PATH, Path("/run/NetworkManager/resolv.conf"))

    def prepare(self, link: Link, plan: DnsPlan) -> tuple[DnsRecord, ...]:
        """What undoes `apply`; nothing when ours is in force and its record is kept."""
        del link, plan
        with _talking() as bus:
            current = _get(bus)
        return () if _is_ours(current) else (RestoreGlobalDns(current),)

    def apply(self, link: Link, plan: DnsPlan) -> None:
        """Set it and wait for the file. Raises DnsSetupFailed, and then nothing has changed."""
        with _talking() as bus:
            before = _get(bus)
            ours = _configuration(plan)
            if before != ours:
                _set(bus, ours)
            deadline = time.monotonic() + _PATIENCE
            while not self.holds(link, plan):
                if time.monotonic() > deadline:
                    _set(bus, before)
                    raise DnsSetupFailed(
                        "NetworkManager does not write the tunnel's name servers to its file",
                        "see: journalctl -u NetworkManager",
                    )
                time.sleep(_PAUSE)

    def holds(self, link: Link, plan: DnsPlan) -> bool:
        """Whether programs ask our servers, and no others."""
        del link
        return resolv_conf.says(resolv_conf.read().text, plan)


def restore(record: RestoreGlobalDns) -> None:
    """Put back what was before ours, unless somebody has replaced ours. Raises DnsSetupFailed.

    Also when NetworkManager does not run: it would begin with ours the next time.
    """
    with _talking() as bus:
        if bus.where(SERVICE) != "elsewhere" and _is_ours(_get(bus)):
            _set(bus, record.previous)


def leftover(bus: Bus) -> RestoreGlobalDns | None:
    """What a client left here that had no time to put it back and whose records are lost."""
    try:
        here = bus.where(SERVICE) == "here"
        return RestoreGlobalDns(_NONE) if here and _is_ours(_get(bus)) else None
    except BusError:
        return None


@contextmanager
def _talking() -> Iterator[Bus]:
    try:
        with Bus.connect() as bus:
            yield bus
    except BusError as error:
        if error.name == "org.freedesktop.DBus.Error.ServiceUnknown":
            raise DnsSetupFailed(
                "NetworkManager does not run, and keeps the name servers that it has",
                "start it: systemctl start NetworkManager",
            ) from error
        raise DnsSetupFailed(
            f"NetworkManager did not take our name servers ({error})",
            "see: journalctl -u NetworkManager",
        ) from error


def _configuration(plan: DnsPlan) -> GlobalDns:
    servers = tuple(map(str, plan.servers[:MAX_ASKED]))
    domains = (GlobalDomain("*", servers), GlobalDomain(_MARK, servers))
    return GlobalDns(searches=plan.search, domains=domains)


def _is_ours(configuration: GlobalDns) -> bool:
    return any(domain.name == _MARK for domain in configuration.domains)


def _get(bus: Bus) -> GlobalDns:
    found = bus.get_all(SERVICE, _PATH, SERVICE).get(_PROPERTY, {})
    domains = {name: dict(value) for name, (_, value) in _value(found, "domains", {}).items()}
    if len(domains) > MAX_NAMES:
        raise DnsSetupFailed(
            f"NetworkManager has global name servers for {len(domains)} domains",
            "that is more than qvpn puts back; leave DNS alone",
        )
    return GlobalDns(
        tuple(_value(found, "searches", ())),
        tuple(_value(found, "options", ())),
        tuple(
            GlobalDomain(
                name, tuple(_value(value, "servers", ())), tuple(_value(value, "options", ()))
            )
            for name, value in sorted(domains.items())
        ),
    )


def _set(bus: Bus, configuration: GlobalDns) -> None:
    value: dict[str, tuple[str, Any]] = {}
    if configuration.domains:
        value = {
            "searches": ("as", list(configuration.searches)),
            "options": ("as", list(configuration.options)),
            "domains": (
                "a{sv}",
                {
                    domain.name: (
                        "a{sv}",
                        {
                            "servers": ("as", list(domain.servers)),
                            "options": ("as", list(domain.options)),
                        },
                    )
                    for domain in configuration.domains
                },
            ),
        }
    bus.set(SERVICE, _PATH, SERVICE, _PROPERTY, ("a{sv}", value))


def _value(mapping: dict[str, Any], name: str, default: Any) -> Any:
    """The value of a variant in a dictionary."""
    return mapping[name][1] if name in mapping else default
