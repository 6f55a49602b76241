"""Our nftables tables at the gateway and at the client. No other table is read or written.

An accept in one table does not overrule a drop in another: a host whose firewall drops forwarded
packets (ufw, firewalld, Docker) must allow the gateway's TUN there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvpn_core.net import nft
from qvpn_core.net.names import CLIENT_NFT_TABLE, FWMARK, GATEWAY_NFT_TABLE
from qvpn_core.net.plan import IPAddress, Network
from qvpn_core.net.worker import in_thread


@dataclass(frozen=True, slots=True)
class NatPool:
    """Addresses of devices: masqueraded on their way out, or routed there by somebody else."""

    network: Network
    masquerade: bool = True


async def install_gateway(tun: str, pools: Sequence[NatPool], *, isolate: bool) -> None:
    """Translate, protect and, with `isolate`, separate the devices behind `tun`.

    Replaces whatever a predecessor left. Raises NetworkSetupFailed or PermissionMissing.
    """
    await in_thread(nft.run, gateway_script(tun, pools, isolate=isolate))


async def remove_gateway() -> None:
    """Undo `install_gateway`, also of a predecessor; fine when there is nothing."""
    await in_thread(nft.run, nft.delete_table("inet", GATEWAY_NFT_TABLE))


def gateway_script(tun: str, pools: Sequence[NatPool], *, isolate: bool) -> str:
    """The gateway's table.

    Devices open connections; towards a masqueraded pool nobody else does, as behind any NAT, so
    that a neighbour of the gateway cannot route packets to devices. The kernel answers what it
    refuses with ICMP administratively prohibited.
    """
    forward: list[str] = []
    if isolate:
        forward.append(f'iifname "{tun}" oifname "{tun}" reject with icmpx type admin-prohibited')
    postrouting: list[str] = []
    for pool in pools:
        if not pool.masquerade:
            continue
        ip = _ip(pool.network)
        forward.append(
            f'iifname != "{tun}" oifname "{tun}" {ip} daddr {pool.network} ct state new drop'
        )
        postrouting.append(f'{ip} saddr {pool.network} oifname != "{tun}" masquerade')
    return nft.delete_table("inet", GATEWAY_NFT_TABLE) + nft.table(
        "inet",
        GATEWAY_NFT_TABLE,
        nft.chain("forward", forward, "type filter hook forward priority filter"),
        nft.chain("postrouting", postrouting, "type nat hook postrouting priority srcnat"),
    )


def install_client(
    tun: str, addresses: Sequence[IPAddress], endpoints: Sequence[tuple[IPAddress, int]]
) -> None:
    """Synchronous; see `client_script`. Replaces an earlier version in one transaction."""
    nft.run(client_script(tun, addresses, endpoints))


def client_installed() -> bool:
    """Whether both of the client's tables are there. Raises NetworkSetupFailed."""
    return {("inet", CLIENT_NFT_TABLE), ("arp", CLIENT_NFT_TABLE)} <= nft.tables()


def client_script(
    tun: str, addresses: Sequence[IPAddress], endpoints: Sequence[tuple[IPAddress, int]]
) -> str:
    """The client's tables: what keeps policy routing right under reverse-path filters.

    A filter (net.ipv4.conf.*.rp_filter, firewalld's `fib saddr . mark . iif`) looks up the way back
    for each arriving packet with that packet's mark. The gateway's packets and ARP requests of
    neighbours arrive unmarked on the physical interface while the way back without a mark is the
    TUN, so they would be dropped; they get our mark first. (The kernel asks for the mark only with
    src_valid_mark, which :mod:`qvpn_core.net.apply` sets.)

    Packets to our tunnel addresses that come in elsewhere are dropped: neighbours on the link would
    use them to find and disturb connections in the tunnel (CVE-2019-14899).
    """
    marks = [
        f"{_ip(address)} saddr {address} meta l4proto {{ tcp, udp }} th sport {port} "
        f"meta mark set {FWMARK:#x}"
        for address, port in endpoints
    ]
    drops = [
        f'iifname != {{ "lo", "{tun}" }} {_ip(address)} daddr {address} drop'
        for address in addresses
    ]
    return (
        remove_client_script()
        + nft.table(
            "inet",
            CLIENT_NFT_TABLE,
            nft.chain("prerouting", marks + drops, "type filter hook prerouting priority raw"),
        )
        + nft.table(
            "arp",
            CLIENT_NFT_TABLE,
            nft.chain(
                "input", [f"meta mark set {FWMARK:#x}"], "type filter hook input priority filter"
            ),
        )
    )


def remove_client_script() -> str:
    """The script that removes what `install_client` installed, if it did."""
    return nft.delete_table("inet", CLIENT_NFT_TABLE) + nft.delete_table("arp", CLIENT_NFT_TABLE)


def _ip(value: IPAddress | Network) -> str:
    return "ip" if value.version == 4 else "ip6"
