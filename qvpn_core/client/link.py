"""One tunnel as a session sees it: what the gateway said on it, and its end.

A session may have several, one after the other and for a moment two, when it changes its transport.
It applies nothing: what the gateway assigned and advertised is the session's to act upon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_network
from typing import Final

from qvpn_core.datapath.interface import Datapath
from qvpn_core.errors import GatewayRefused, QvpnError, TunnelLost
from qvpn_core.masque.address import AddressAssign
from qvpn_core.masque.connect_ip import ConnectIpError, ConnectIpSession, Role
from qvpn_core.transport.interface import HttpTunnel

#: Seconds that a gateway gets to assign addresses unprompted before we ask. Some peers abort when
#: asked, and every gateway that means to assign does so with its answer.
UNPROMPTED: Final = 1.0
#: Seconds from the gateway's answer to addresses and routes.
CONFIGURATION: Final = 10.0

#: "Any one address" of each version (RFC 9484 section 4.7.2).
_ANY_ADDRESS: Final = (ip_network("0.0.0.0/32"), ip_network("::/128"))


class Link:
    """A tunnel's handler: keeps what the peer says, wakes the session, passes packets on.

    Events arrive as soon as the gateway accepts, which is before `tunnel` is set. `datapath` takes
    packets from the first on, when there is one already.
    """

    def __init__(self, datapath: Datapath | None = None) -> None:
        self.connect_ip = ConnectIpSession(Role.CLIENT)
        #: Set at any change below.
        self.news = asyncio.Event()
        self._tunnel: HttpTunnel | None = None
        self.datapath = datapath
        #: Why the tunnel is over, once it is.
        self.end: QvpnError | None = None
        #: The gateway answered a request for addresses with none.
        self.refused = False

    @property
    def tunnel(self) -> HttpTunnel:
        """The tunnel, once it is open."""
        assert self._tunnel is not None
        return self._tunnel

    @tunnel.setter
    def tunnel(self, tunnel: HttpTunnel) -> None:
        self._tunnel = tunnel

    def capsule_data(self, data: bytes) -> None:
        if self.end is not None:
            return
        try:
            for event in self.connect_ip.receive(data):
                if isinstance(event, AddressAssign):
                    self.refused = bool(event.addresses) and not self.connect_ip.local_addresses
        except ConnectIpError as error:
            self._over(error)
        self.news.set()

    def capsule_end(self) -> None:
        self._over(TunnelLost("the gateway ended the session"))

    def packets(self, packets: list[bytes]) -> None:
        if self.datapath is not None:
            self.datapath.packets(packets)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        if self.datapath is not None:
            self.datapath.packet_too_big(packet, mtu)

    def mtu_changed(self, mtu: int) -> None:
        del mtu  # the session reads the latest from the tunnel
        self.news.set()

    def closed(self, error: QvpnError | None) -> None:
        self._over(error or TunnelLost("the gateway closed the connection"))

    def close(self) -> None:
        """End the tunnel; the gateway is told of its own violation, if that is why."""
        self.tunnel.close(self.end.code if isinstance(self.end, ConnectIpError) else None)

    async def configure(self) -> None:
        """Wait for addresses and routes. Raises GatewayRefused, and whatever ends the tunnel."""
        state = self.connect_ip
        deadline = asyncio.get_running_loop().time() + CONFIGURATION
        try:
            async with asyncio.timeout(UNPROMPTED):
                await self.until(lambda: bool(state.local_addresses))
        except TimeoutError:
            self.tunnel.send_capsules(state.request_addresses(_ANY_ADDRESS))
        try:
            async with asyncio.timeout_at(deadline):
                await self.until(
                    lambda: bool(state.local_addresses and state.peer_routes) or self.refused
                )
        except TimeoutError:
            missing = "route" if state.local_addresses else "address"
            raise GatewayRefused(
                f"the gateway gave no {missing} within {CONFIGURATION:.0f} seconds",
                "ask its administrator",
            ) from None
        if self.refused:
            raise GatewayRefused("the gateway has no address for us", "ask its administrator")

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the peer to make `condition` true. Raises when the tunnel ends first."""
        while True:
            self.news.clear()
            if self.end is not None:
                raise self.end
            if condition():
                return
            await self.news.wait()

    def _over(self, error: QvpnError) -> None:
        self.end = self.end or error  # the first reason is the cause of the others
        self.news.set()
