"""One session: from the gateway's name to packets flowing, until it ends for whatever reason.

A thin shell around `ConnectIpSession`, the planner and a datapath. It ends what it began, transport
and datapath; the network it attached stays for the next session, see `attachment.py`. It decides
nothing about trying again, that is `states.py`, and not which transport is used, that is
`uplink.py`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
from collections.abc import Callable, Sequence
from ipaddress import ip_interface
from typing import NoReturn

from qvpn_core.client.attachment import Attachment
from qvpn_core.client.captive import Portal, find_portal
from qvpn_core.client.credential import learn_pins, request_maker
from qvpn_core.client.dns_policy import choose_dns
from qvpn_core.client.explain import warnings
from qvpn_core.client.link import Link
from qvpn_core.client.moving import Mover, first_to_end
from qvpn_core.client.networks import Networks
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
from qvpn_core.client.uplink import Uplink
from qvpn_core.datapath.native import make_datapath
from qvpn_core.errors import (
    CaptivePortal,
    GatewayUnreachable,
    NameNotResolved,
    QvpnError,
    TunUnavailable,
)
from qvpn_core.masque.route import ranges_to_prefixes
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.plan import KillSwitch, NetworkPlan
from qvpn_core.net.survey import Survey, survey
from qvpn_core.net.tun import Tun
from qvpn_core.transport.dial import resolve
from qvpn_core.transport.interface import Address, HttpTunnel, TunnelCounters
from qvpn_core.transport.reach import Target, endpoints_of

log = logging.getLogger("qvpn.session")

#: Seconds between two looks whether the TUN still exists, and at the networks around.
DEVICE_CHECK = 5.0
#: Seconds for which a session whose tunnel ends waits for one that is being opened beside it.
RESCUE = 5.0
#: Seconds for which a tunnel that was replaced still receives what was under way.
HANDOVER = 2.0
#: Seconds below which a refusal came at once, as from a machine whose gateway restarts.
AT_ONCE = 1.0


class Session:
    """One attempt and, when it succeeds, one live session."""

    def __init__(
        self,
        profile: Profile,
        policy: RoutePolicy,
        attachment: Attachment,
        mover: Mover,
        *,
        kill_switch: KillSwitchMode,
        on_up: Callable[[], None],
        on_stage: Callable[[Stage], None],
        hurried: bool = False,
    ) -> None:
        #: The profile, with the pins that the gateway announced.
        self.profile = profile
        self._policy = policy
        self._attachment = attachment
        self._kill_switch_mode = kill_switch
        #: Whether there is a helper that holds to the kill switch.
        self._prepared = False
        self._survey = Survey()
        self._mover = mover
        self._on_up = on_up
        self._on_stage = on_stage
        #: Whether the next attempt, if this one fails at once, comes before we look for reasons.
        self._hurried = hurried
        self._link: Link | None = None
        #: Replaced, and closed soon.
        self._former: Link | None = None
        #: What earlier tunnels of this session have moved and dropped.
        self._past = TunnelCounters()
        self._tun: Tun | None = None
        #: Why names are asked as they are, in words.
        self._names = ""

    async def run(self) -> NoReturn:
        """Connect, call `on_up` when packets flow, and follow the gateway until the session ends.

        Always ends by an exception: the QvpnError that says why, or the cancellation by which the
        user ends it; the gateway is told either way.
        """
        await self._look_around()
        if not self._attachment.permitted:
            self._on_stage("permission")
        await self._attachment.prepare(self._kill_switch())
        self._prepared = True
        await self._hold()  # the user may have been asked for a while, and have changed it
        helper: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()

        def lost(error: QvpnError) -> None:
            if not helper.done():
                helper.set_exception(error)

        with self._attachment.watched(lost):
            await first_to_end(self._run(), helper)

    async def _run(self) -> NoReturn:
        try:
            link = await self._connect()
            self.profile = learn_pins(self.profile, link.tunnel.response_headers)
            self._on_stage("addresses")
            await link.configure()
            self._on_stage("routes")
            tun = self._tun = await self._attachment.attach(*self._plans(link))
            self._carry(link, tun)
            gc.freeze()  # what exists now stays: no collection walks it again while packets wait
            self._on_up()
            await first_to_end(self._go_on(link, tun), self._mover.follow())
        finally:
            if self._link is not None and self._link.datapath is not None:
                self._link.datapath.close()
            for each in (self._former, self._link):
                if each is not None:
                    each.close()

    async def set_kill_switch(self, mode: KillSwitchMode) -> None:
        """Hold back by `mode` from now on; it is in force on return if the session is up.

        Raises NetworkSetupFailed and HelperLost, and then changes nothing.
        """
        before, self._kill_switch_mode = self._kill_switch_mode, mode
        if not self._prepared:
            return
        try:
            await self._hold()
        except QvpnError:
            self._kill_switch_mode = before
            raise

    def set_policy(self, policy: RoutePolicy) -> None:
        """Route by `policy` from now on; a live session follows at once, without a gap.

        Raises what `plan_network` raises, and then changes nothing.
        """
        before, self._policy = self._policy, policy
        if self._link is None:
            return
        if self._tun is not None:
            try:
                self._plans(self._link)
            except QvpnError:
                self._policy = before
                raise
        self._link.news.set()

    def offer(self) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        """What the gateway assigned and advertised, and the MTU; empty until it is up."""
        if self._link is None or self._tun is None:
            return (), (), 0
        offer = _offer(self._link)
        addresses, routes = tuple(map(str, offer.addresses)), tuple(map(str, offer.routes))
        return addresses, routes, self._link.tunnel.mtu

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
            resolver=self._resolver(),
            mtu=plan.mtu,
            rtt_ms=round(tunnel.rtt * 1000, 2) if tunnel.rtt else None,
            tx_bytes=counters.tx_bytes,
            rx_bytes=counters.rx_bytes,
            tx_packets=counters.tx_packets,
            rx_packets=counters.rx_packets,
            lost_packets=counters.lost_packets,
            drops=counters.dropped,
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

    # Connecting

    async def _connect(self) -> Link:
        """The first link. Raises CaptivePortal when such a one is why there is none."""
        profile, around = self.profile, self._mover.surroundings
        request = await request_maker(profile)

        async def dial() -> HttpTunnel:
            if self._link is not None:
                self._link.close()  # of an attempt that the network's change overtook
            self._link = await self._uplink.open(self._on_stage)
            return self._link.tunnel

        begin = asyncio.get_running_loop().time()
        try:
            self._on_stage("resolving")
            if not around.addresses:
                around.addresses = tuple(await self._find(profile.host))
            self._uplink = Uplink(
                Target(
                    profile.host,
                    profile.trust,
                    self._attachment.open_socket,
                    TicketFile(profile.name),
                ),
                await endpoints_of(profile.host, profile.port, around.addresses),
                profile.transport,
                request,
                Networks(profile.gateway),
            )
            await self._mover.connect(dial)
        except (GatewayUnreachable, NameNotResolved) as error:
            if self._hurried and asyncio.get_running_loop().time() - begin < AT_ONCE:
                raise
            portal = await find_portal(self._attachment.open_socket, self._find)
            if portal is None:
                raise
            raise self._behind(portal) from error
        assert self._link is not None
        return self._link

    async def _find(self, host: str) -> Sequence[str]:
        """The addresses of a host outside the tunnel. Raises NameNotResolved."""
        if not self._shut_in:
            return [endpoint.address[0] for endpoint in await resolve(host, self.profile.port)]
        from qvpn_core.client.resolve import resolve as resolve_past

        return await resolve_past(host, self._attachment.open_socket)

    @property
    def _shut_in(self) -> bool:
        """Whether routes or a kill switch of ours stop what other programs send."""
        return self._attachment.plan is not None or self._attachment.kill_switch is not None

    def _behind(self, portal: Portal) -> CaptivePortal:
        what = "this network lets nobody out before they have signed in"
        hint = f"open {portal.url} in a browser, then run qvpn up again"
        if self._shut_in:
            hint = f"run qvpn sign-in, and open {portal.url} in a browser"
        return CaptivePortal(what, hint, url=portal.url)

    # Following

    def _carry(self, link: Link, tun: Tun) -> None:
        """Move packets between the TUN and `link` from now on."""
        datapath = link.datapath = make_datapath(tun, link.tunnel)
        datapath.start(self._own_addresses())

    async def _go_on(self, link: Link, tun: Tun) -> NoReturn:
        """Follow the link, and the better ones after it, until one ends.

        A better link becomes the session's own without a wait between: nobody else would close it.
        """
        while True:
            link = await self._follow(link, tun)
            await self._switch(link, tun)

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
                    await link.until(lambda: better.done() or not self._settled(link))
            except TimeoutError:
                _check_device(tun)
                await self._look_around()
            if not better.done():
                await self._apply(link)

    async def _apply(self, link: Link) -> None:
        """Make what is planned now so, where it is not."""
        await self._hold()  # a LAN that is left is blocked before its routes go
        plan, dns = self._plans(link)
        if (plan, dns) == self._attached:
            return
        await self._attachment.attach(plan, dns)
        assert link.datapath is not None
        link.datapath.set_addresses(self._own_addresses())
        log.info("the tunnel changed: %d routes, MTU %d", len(plan.routes), plan.mtu)

    async def _hold(self) -> None:
        """Have the kill switch in force that is wanted now, or none."""
        if (kill_switch := self._kill_switch()) != self._attachment.kill_switch:
            await self._attachment.set_kill_switch(kill_switch)

    async def _switch(self, link: Link, tun: Tun) -> None:
        """Go on over another link, under the same TUN and addresses."""
        old, self._link = self._link, link
        assert old is not None
        assert old.datapath is not None
        old.datapath.close()
        self._past = _sum(self._past, old.tunnel.counters, old.datapath.counters.dropped)
        self._mover.switch(link.tunnel)
        self._carry(link, tun)
        old.datapath = link.datapath  # what is under way on it arrives
        if self._former is not None:
            self._former.close()
        self._former = old
        asyncio.get_running_loop().call_later(HANDOVER, old.close)
        log.info("moved from %s to %s", old.tunnel.transport, link.tunnel.transport)
        self.profile = learn_pins(self.profile, link.tunnel.response_headers)
        await self._apply(link)

    async def _look_around(self) -> None:
        """See which networks this machine is attached to now."""
        try:
            self._survey = await asyncio.to_thread(survey)
        except OSError as error:
            log.warning("the machine's network cannot be seen: %s", error)

    # Planning

    def _system(self, tunnel: HttpTunnel | None = None) -> SystemState:
        endpoints: tuple[Address, ...] = ()
        if tunnel is not None:
            # All of them: the next connection may be to another.
            endpoints = (tunnel.peer, *self._uplink.addresses)
        return SystemState(endpoints, self._survey.attached, self._survey.rules_before)

    def _kill_switch(self) -> KillSwitch | None:
        if self._kill_switch_mode == "off":
            return None
        always = self._kill_switch_mode == "always"
        return plan_kill_switch(self._policy, self._system(), always=always)

    def _settled(self, link: Link) -> bool:
        """Whether what is planned now is so."""
        held = self._kill_switch() == self._attachment.kill_switch
        return held and self._plans(link) == self._attached

    @property
    def _attached(self) -> tuple[NetworkPlan | None, DnsPlan | None]:
        return self._attachment.plan, self._attachment.dns_plan

    def _plans(self, link: Link) -> tuple[NetworkPlan, DnsPlan | None]:
        """What the network and the names should be now."""
        plan = plan_network(self._policy, _offer(link), self._system(link.tunnel), link.tunnel.mtu)
        choice = choose_dns(link.connect_ip.dns, self._policy, plan, wanted=self.profile.dns)
        self._names = choice.reason
        return plan, choice.plan

    def _own_addresses(self) -> list[bytes]:
        plan = self._attachment.plan
        assert plan is not None
        return [address.ip.packed for address in plan.addresses]


def _offer(link: Link) -> GatewayOffer:
    state = link.connect_ip
    return GatewayOffer(
        addresses=tuple(ip_interface(entry.prefix) for entry in state.local_addresses),
        routes=ranges_to_prefixes(state.peer_routes),
    )


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
        past.lost_packets + now.lost_packets,
        dropped=dict(past.dropped),
    )
    for dropped in (now.dropped, drops):
        for reason, count in dropped.items():
            total.drop(reason, count)
    return total
