"""The kill switch as nftables text: one transaction each, pure.

What is decided here: packets leave by what they are and where they go, never by what came in
before. :mod:`qvpn_core.net.killswitch` puts it into the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import collapse_addresses
from typing import Final

from qvpn_core.net import nft
from qvpn_core.net.names import CLIENT_TUN, FWMARK, KILL_SWITCH_NFT_TABLE, SIGN_IN_NFT_TABLE
from qvpn_core.net.plan import KillSwitch, Network

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


def script(plan: KillSwitch) -> str:
    """One transaction that replaces whatever kill switch there is by `plan`.

    Local programs are refused at once, TCP by a reset: an ICMP error alone leaves a connecting
    program waiting for its first retransmission. There is no exception for connections from before
    nor for answers to packets that came in (a ping's, say): these leak as well. Forwarded packets,
    of containers and virtual machines, get no mark and no DHCP; their senders hear of the refusal
    where this machine may speak to them.
    """
    allowed = [*_exempt(plan.exempt), *(_LAN if plan.lan else ())]
    return remove_script() + nft.table(
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


def remove_script() -> str:
    """The transaction that takes the kill switch away, if there is one."""
    return nft.delete_table("inet", KILL_SWITCH_NFT_TABLE)


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
