"""Services on streams: CONNECT (RFC 9110 section 9.3.6) and CONNECT-UDP (RFC 9298) for devices.

The gateway connects on behalf of a device to what the device's groups allow, decided by the address
that is connected to (`service_rules`). Every device has its own limits, so that one that is slow or
hostile costs others nothing. Refusals say why, by Proxy-Status (RFC 9209); only callers that are
known get here. It refuses to know packets, tunnels and the registry.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address, ip_network

from qvpn_core.masque.connect_udp import PROTOCOL
from qvpn_core.masque.target import IPAddress, Target, match_udp, parse_authority
from qvpn_core.transport.interface import Headers, IncomingRequest, Request
from qvpn_core.transport.relay import RelayCounters, relay
from qvpn_server.admin_protocol import ServiceStatus, ServiceTraffic
from qvpn_server.config import GatewayConfig, join_host_port
from qvpn_server.dialing import (
    Resolver,
    ServiceUnavailable,
    connect_tcp,
    connect_udp,
    timed_out,
    unavailable,
)
from qvpn_server.own_addresses import is_own
from qvpn_server.pool import IPNetwork
from qvpn_server.registry.records import Device, DevicePolicy
from qvpn_server.service_rules import Protocol, allowed, classify, plain
from qvpn_server.udp_flow import UdpFlow
from qvpn_server.website import refusal

log = logging.getLogger(__name__)

#: Open streams and flows of one device, and how many of them may be connecting at a time.
MAX_FLOWS = 512
MAX_CONNECTING = 64
#: Seconds for everything until a service has accepted.
CONNECT_TIMEOUT = 10.0
#: Descriptors that are left to everything else.
SPARE_DESCRIPTORS = 256
#: How the gateway calls itself in Proxy-Status (RFC 9209 section 2).
PROXY = "qvpn"

_PROHIBITED = "destination_ip_prohibited"


def service_target(request: Request) -> tuple[Protocol, Target] | None:
    """What a request for a service asks for, or None for any other request."""
    if request.method != "CONNECT":
        return None
    if request.protocol is None:
        if request.scheme or request.path:
            return None  # RFC 9114 section 4.4, RFC 9113 section 8.5; HTTP/1.1 has no streams here
        try:
            return "tcp", parse_authority(request.authority)
        except ValueError:
            return None
    target = match_udp(request.path) if request.protocol == PROTOCOL else None
    return None if target is None else ("udp", target)


@dataclass(slots=True, eq=False)
class _Flow:
    """One stream or UDP flow."""

    protocol: Protocol
    target: Target
    #: What it is connected to, once it is.
    address: IPAddress | None = None
    task: asyncio.Task[None] | None = None
    #: Bytes towards the device, and from it.
    moved: Callable[[], tuple[int, int]] = lambda: (0, 0)


@dataclass(slots=True, eq=False)
class _User:
    """One device that uses services now."""

    device: Device
    policy: DevicePolicy
    peer: str
    #: What its flows that are over have moved.
    past: ServiceTraffic = field(default_factory=lambda: ServiceTraffic(drops={}, refused={}))
    flows: set[_Flow] = field(default_factory=set)
    connecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTING))


class Services:
    """All services that devices use through one gateway. `announce` gives fields for answers."""

    def __init__(self, config: GatewayConfig, announce: Callable[[], Headers]) -> None:
        self._guarded: tuple[IPNetwork, ...] = tuple(pool.network for pool in config.pools)
        self._announce = announce
        self._resolver = Resolver()
        self._users: dict[int, _User] = {}
        self._past = ServiceTraffic(drops={}, refused={})
        soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = max(MAX_FLOWS, soft - SPARE_DESCRIPTORS)

    def __len__(self) -> int:
        return sum(len(user.flows) for user in self._users.values())

    @property
    def devices(self) -> list[int]:
        """The numbers of the devices that use services now."""
        return list(self._users)

    def serve(
        self,
        incoming: IncomingRequest,
        device: Device,
        policy: DevicePolicy,
        protocol: Protocol,
        target: Target,
    ) -> None:
        """Answer a request for a service, now or within `CONNECT_TIMEOUT`."""
        user = self._users.get(device.id)
        if len(self) >= self._max_open or (user and len(user.flows) >= MAX_FLOWS):
            full = ServiceUnavailable(503, "connection_limit_reached", "too many are open")
            self._refuse(incoming, self._past, full)
            return
        if user is None:
            user = self._users[device.id] = _User(device, policy, "")
        user.device, user.policy = device, policy
        user.peer = join_host_port(*incoming.peer)
        flow = _Flow(protocol, target)
        user.flows.add(flow)
        user.past.opened += 1
        flow.task = asyncio.create_task(self._run(incoming, user, flow), name="qvpn service")
        flow.task.add_done_callback(partial(self._over, user, flow))

    def update(self, number: int, now: tuple[Device, DevicePolicy] | None) -> None:
        """The registry changed: hold a device to what it may now; None: nothing any more."""
        user = self._users.get(number)
        if user is None:
            return
        if now is not None:
            user.device, user.policy = now
        for flow in list(user.flows):
            # One that is still connecting is judged when it has an address.
            if flow.task is not None and (
                now is None or (flow.address and not self._allowed(user, flow, flow.address))
            ):
                flow.task.cancel()

    async def close(self) -> None:
        """Cut everything."""
        tasks = [flow.task for user in self._users.values() for flow in user.flows if flow.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def status(self) -> list[ServiceStatus]:
        """What devices use now."""
        found = []
        for user in self._users.values():
            status = ServiceStatus(
                device=user.device.name, peer=user.peer, drops={}, refused={}, open=len(user.flows)
            )
            _add(status, user.past)
            for flow in user.flows:
                _add_moved(status, flow)
            found.append(status)
        return found

    def totals(self) -> ServiceTraffic:
        """The same of all devices, past ones too."""
        totals = ServiceTraffic(drops={}, refused={})
        for part in (self._past, *self.status()):
            totals.open += part.open
            _add(totals, part)
        return totals

    async def _run(self, incoming: IncomingRequest, user: _User, flow: _Flow) -> None:
        connecting = asyncio.create_task(self._connect(user, flow))
        giving_up = asyncio.create_task(incoming.hold().broken())
        sock: socket.socket | None = None
        try:
            await asyncio.wait((connecting, giving_up), return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                sock = connecting.result()
        except ServiceUnavailable as refused:
            self._refuse(incoming, user.past, refused)
        finally:
            giving_up.cancel()
            if sock is None:
                connecting.cancel()
                connecting.add_done_callback(_close_unused)
        if sock is not None:
            flow.address = ip_address(sock.getpeername()[0])
            await self._carry(incoming, user, flow, sock)

    async def _carry(
        self, incoming: IncomingRequest, user: _User, flow: _Flow, sock: socket.socket
    ) -> None:
        """Accept the request and carry what belongs to it, until its end."""
        host, port = sock.getpeername()[:2]
        status = ("proxy-status", f'{PROXY}; next-hop="{join_host_port(host, port)}"')
        headers = (status, *self._announce())
        if flow.protocol == "tcp":
            counters = RelayCounters()
            flow.moved = lambda: (counters.sent, counters.received)
            await relay(incoming.accept_stream(headers), sock, counters)
            return
        udp = UdpFlow(sock, partial(_count, user.past.drops))
        tunnel = incoming.accept(udp, headers)
        flow.moved = lambda: (tunnel.counters.tx_bytes, tunnel.counters.rx_bytes)
        try:
            await udp.run(tunnel)
        finally:
            for reason, count in tunnel.counters.dropped.items():
                _count(user.past.drops, reason, count)

    async def _connect(self, user: _User, flow: _Flow) -> socket.socket:
        """A connected socket. Raises ServiceUnavailable."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT), user.connecting:
                addresses = await self._find(user, flow)
                if flow.protocol == "udp":
                    return connect_udp(addresses, flow.target.port)
                return await connect_tcp(addresses, flow.target.port)
        except TimeoutError:
            raise timed_out() from None
        except OSError as error:
            raise unavailable(error) from error

    async def _find(self, user: _User, flow: _Flow) -> list[IPAddress]:
        """The addresses of the flow's target that may be used. Raises ServiceUnavailable."""
        host = flow.target.host
        found = await self._resolver.lookup(host) if isinstance(host, str) else [host]
        usable = [address for address in found if self._allowed(user, flow, address)]
        if not usable:
            raise ServiceUnavailable(403, _PROHIBITED, f"{flow.target} is not allowed")
        return usable

    def _allowed(self, user: _User, flow: _Flow, address: IPAddress) -> bool:
        """Whether an address may be connected to for a flow."""
        routed, address = address, plain(address)
        own = (ip_network(address),) if is_own(address) or is_own(routed) else ()
        place = classify(address, (*own, *self._guarded))
        target = flow.target
        return allowed(
            user.policy.services, flow.protocol, target.host, address, target.port, place
        )

    def _refuse(
        self, incoming: IncomingRequest, traffic: ServiceTraffic, reason: ServiceUnavailable
    ) -> None:
        _count(traffic.refused, reason.error)
        status, headers, body = refusal(incoming.request, reason.status, reason.words, time.time())
        field_ = ("proxy-status", f"{PROXY}; error={reason.error}")
        incoming.respond(status, (*headers, field_, *self._announce()), body)

    def _over(self, user: _User, flow: _Flow, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (defect := task.exception()) is not None:
            log.error("a service for %s failed by a defect", user.device.name, exc_info=defect)
        _add_moved(user.past, flow)
        user.flows.discard(flow)
        if not user.flows:
            _add(self._past, user.past)
            self._users.pop(user.device.id, None)


def _close_unused(connecting: asyncio.Task[socket.socket]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()


def _add(total: ServiceTraffic, part: ServiceTraffic) -> None:
    total.opened += part.opened
    total.tx_bytes += part.tx_bytes
    total.rx_bytes += part.rx_bytes
    for reason, count in part.drops.items():
        _count(total.drops, reason, count)
    for reason, count in part.refused.items():
        _count(total.refused, reason, count)


def _add_moved(traffic: ServiceTraffic, flow: _Flow) -> None:
    sent, received = flow.moved()
    traffic.tx_bytes += sent
    traffic.rx_bytes += received


def _count(counts: dict[str, int], reason: str, count: int = 1) -> None:
    counts[reason] = counts.get(reason, 0) + count
