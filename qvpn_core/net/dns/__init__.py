"""The machine's resolver: told about a tunnel's name servers, watched, and put back as it was.

Four kinds of resolvers, one interface. Synchronous and time-boxed, for a root process; no call here
takes longer than a minute whatever hangs. The order that makes a crash harmless::

    found = detect()                                     # whom to tell, and why
    records = prepare(found, interface, index)     # what undoes it; keep them safe, then
    apply(found, interface, index, plan)                 # make it so; again is fine
    restore(record)                                      # each, latest first; in any process

:class:`qvpn_core.net.dns.keeper.DnsKeeper` does this for a session, with changes of plans and of
resolvers and other programs' interference on the way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Protocol

from qvpn_core.net.dns import file, networkmanager, resolvconf, resolved
from qvpn_core.net.dns.detect import Backend, Detection, detect
from qvpn_core.net.dns.link import Link
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.dns.records import (
    DnsRecord,
    Held,
    RemoveResolvconfEntry,
    RestoreGlobalDns,
    RestoreResolvConf,
    RevertLink,
    RewriteResolvConf,
)

__all__ = [
    "Detection",
    "DnsPlan",
    "DnsRecord",
    "apply",
    "check",
    "detect",
    "leftovers",
    "objection",
    "prepare",
    "restore",
    "watch_paths",
]


class _Resolver(Protocol):
    """What a kind of resolver can do; the functions below say what each means."""

    @property
    def routes_domains(self) -> bool:
        """Whether it can ask different servers for different names."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files that change when somebody else configures it."""

    def prepare(self, link: Link, held: Held) -> tuple[DnsRecord, ...]: ...

    def apply(self, link: Link, plan: DnsPlan) -> None: ...

    def holds(self, link: Link, plan: DnsPlan) -> bool: ...


_RESOLVERS: Final[dict[Backend, _Resolver]] = {
    "systemd-resolved": resolved.Resolved(),
    "NetworkManager": networkmanager.NetworkManager(),
    "resolvconf": resolvconf.Resolvconf(),
    "file": file.FileResolver(),
}


def objection(detection: Detection, plan: DnsPlan) -> str | None:
    """Why `plan` cannot be had here, in words for the user; None when it can.

    A list of servers without domains cannot ask some for a company's names and others for the rest.
    Asking the tunnel's servers for everything would send them what is not theirs; so none are used.
    """
    if plan.everything or _RESOLVERS[detection.backend].routes_domains:
        return None
    names = ", ".join(plan.domains[:3]) + (" and others" if len(plan.domains) > 3 else "")
    return (
        f"names in {names} are not resolved by the tunnel's name servers: only systemd-resolved "
        f"can ask different servers for different names, and here it is not in charge"
    )


def prepare(
    detection: Detection, interface: str, index: int, held: Held = ()
) -> tuple[DnsRecord, ...]:
    """What undoes `apply`, to be kept safe before it, instead of kept ones of the same type.

    `held` are the records of this session so far: only they know what was before while ours is in
    force. Changes nothing. Raises DnsSetupFailed.
    """
    return _RESOLVERS[detection.backend].prepare(Link(interface, index), held)


def apply(detection: Detection, interface: str, index: int, plan: DnsPlan) -> None:
    """Make `plan` be in force, from whatever is now; idempotent.

    Raises DnsSetupFailed; then what `prepare` saw is in force again, or nothing of ours is.
    """
    _RESOLVERS[detection.backend].apply(Link(interface, index), plan)


def check(detection: Detection, interface: str, index: int, plan: DnsPlan) -> bool:
    """Whether `plan` is still in force, and this resolver still the one that programs ask.

    Raises DnsSetupFailed when that cannot be told, as while a resolver restarts.
    """
    if detect().backend != detection.backend:
        return False
    return _RESOLVERS[detection.backend].holds(Link(interface, index), plan)


def watch_paths(detection: Detection) -> tuple[Path, ...]:
    """Files that change when somebody interferes. A file may be replaced: watch its directory."""
    return _RESOLVERS[detection.backend].paths


def restore(record: DnsRecord) -> None:
    """Undo one change. Harmless twice, in vain, and by another process. Raises DnsSetupFailed."""
    match record:
        case RevertLink():
            resolved.revert(record)
        case RestoreGlobalDns():
            networkmanager.restore(record)
        case RemoveResolvconfEntry():
            resolvconf.remove(record)
        case RestoreResolvConf():
            file.restore()
        case RewriteResolvConf():
            file.rewrite_back(record)


def leftovers() -> tuple[DnsRecord, ...]:
    """What an earlier tunnel left whose records are lost, as after a power failure.

    Only two changes outlive a reboot: a replaced file, and NetworkManager's global configuration.
    For a start, when no tunnel is up. Raises DnsSetupFailed.
    """
    records = (file.leftover(), networkmanager.leftover())
    return tuple(record for record in records if record is not None)
