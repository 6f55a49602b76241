"""One session: from the gateway's name to packets flowing, until it ends for whatever reason.

A thin shell around `ConnectIpSession`, the planner and a datapath. It ends what it began, transport
and datapath; the network it attached stays for the next session, see `attachment.py`. It decides
nothing about trying again, that is `states.py`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from typing import NoReturn

from qvpn_core.auth.concealed import Origin
from qvpn_core.auth.exporter import Exporter
from qvpn_core.client.attachment import Attachment
from qvpn_core.client.credential import learn_pins, prover
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.client.profiles import Profile
from qvpn_core.client.status import Status
from qvpn_core.client.ticketfile import TicketFile
from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.interface import Datapath
from qvpn_core.errors import (
    GatewayRefused,
    GatewayUnreachable,
    PermissionMissing,
    QvpnError,
    TunnelLost,
    TunUnavailable,
)
from qvpn_core.masque.address import AddressAssign
from qvpn_core.masque.connect_ip import ConnectIpError, ConnectIpSession, Role
from qvpn_core.masque.route import ranges_to_prefixes
from qvpn_core.net.names import FWMARK
from qvpn_core.net.plan import NetworkPlan
from qvpn_core.net.tun import Tun
from qvpn_core.transport.dial import RequestMaker, connect
from qvpn_core.transport.interface import HttpTunnel, Request

log = logging.getLogger("qvpn.session")

#: Seconds that a gateway gets to assign addresses unprompted before we ask. Some peers abort when
#: asked, and every gateway that means to assign does so with its answer.
UNPROMPTED = 1.0
#: Seconds from the gateway's answer to addresses and routes.
CONFIGURATION = 10.0
#: Seconds between two looks whether the TUN still exists.
DEVICE_CHECK = 5.0

#: "Any one address" of each version (RFC 9484 section 4.7.2).
_ANY_ADDRESS = (ip_network("0.0.0.0/32"), ip_network("::/128"))


class _Link:
    """The tunnel's handler: keeps what the peer says, wakes the session, passes packets on.

    Events arrive as soon as the gateway accepts, which is before `connect` returns the tunnel.
    """

    def __init__(self) -> None:
        self.connect_ip = ConnectIpSession(Role.CLIENT)
        #: Set at any change below.
        self.news = asyncio.Event()
        self.tunnel: HttpTunnel | None = None
        self.datapath: Datapath | None = None
        #: Why the session is over, once it is.
        self.end: QvpnError | None = None
        #: The gateway answered a request for addresses with none.
        self.refused = False

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

    def _over(self, error: QvpnError) -> None:
        self.end = self.end or error  # the first reason is the cause of the others
        self.news.set()


class Session:
    """One attempt and, when it succeeds, one live session."""

    def __init__(
        self,
        profile: Profile,
        policy: RoutePolicy,
        attachment: Attachment,
        *,
        on_up: Callable[[], None],
    ) -> None:
        #: The profile, with the pins that the gateway announced.
        self.profile = profile
        self._policy = policy
        self._attachment = attachment
        self._on_up = on_up
        self._link = _Link()
        self._tun: Tun | None = None

    async def run(self) -> NoReturn:
        """Connect, call `on_up` when packets flow, and follow the gateway until the session ends.

        Always ends by an exception: the QvpnError that says why, or the cancellation by which the
        user ends it; the gateway is told either way.
        """
        await self._attachment.prepare()
        tunnel = self._link.tunnel = await self._connect()
        try:
            self.profile = learn_pins(self.profile, tunnel.response_headers)
            await self._receive_configuration(tunnel)
            tun = self._tun = await self._attachment.attach(self._plan(tunnel))
            datapath = self._link.datapath = AioquicDatapath(tun, tunnel)
            datapath.start(self._own_addresses())
            gc.freeze()  # what exists now stays: no collection walks it again while packets wait
            self._on_up()
            await self._follow(tunnel, tun, datapath)
        finally:
            if self._link.datapath is not None:
                self._link.datapath.close()
            tunnel.close(_error_code(self._link.end))

    def snapshot(self) -> Status:
        """The session's part of the status; empty until it is up."""
        link, plan = self._link, self._attachment.plan
        if link.tunnel is None or link.datapath is None or self._tun is None or plan is None:
            return Status()
        tunnel, counters = link.tunnel, link.tunnel.counters
        return Status(
            transport=tunnel.transport,
            datapath=link.datapath.name,
            interface=self._tun.name,
            addresses=tuple(map(str, plan.addresses)),
            routes=tuple(str(route.prefix) for route in plan.routes if route.kind == "tunnel"),
            dns=tuple(
                str(address)
                for configuration in link.connect_ip.dns
                for server in configuration.nameservers
                for address in server.addresses
            ),
            mtu=plan.mtu,
            rtt_ms=round(tunnel.rtt * 1000, 2) if tunnel.rtt else None,
            tx_bytes=counters.tx_bytes,
            rx_bytes=counters.rx_bytes,
            tx_packets=counters.tx_packets,
            rx_packets=counters.rx_packets,
            drops={**counters.dropped, **link.datapath.counters.dropped},
        )

    async def _connect(self) -> HttpTunnel:
        profile = self.profile
        return await connect(
            profile.host,
            profile.port,
            trust=profile.trust,
            request=await self._request(),
            handler=self._link,
            addresses=self._known_addresses(),
            socket_factory=_marked_socket,
            tickets=TicketFile(profile.name),
        )

    async def _request(self) -> RequestMaker:
        """What makes the request, once there is a connection to sign for. Raises KeyUnavailable."""
        profile = self.profile
        authority, path = profile.resource
        origin = Origin.of("https", authority)
        prove = await prover(profile)

        def make(exporter: Exporter) -> Request:
            headers = (("authorization", prove(exporter, origin)),)
            return Request("CONNECT", "https", authority, path, "connect-ip", headers)

        return make

    def _known_addresses(self) -> tuple[str, ...]:
        """The gateway's addresses while our routes swallow what would resolve its name."""
        plan = self._attachment.plan
        return () if plan is None else tuple(str(address) for address, _port in plan.endpoints)

    async def _receive_configuration(self, tunnel: HttpTunnel) -> None:
        """Wait for addresses and routes. Raises GatewayRefused, and whatever ends the tunnel."""
        state = self._link.connect_ip
        deadline = asyncio.get_running_loop().time() + CONFIGURATION
        try:
            async with asyncio.timeout(UNPROMPTED):
                await self._until(lambda: bool(state.local_addresses))
        except TimeoutError:
            tunnel.send_capsules(state.request_addresses(_ANY_ADDRESS))
        try:
            async with asyncio.timeout_at(deadline):
                await self._until(
                    lambda: bool(state.local_addresses and state.peer_routes) or self._link.refused
                )
        except TimeoutError:
            missing = "route" if state.local_addresses else "address"
            raise GatewayRefused(
                f"the gateway gave no {missing} within {CONFIGURATION:.0f} seconds",
                "ask its administrator",
            ) from None
        if self._link.refused:
            raise GatewayRefused("the gateway has no address for us", "ask its administrator")

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for the peer to make `condition` true. Raises when the tunnel ends first."""
        while True:
            self._link.news.clear()
            if self._link.end is not None:
                raise self._link.end
            if condition():
                return
            await self._link.news.wait()

    async def _follow(self, tunnel: HttpTunnel, tun: Tun, datapath: Datapath) -> NoReturn:
        """Apply what the gateway and the path change, until the tunnel ends."""
        while True:
            try:
                async with asyncio.timeout(DEVICE_CHECK):
                    await self._until(lambda: self._plan(tunnel) != self._attachment.plan)
            except TimeoutError:
                _check_device(tun)
                continue
            plan = self._plan(tunnel)
            await self._attachment.attach(plan)
            datapath.set_addresses(self._own_addresses())
            log.info("the tunnel changed: %d routes, MTU %d", len(plan.routes), plan.mtu)

    def _plan(self, tunnel: HttpTunnel) -> NetworkPlan:
        state = self._link.connect_ip
        offer = GatewayOffer(
            addresses=tuple(ip_interface(entry.prefix) for entry in state.local_addresses),
            routes=ranges_to_prefixes(state.peer_routes),
        )
        here = SystemState(endpoints=(tunnel.peer,))
        return plan_network(self._policy, offer, here, tunnel.mtu)

    def _own_addresses(self) -> list[bytes]:
        plan = self._attachment.plan
        assert plan is not None
        return [address.ip.packed for address in plan.addresses]


async def _marked_socket(family: int, kind: int) -> socket.socket:
    """A socket whose packets skip our rules, so that the tunnel does not enter itself.

    Raises GatewayUnreachable without this address family, PermissionMissing without rights.
    """
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise GatewayUnreachable(
            f"this machine cannot reach that kind of address ({error.strerror})",
            "use the gateway's other address",
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
    except OSError as error:
        sock.close()
        raise PermissionMissing(
            f"cannot mark packets ({error.strerror})", "qvpn needs CAP_NET_ADMIN"
        ) from error
    return sock


def _check_device(tun: Tun) -> None:
    try:
        alive = socket.if_nametoindex(tun.name) == tun.index
    except OSError:
        alive = False
    if not alive:
        raise TunUnavailable(f"somebody removed the device {tun.name}", "run qvpn up again")


def _error_code(end: QvpnError | None) -> int | None:
    """The HTTP/3 error code that tells a peer of its own violation; None ends in order."""
    return end.code if isinstance(end, ConnectIpError) else None
