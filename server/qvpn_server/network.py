"""The kernel's network as a gateway needs it: TUN, addresses, forwarding, NAT; undone at the end.

A killed gateway leaves its nftables table and the forwarding switches behind (the TUN goes with the
process); the next start replaces the one and still knows what to restore of the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing
from qvpn_core.net import capability, sysctl
from qvpn_core.net.firewall import NatPool, install_gateway, remove_gateway
from qvpn_core.net.forwarding import Forwarding
from qvpn_core.net.names import GATEWAY_TUN
from qvpn_core.net.tun import Tun
from qvpn_core.net.worker import in_thread
from qvpn_server.config import GatewayConfig
from qvpn_server.kernel import set_up
from qvpn_server.pool import Pool

#: Bytes. As Ethernet: whatever the uplink delivers reaches us whole, and the packet path answers or
#: fragments for each session's own limit.
TUN_MTU: Final = 1500


@asynccontextmanager
async def gateway_network(config: GatewayConfig, saved: Path) -> AsyncIterator[Tun]:
    """The gateway's TUN, up, routed and translated while inside.

    `saved` is the file that remembers the forwarding switches. Raises PermissionMissing,
    TunUnavailable (also when another gateway runs in this network namespace), NetworkSetupFailed.
    """
    if not capability.held(capability.NET_ADMIN):
        raise PermissionMissing(
            "a gateway needs root", "run it with sudo, or give it CAP_NET_ADMIN"
        )
    async with AsyncExitStack() as stack:
        tun = stack.enter_context(Tun.open(GATEWAY_TUN, TUN_MTU))
        await in_thread(_prepare, tun.name, config.pools)
        await set_up(tun.index, config.pools)
        forwarding = Forwarding(saved)
        stack.push_async_callback(forwarding.restore)
        await forwarding.enable()
        stack.push_async_callback(remove_gateway)
        nat = [NatPool(pool.network) for pool in config.pools]
        await install_gateway(tun.name, nat, isolate=config.isolation)
        yield tun


def _prepare(tun: str, pools: Sequence[Pool]) -> None:
    """Settings of our own device; they go with it."""
    # ICMP errors that we write into the TUN come from the gateway's own address, which the kernel
    # drops as martian otherwise. No device can use it: source addresses are checked before.
    _set_ipv4(tun, "accept_local", "1")
    if not any(pool.version == 6 for pool in pools):
        return
    if sysctl.read(f"net/ipv6/conf/{tun}/disable_ipv6") is None:
        raise NetworkSetupFailed(
            "this host has no IPv6", 'write pool6 = "none" in gateway.toml, or enable it'
        )
    sysctl.write(f"net/ipv6/conf/{tun}/disable_ipv6", "0")
    # No link-local address, hence no router solicitations into a device that nobody answers on.
    sysctl.write(f"net/ipv6/conf/{tun}/addr_gen_mode", "1")


def _set_ipv4(tun: str, name: str, value: str) -> None:
    try:
        Path(f"/proc/sys/net/ipv4/conf/{tun}/{name}").write_text(value)
    except OSError as error:
        raise NetworkSetupFailed(
            f"cannot set {name} of {tun}: {error.strerror}",
            "in a container, /proc/sys must be writable",
        ) from error
