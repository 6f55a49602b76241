"""The kill switch: what the user wants in the tunnel leaves this machine through it, or not at all.

One nftables table with the same rules in every state of the tunnel, so there is no moment of
changing them in which a packet could pass. It has no owner and outlives whoever made it: a crash
must not open what it holds. :func:`release` ends it with its session, :func:`unlock` always, and a
reboot unless it was asked for with ``always``; then a unit puts it back before any network is up.
It filters only what leaves. It refuses to know the tunnel's state, and to change routes, except for
the time-boxed exception of :func:`sign_in`.

Everything here is synchronous and, but for the pure functions and :func:`holding`, needs root.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import collapse_addresses, ip_network
from pathlib import Path
from typing import Final, Literal

import msgspec

from qvpn_core.errors import NetworkSetupFailed, QvpnError
from qvpn_core.net import nft
from qvpn_core.net.names import (
    CLIENT_TUN,
    FWMARK,
    KILL_SWITCH_NFT_TABLE,
    SIGN_IN_NFT_TABLE,
)
from qvpn_core.net.plan import IPAddress, Network

#: Where ``always`` is kept over a reboot: readable by root only, as it names the user's networks.
STORE: Final = Path("/var/lib/qvpn/kill-switch.json")
_MARKERS: Final = Path("/run/qvpn")
#: Bytes; thousands of prefixes fit. A larger file is not ours.
_MAX_STORE: Final = 1 << 20

#: System accounts (login.defs, SYS_UID_MAX): the machine's own resolver asks for the user.
_SYSTEM_USERS: Final = "0-999"

#: DHCP renewals (RFC 2131 section 4.1; RFC 8415 section 7) and what IPv6 needs to reach any
#: neighbour or router (RFC 4861 section 4, hop limit 255; MLD reports, without which a switch does
#: not deliver neighbour solicitations, RFC 4861 section 7.2.1 and RFC 3810 section 5, hop limit 1).
_ALWAYS_ALLOWED: Final = (
    "udp sport 68 udp dport 67 accept",
    "ip6 daddr { fe80::/10, ff02::1:2 } udp sport 546 udp dport 547 accept",
    (
        "ip6 hoplimit 255 icmpv6 type"
        " { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept"
    ),
    (
        "ip6 hoplimit 1 ip6 daddr ff02::/16 icmpv6 type"
        " { mld-listener-report, mld-listener-done, mld2-listener-report } accept"
    ),
)

#: The link's own addresses, and how its hosts find each other: mDNS (RFC 6762), LLMNR (RFC 4795),
#: SSDP (UPnP Device Architecture section 1), WS-Discovery (section 2.4), IGMP (RFC 3376 section 4).
_LAN: Final = (
    "ip daddr 169.254.0.0/16 accept",
    "ip6 daddr fe80::/10 accept",
    (
        "ip daddr . udp dport { 224.0.0.251 . 5353, 224.0.0.252 . 5355,"
        " 239.255.255.250 . 1900, 239.255.255.250 . 3702 } accept"
    ),
    (
        "ip6 daddr . udp dport { ff02::fb . 5353, ff02::1:3 . 5355,"
        " ff02::c . 1900, ff02::c . 3702 } accept"
    ),
    "ip protocol igmp ip ttl 1 ip daddr 224.0.0.0/4 accept",
)


@dataclass(frozen=True, slots=True)
class KillSwitch:
    """What must not leave beside the tunnel. `exempt` always wins over `protected`."""

    #: None for everything.
    protected: tuple[Network, ...] | None = None
    #: What may, because the user keeps it out of the tunnel; the networks of the LAN among it.
    exempt: tuple[Network, ...] = ()
    #: Whether the hosts of the link may be searched for, and spoken to by link-local addresses.
    lan: bool = False
    #: Whether it outlives session and reboot, until :func:`unlock`.
    always: bool = False

    def blocks(self, destination: IPAddress) -> bool:
        """Whether a program's packet to `destination` is refused outside the tunnel.

        Speaks of addresses that mean another host; loopback and discovery have rules of their own.
        """
        if any(destination in network for network in self.exempt):
            return False
        if self.lan and destination.is_link_local:
            return False
        return self.protected is None or any(destination in it for it in self.protected)


# -- the rules, as text


def script(plan: KillSwitch) -> str:
    """One transaction that replaces whatever kill switch there is by `plan`.

    Local programs are refused at once, TCP by a reset: an ICMP error alone leaves a connecting
    program waiting for its first retransmission. There is no exception for connections from before
    nor for answers to packets that came in (a ping's, say): these leak as well. Forwarded packets,
    of containers and virtual machines, get no mark and no DHCP.
    """
    allowed = [*_exempt(plan.exempt), *(_LAN if plan.lan else ())]
    return nft.delete_table("inet", KILL_SWITCH_NFT_TABLE) + nft.table(
        "inet",
        KILL_SWITCH_NFT_TABLE,
        nft.chain(
            "refuse",
            ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"],
        ),
        nft.chain("beside", [*allowed, *_protected(plan.protected)]),
        nft.chain(
            "output",
            [
                f'oifname {{ "lo", "{CLIENT_TUN}" }} accept',
                # The mark needs CAP_NET_ADMIN or CAP_NET_RAW; ping may have the latter.
                f"meta mark {FWMARK:#x} meta l4proto {{ tcp, udp }} accept",
                *_ALWAYS_ALLOWED,
                "goto beside",
            ],
            "type filter hook output priority filter",
        ),
        nft.chain(
            "forward",
            [f'oifname "{CLIENT_TUN}" accept', "goto beside"],
            "type filter hook forward priority filter",
        ),
    )


def sign_in_script(uid: int, seconds: int) -> str:
    """One transaction that lets user `uid` reach the web and name servers beside the tunnel.

    The kernel forgets the exception after `seconds` by itself. It marks the packets as the
    transport's are, so that they take the way outside also while routes lead into a tunnel that is
    down, and translates the source address, which such a program may have taken from the tunnel.
    Name servers may be asked by the machine's own resolver too, for it asks on the user's behalf.
    """
    elements = ", ".join(
        f"{who} . {port} timeout {seconds}s"
        for who, ports in ((str(uid), (53, 80, 443)), (_SYSTEM_USERS, (53,)))
        for port in ports
        if not (who == str(uid) and uid < 1000 and port == 53)  # within the system's already
    )
    ours = f"ct mark {FWMARK:#x}"
    return remove_sign_in_script() + nft.table(
        "inet",
        SIGN_IN_NFT_TABLE,
        "  set excepted {\n    typeof meta skuid . th dport\n    flags interval, timeout\n"
        f"    elements = {{ {elements} }}\n  }}\n",
        nft.chain(
            "output",
            [
                (
                    'oifname != "lo" meta l4proto { tcp, udp } meta skuid . th dport @excepted'
                    f" meta mark set {FWMARK:#x} ct mark set {FWMARK:#x}"
                )
            ],
            "type route hook output priority mangle",
        ),
        nft.chain(
            "postrouting",
            [f'{ours} oifname != {{ "lo", "{CLIENT_TUN}" }} masquerade'],
            "type nat hook postrouting priority srcnat",
        ),
        # Reverse-path filters look for the way back with the mark of what arrives.
        nft.chain(
            "prerouting",
            [f"{ours} meta mark set {FWMARK:#x}"],
            "type filter hook prerouting priority mangle",
        ),
    )


def remove_sign_in_script() -> str:
    """The transaction that ends an exception, if there is one."""
    return nft.delete_table("inet", SIGN_IN_NFT_TABLE)


def _exempt(networks: Iterable[Network]) -> list[str]:
    return [f"{ip} daddr {match} accept" for ip, match in _matches(networks)]


def _protected(networks: Iterable[Network] | None) -> list[str]:
    if networks is None:
        return ["goto refuse"]
    return [f"{ip} daddr {match} goto refuse" for ip, match in _matches(networks)]


def _matches(networks: Iterable[Network]) -> list[tuple[str, str]]:
    """(``ip`` or ``ip6``, what to compare with) per IP version; nft wants no overlap in a set."""
    networks = tuple(networks)
    found = []
    for version, ip in ((4, "ip"), (6, "ip6")):
        of_version = (network for network in networks if network.version == version)
        collapsed = list(collapse_addresses(of_version))  # type: ignore[type-var]
        if collapsed:
            found.append((ip, "{ " + ", ".join(map(str, collapsed)) + " }"))
    return found


# -- in the kernel


def install(plan: KillSwitch) -> None:
    """Put `plan` in force, in one step from whatever was before. Idempotent.

    An ``always`` is also stored. Raises NetworkSetupFailed; what was in force still is, or, when
    only the storing failed, `plan` until `release`.
    """
    before = holding()
    _mark("always" if plan.always else "on")
    try:
        nft.run(script(plan))
    except QvpnError:
        _mark(before)
        raise
    if plan.always:
        _store(plan)


def release() -> None:
    """Only a stored ``always`` is in force from now on, or nothing: a session's own is over.

    For the orderly end of a session, and for the boot. Idempotent. Raises NetworkSetupFailed.
    """
    nft.run(remove_sign_in_script())
    if (stored := load()) is not None:
        install(stored)
    else:
        _remove()


def unlock() -> None:
    """End every kill switch, also an ``always``, of whatever session. Idempotent.

    Raises NetworkSetupFailed.
    """
    _forget()
    nft.run(remove_sign_in_script())
    _remove()


def sign_in(uid: int, seconds: int) -> None:
    """Let the user `uid` sign in at a captive portal for `seconds`; see `sign_in_script`."""
    nft.run(sign_in_script(uid, seconds))


Holding = Literal["on", "always"]


def holding() -> Holding | None:
    """What kill switch is in force in this network namespace, as any user may know."""
    with suppress(OSError):
        match _marker().read_text():
            case "on":
                return "on"
            case "always":
                return "always"
    return None


def _remove() -> None:
    nft.run(nft.delete_table("inet", KILL_SWITCH_NFT_TABLE))
    _mark(None)


def _mark(holding: Holding | None) -> None:
    if holding is None:
        _marker().unlink(missing_ok=True)
    else:
        _write(_marker(), holding.encode(), mode=0o644, durable=False)


def _marker() -> Path:
    """A note for those who may not look into nftables. Gone after a reboot, as the table is."""
    return _MARKERS / f"net-{os.stat('/proc/thread-self/ns/net').st_ino}.kill-switch"


# -- over a reboot


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    protected: tuple[str, ...] | None
    exempt: tuple[str, ...]
    lan: bool


def _store(plan: KillSwitch) -> None:
    """Keep `plan` over a reboot, whole or not at all. Raises NetworkSetupFailed (full disk)."""
    stored = _Stored(
        None if plan.protected is None else tuple(map(str, plan.protected)),
        tuple(map(str, plan.exempt)),
        plan.lan,
    )
    data = msgspec.json.encode(stored)
    with suppress(OSError):
        if STORE.read_bytes() == data:
            return
    _write(STORE, data, mode=0o600, durable=True)


def load() -> KillSwitch | None:
    """What is stored, None when nothing is.

    A file that cannot be understood still says that its owner wanted to be locked: it blocks
    everything. `unlock` needs no look into it.
    """
    try:
        with STORE.open("rb") as file:
            data = file.read(_MAX_STORE + 1)
    except FileNotFoundError:
        return None
    except OSError:
        return KillSwitch(always=True)
    try:
        stored = msgspec.json.decode(data, type=_Stored)
        protected = stored.protected
        return KillSwitch(
            None if protected is None else tuple(map(ip_network, protected)),
            tuple(map(ip_network, stored.exempt)),
            stored.lan,
            always=True,
        )
    except (ValueError, RecursionError):
        return KillSwitch(always=True)


def _forget() -> None:
    try:
        STORE.unlink(missing_ok=True)
        _sync(STORE.parent)
    except FileNotFoundError:
        pass  # never was a directory
    except OSError as error:
        raise _unwritable(STORE, error) from error


def _write(path: Path, data: bytes, *, mode: int, durable: bool) -> None:
    """Replace a file of root's atomically. Raises NetworkSetupFailed."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(fd)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unwritable(path: Path, error: OSError) -> NetworkSetupFailed:
    why = os.strerror(error.errno or 0)
    return NetworkSetupFailed(f"the kill switch cannot write {path} ({why})", "is the disk full?")
