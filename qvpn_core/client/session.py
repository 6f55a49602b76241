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
from ipaddress import ip_interface
from typing import NoReturn

from qvpn_core.auth.concealed import Origin, authenticate
from qvpn_core.auth.exporter import Exporter
from qvpn_core.client import keys, profiles
from qvpn_core.client.attachment import Attachment
from qvpn_core.client.link import Link
from qvpn_core.client.networks import Networks
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.client.profiles import Profile
from qvpn_core.client.status import Status
from qvpn_core.client.ticketfile import TicketFile
from qvpn_core.client.uplink import Uplink
from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.errors import (
    GatewayUnreachable,
    PermissionMissing,
    QvpnError,
    TunUnavailable,
)
from qvpn_core.masque.route import ranges_to_prefixes
from qvpn_core.net.names import FWMARK
from qvpn_core.net.plan import NetworkPlan
from qvpn_core.net.tun import Tun
from qvpn_core.transport.dial import RequestMaker
from qvpn_core.transport.interface import HttpTunnel, Request, TunnelCounters
from qvpn_core.transport.reach import Target, endpoints_of
from qvpn_core.transport.trust import PINS_FIELD, announced_pins

log = logging.getLogger("qvpn.session")

#: Seconds between two looks whether the TUN still exists.
DEVICE_CHECK = 5.0

#: Seconds for which a session whose tunnel ends waits for one that is being opened beside it.
RESCUE = 5.0
#: Seconds for which a tunnel that was replaced still receives what was under way.
HANDOVER = 2.0


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
        self._link: Link | None = None
        #: Replaced, and closed soon.
        self._former: Link | None = None
        #: What earlier tunnels of this session have moved and dropped.
        self._past = TunnelCounters()
        self._tun: Tun | None = None

    async def run(self) -> NoReturn:
        """Connect, call `on_up` when packets flow, and follow the gateway until the session ends.

        Always ends by an exception: the QvpnError that says why, or the cancellation by which the
        user ends it; the gateway is told either way.
        """
        await self._attachment.prepare()
        self._uplink = await self._ways()
        link = self._link = await self._uplink.open()
        try:
            self._learn_pins(link.tunnel)
            await link.configure()
            tun = self._tun = await self._attachment.attach(self._plan(link))
            self._carry(link, tun)
            gc.freeze()  # what exists now stays: no collection walks it again while packets wait
            self._on_up()
            while True:
                await self._switch(await self._follow(self._link, tun), tun)
        finally:
            if self._link.datapath is not None:
                self._link.datapath.close()
            for each in (self._former, self._link):
                if each is not None:
                    each.close()

    def snapshot(self) -> Status:
        """The session's part of the status; empty until it is up."""
        link, plan = self._link, self._attachment.plan
        if link is None or link.datapath is None or self._tun is None or plan is None:
            return Status()
        tunnel = link.tunnel
        counters = _sum(self._past, tunnel.counters, link.datapath.counters.dropped)
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
            drops=counters.dropped,
        )

    async def _ways(self) -> Uplink:
        profile = self.profile
        return Uplink(
            Target(profile.host, profile.trust, _marked_socket, TicketFile(profile.name)),
            await endpoints_of(profile.host, profile.port, self._known_addresses()),
            profile.transport,
            await self._request(),
            Networks(profile.gateway),
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

    def _known_addresses(self) -> tuple[str, ...]:
        """The gateway's addresses while our routes swallow what would resolve its name."""
        plan = self._attachment.plan
        return () if plan is None else tuple(str(address) for address, _port in plan.endpoints)

    def _carry(self, link: Link, tun: Tun) -> None:
        """Move packets between the TUN and `link` from now on."""
        datapath = link.datapath = AioquicDatapath(tun, link.tunnel)
        datapath.start(self._own_addresses())

    async def _follow(self, link: Link, tun: Tun) -> Link:
        """Apply what the gateway and the path change, until there is a better link."""
        better = asyncio.create_task(self._uplink.better(link), name="qvpn better transport")
        better.add_done_callback(lambda _task: link.news.set())
        try:
            try:
                await self._keep(link, tun, better)
            except QvpnError:
                if self._uplink.moving:
                    await asyncio.wait([better], timeout=RESCUE)
                if not better.done() or better.exception() is not None:
                    raise
            return better.result()
        except BaseException:
            # Nothing goes on behind the session's back, and nothing that was opened stays.
            better.cancel()
            await asyncio.wait([better])
            if not better.cancelled() and better.exception() is None:
                better.result().close()
            raise

    async def _keep(self, link: Link, tun: Tun, better: asyncio.Task[Link]) -> None:
        while not better.done():
            try:
                async with asyncio.timeout(DEVICE_CHECK):
                    await link.until(
                        lambda: better.done() or self._plan(link) != self._attachment.plan
                    )
            except TimeoutError:
                _check_device(tun)
                continue
            if not better.done():
                await self._apply(link)

    async def _apply(self, link: Link) -> None:
        plan = self._plan(link)
        await self._attachment.attach(plan)
        assert link.datapath is not None
        link.datapath.set_addresses(self._own_addresses())
        log.info("the tunnel changed: %d routes, MTU %d", len(plan.routes), plan.mtu)

    async def _switch(self, link: Link, tun: Tun) -> None:
        """Go on over another link, under the same TUN and addresses."""
        old, self._link = self._link, link
        assert old is not None
        assert old.datapath is not None
        old.datapath.close()
        self._past = _sum(self._past, old.tunnel.counters, old.datapath.counters.dropped)
        self._carry(link, tun)
        old.datapath = link.datapath  # what is under way on it arrives
        if self._former is not None:
            self._former.close()
        self._former = old
        asyncio.get_running_loop().call_later(HANDOVER, old.close)
        log.info("moved from %s to %s", old.tunnel.transport, link.tunnel.transport)
        self._learn_pins(link.tunnel)
        await self._apply(link)

    def _plan(self, link: Link) -> NetworkPlan:
        state = link.connect_ip
        offer = GatewayOffer(
            addresses=tuple(ip_interface(entry.prefix) for entry in state.local_addresses),
            routes=ranges_to_prefixes(state.peer_routes),
        )
        # All of them: the next connection may be to another.
        here = SystemState(endpoints=(link.tunnel.peer, *self._uplink.addresses))
        return plan_network(self._policy, offer, here, link.tunnel.mtu)

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


def _sum(past: TunnelCounters, now: TunnelCounters, drops: dict[str, int]) -> TunnelCounters:
    """What a session has moved and dropped so far; `drops` are those of the datapath."""
    total = TunnelCounters(
        past.tx_packets + now.tx_packets,
        past.tx_bytes + now.tx_bytes,
        past.rx_packets + now.rx_packets,
        past.rx_bytes + now.rx_bytes,
        dict(past.dropped),
    )
    for dropped in (now.dropped, drops):
        for reason, count in dropped.items():
            total.drop(reason, count)
    return total
