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

from qvpn_core.auth.concealed import Origin, authenticate
from qvpn_core.auth.exporter import Exporter
from qvpn_core.client import keys, profiles
from qvpn_core.client.attachment import Attachment
from qvpn_core.client.dns_policy import choose_dns
from qvpn_core.client.explain import warnings
from qvpn_core.client.planner import (
    GatewayOffer,
    RoutePolicy,
    SystemState,
    plan_kill_switch,
    plan_network,
)
from qvpn_core.client.profiles import Profile
from qvpn_core.client.states import KillSwitchMode
from qvpn_core.client.status import Stage, Status
from qvpn_core.client.ticketfile import TicketFile
from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.interface import Datapath
from qvpn_core.errors import (
    GatewayRefused,
    QvpnError,
    TunnelLost,
    TunUnavailable,
)
from qvpn_core.masque.address import AddressAssign
from qvpn_core.masque.connect_ip import ConnectIpError, ConnectIpSession, Role
from qvpn_core.masque.route import ranges_to_prefixes
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.plan import KillSwitch, NetworkPlan
from qvpn_core.net.survey import Survey, survey
from qvpn_core.net.tun import Tun
from qvpn_core.transport.dial import RequestMaker, connect
from qvpn_core.transport.interface import HttpTunnel, Request
from qvpn_core.transport.trust import PINS_FIELD, announced_pins

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
            self.over(error)
        self.news.set()

    def capsule_end(self) -> None:
        self.over(TunnelLost("the gateway ended the session"))

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
        self.over(error or TunnelLost("the gateway closed the connection"))

    def over(self, error: QvpnError) -> None:
        """The session is over, because of `error`."""
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
        kill_switch: KillSwitchMode,
        on_up: Callable[[], None],
        on_stage: Callable[[Stage], None],
    ) -> None:
        #: The profile, with the pins that the gateway announced.
        self.profile = profile
        self._policy = policy
        self._attachment = attachment
        self._kill_switch_mode = kill_switch
        self._survey = Survey()
        self._on_up = on_up
        self._on_stage = on_stage
        self._link = _Link()
        self._tun: Tun | None = None
        #: Why names are asked as they are, in words.
        self._names = ""

    async def run(self) -> NoReturn:
        """Connect, call `on_up` when packets flow, and follow the gateway until the session ends.

        Always ends by an exception: the QvpnError that says why, or the cancellation by which the
        user ends it; the gateway is told either way.
        """
        await self._look_around()
        await self._attachment.prepare(self._kill_switch())
        with self._attachment.watched(self._link.over):
            await self._run()

    async def _run(self) -> NoReturn:
        tunnel = self._link.tunnel = await self._connect()
        try:
            self._learn_pins(tunnel)
            self._on_stage("addresses")
            await self._receive_configuration(tunnel)
            self._on_stage("routes")
            tun = self._tun = await self._attachment.attach(*self._plans(tunnel))
            datapath = self._link.datapath = AioquicDatapath(tun, tunnel)
            datapath.start(self._own_addresses())
            gc.freeze()  # what exists now stays: no collection walks it again while packets wait
            self._on_up()
            await self._follow(tunnel, tun, datapath)
        finally:
            if self._link.datapath is not None:
                self._link.datapath.close()
            tunnel.close(_error_code(self._link.end))

    def set_policy(self, policy: RoutePolicy) -> None:
        """Route by `policy` from now on; a live session follows at once, without a gap.

        Raises what `plan_network` raises, and then changes nothing.
        """
        before, self._policy = self._policy, policy
        if self._link.tunnel is not None and self._tun is not None:
            try:
                self._plans(self._link.tunnel)
            except QvpnError:
                self._policy = before
                raise
        self._link.news.set()

    def offer(self) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        """What the gateway assigned and advertised, and the MTU; empty until it is up."""
        if self._link.tunnel is None or self._tun is None:
            return (), (), 0
        offer = self._offer()
        addresses, routes = tuple(map(str, offer.addresses)), tuple(map(str, offer.routes))
        return addresses, routes, self._link.tunnel.mtu

    def _offer(self) -> GatewayOffer:
        state = self._link.connect_ip
        return GatewayOffer(
            addresses=tuple(ip_interface(entry.prefix) for entry in state.local_addresses),
            routes=ranges_to_prefixes(state.peer_routes),
        )

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
            resolver=self._resolver(),
            mtu=plan.mtu,
            rtt_ms=round(tunnel.rtt * 1000, 2) if tunnel.rtt else None,
            tx_bytes=counters.tx_bytes,
            rx_bytes=counters.rx_bytes,
            tx_packets=counters.tx_packets,
            rx_packets=counters.rx_packets,
            lost_packets=counters.lost_packets,
            drops={**counters.dropped, **link.datapath.counters.dropped},
            warnings=warnings(
                self._policy, plan, self._system(tunnel), self._attachment.kill_switch
            ),
        )

    def _resolver(self) -> str:
        """Who is asked for names, and why, in words."""
        state = self._attachment.dns
        if state is None or self._attachment.dns_plan is None:
            return f"as without the tunnel: {self._names}"
        if state.error is not None:
            return f"as without the tunnel: {state.error}"
        return f"{self._names}, by {state.backend}: {state.reason}"

    async def _connect(self) -> HttpTunnel:
        profile = self.profile
        return await connect(
            profile.host,
            profile.port,
            trust=profile.trust,
            request=await self._request(),
            handler=self._link,
            addresses=await self._known_addresses(),
            socket_factory=self._attachment.open_socket,
            on_stage=self._on_stage,
            tickets=TicketFile(profile.name),
        )

    async def _request(self) -> RequestMaker:
        """What makes the request, once there is a connection to sign for. Raises KeyUnavailable."""
        profile = self.profile
        authority, path = profile.resource
        origin = Origin.of("https", authority)
        key = None
        if profile.key is not None:
            # A desktop's password store may ask its owner first.
            key = await asyncio.to_thread(keys.load, profile.name, profile.key)

        def make(exporter: Exporter) -> Request:
            credential = (
                f"Bearer {profile.token}" if key is None else authenticate(key, exporter, origin)
            )
            headers = (("authorization", credential),)
            return Request("CONNECT", "https", authority, path, "connect-ip", headers)

        return make

    def _learn_pins(self, tunnel: HttpTunnel) -> None:
        """Keep the pins that the gateway announces: it may soon change its key."""
        field = dict(tunnel.response_headers).get(PINS_FIELD)
        pins = announced_pins(field, self.profile.trust)
        if pins is None or set(pins) == set(self.profile.trust.pins):
            return
        try:
            self.profile = profiles.learn_pins(self.profile, pins)
        except QvpnError as error:
            log.warning("the gateway's next key is not remembered: %s", error)
        else:
            log.info("the gateway announced its next key")

    async def _known_addresses(self) -> tuple[str, ...]:
        """The gateway's addresses while our routes or kill switch stop what would find its name."""
        plan = self._attachment.plan
        if plan is not None:
            return tuple(str(address) for address, _port in plan.endpoints)
        if self._attachment.kill_switch is None:
            return ()
        from qvpn_core.client.resolve import resolve  # a third of a second that others save

        return await resolve(self.profile.host, self._attachment.open_socket)

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
                    await self._until(lambda: self._plans(tunnel) != self._attached)
            except TimeoutError:
                _check_device(tun)
                await self._look_around()
            # A LAN that is left is blocked before its routes go.
            if (kill_switch := self._kill_switch()) != self._attachment.kill_switch:
                await self._attachment.set_kill_switch(kill_switch)
            plan, dns = self._plans(tunnel)
            if (plan, dns) == self._attached:
                continue
            await self._attachment.attach(plan, dns)
            datapath.set_addresses(self._own_addresses())
            log.info("the tunnel changed: %d routes, MTU %d", len(plan.routes), plan.mtu)

    async def _look_around(self) -> None:
        """See which networks this machine is attached to now."""
        try:
            self._survey = await asyncio.to_thread(survey)
        except OSError as error:
            log.warning("the machine's network cannot be seen: %s", error)

    def _system(self, tunnel: HttpTunnel | None = None) -> SystemState:
        endpoints = () if tunnel is None else (tunnel.peer,)
        return SystemState(endpoints, self._survey.attached, self._survey.rules_before)

    def _kill_switch(self) -> KillSwitch | None:
        if self._kill_switch_mode == "off":
            return None
        always = self._kill_switch_mode == "always"
        return plan_kill_switch(self._policy, self._system(), always=always)

    @property
    def _attached(self) -> tuple[NetworkPlan | None, DnsPlan | None]:
        return self._attachment.plan, self._attachment.dns_plan

    def _plans(self, tunnel: HttpTunnel) -> tuple[NetworkPlan, DnsPlan | None]:
        """What the network and the names should be now."""
        plan = plan_network(self._policy, self._offer(), self._system(tunnel), tunnel.mtu)
        choice = choose_dns(self._link.connect_ip.dns, self._policy, plan, wanted=self.profile.dns)
        self._names = choice.reason
        return plan, choice.plan

    def _own_addresses(self) -> list[bytes]:
        plan = self._attachment.plan
        assert plan is not None
        return [address.ip.packed for address in plan.addresses]


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
