"""NetworkManager, where it writes /etc/resolv.conf itself: its global DNS configuration.

GlobalDnsConfiguration (org.freedesktop.NetworkManager) goes before what connections bring. Writing
the file instead would last until NetworkManager's next event. It keeps the value on disk, over
reboots, so ours carries a mark: a domain that cannot exist (RFC 6761 section 6.4) and is never
asked for. A configuration from NetworkManager.conf is the administrator's, and is refused to us.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net.dns import resolv_conf
from qvpn_core.net.dns.bus import NO_BUS, Bus, BusError
from qvpn_core.net.dns.link import Link
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.dns.records import (
    MAX_NAMES,
    DnsRecord,
    GlobalDns,
    GlobalDomain,
    Held,
    RestoreGlobalDns,
)
from qvpn_core.net.dns.resolv_conf import MAX_ASKED, PATH

SERVICE: Final = "org.freedesktop.NetworkManager"
_PATH: Final = "/org/freedesktop/NetworkManager"
_PROPERTY: Final = "GlobalDnsConfiguration"
#: The domain that marks a configuration as ours.
_MARK: Final = "qvpn.invalid"
_NONE: Final = GlobalDns()
#: Where NetworkManager keeps the value, as a key file, and what is in it when it is ours.
_STORE: Final = Path("/var/lib/NetworkManager/NetworkManager-intern.conf")
_MARKED: Final = f"[.intern.global-dns-domain-{_MARK}]".encode()
_MAX_STORE: Final = 1 << 20
#: Seconds that NetworkManager gets to write the file, and between two looks at it.
_PATIENCE: Final = 3.0
_PAUSE: Final = 0.02


class NetworkManager:
    """See the module. The file that it writes cannot tell names apart."""

    routes_domains: Final = False
    paths: Final = (PATH, Path("/run/NetworkManager/resolv.conf"))

    def prepare(self, link: Link, held: Held) -> tuple[DnsRecord, ...]:
        """What undoes `apply`. Raises DnsSetupFailed."""
        del link
        with _talking() as bus:
            current = _get(bus)
        if not _is_ours(current):
            return (RestoreGlobalDns(current),)
        kept = tuple(record for record in held if isinstance(record, RestoreGlobalDns))
        return kept or (RestoreGlobalDns(_NONE),)

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

    Where NetworkManager does not run, as early at boot, ours is removed from what it begins with.
    """
    try:
        with Bus.connect() as bus:
            where = bus.where(SERVICE)
            if where == "here" and _is_ours(_get(bus)):
                _set(bus, record.previous)
    except BusError as error:
        if error.name != NO_BUS:
            raise _refused(error) from error
        where = "absent"
    if where == "absent" and _is_stored():
        if record.previous != _NONE:
            raise _refused(BusError("it does not run"))
        _forget_stored()


def leftover() -> RestoreGlobalDns | None:
    """What a client left here that had no time to put it back and whose records are lost."""
    try:
        with Bus.connect() as bus:
            where = bus.where(SERVICE)
            found = where == "here" and _is_ours(_get(bus))
    except BusError:
        where, found = "absent", False
    if found or (where == "absent" and _is_stored()):
        return RestoreGlobalDns(_NONE)
    return None


def _is_stored() -> bool:
    """Whether ours is in the file, and the file is this machine's and not another namespace's."""
    return not resolv_conf.is_shared(_STORE) and _MARKED in _stored()


def _stored() -> bytes:
    try:
        with _STORE.open("rb") as file:
            return file.read(_MAX_STORE)
    except OSError:
        return b""


def _forget_stored() -> None:
    """Remove our sections. Only while NetworkManager does not run, for it writes this file."""
    kept, ours = [], False
    for line in _stored().splitlines(keepends=True):
        if line.startswith(b"["):
            ours = line.startswith(b"[.intern.global-dns")
        if not ours:
            kept.append(line)
    new = _STORE.with_name(_STORE.name + ".qvpn-new")
    try:
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(b"".join(kept))
        shutil.copystat(_STORE, new)
        new.replace(_STORE)
    except OSError as error:
        raise DnsSetupFailed(
            f"{_STORE} cannot be changed ({os.strerror(error.errno or 0)})",
            "start NetworkManager and try again",
        ) from error


@contextmanager
def _talking() -> Iterator[Bus]:
    try:
        with Bus.connect() as bus:
            yield bus
    except BusError as error:
        raise _refused(error) from error


def _refused(error: BusError) -> DnsSetupFailed:
    return DnsSetupFailed(
        f"NetworkManager did not change its global name servers ({error})",
        "see: systemctl status NetworkManager",
    )


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
