"""The running gateway: who is let in, what they are told, and what the administrator sees.

Binds the registry, the listener, the sessions and the packet path. What touches the network of the
kernel is in `network`, the process around it in `service`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from qvpn_core.errors import QvpnError, TunUnavailable
from qvpn_core.net.tun import Tun
from qvpn_core.transport.interface import Headers, IncomingRequest
from qvpn_core.transport.listeners import GatewayListener
from qvpn_core.transport.trust import PINS_FIELD, format_pins
from qvpn_server.admin import serve_admin
from qvpn_server.admin_protocol import (
    Done,
    GatewayStatus,
    ReloadRequest,
    Reply,
    Request,
    Revoked,
    SessionStatus,
    StatusRequest,
    Traffic,
    rfc3339,
)
from qvpn_server.administration import perform
from qvpn_server.authentication import Authenticator
from qvpn_server.config import GatewayConfig, join_host_port
from qvpn_server.device import DeviceTunnel
from qvpn_server.enrolment import is_enrolment, receive_enrolment
from qvpn_server.forwarding import BATCH, Forwarder
from qvpn_server.identity import announced_pins
from qvpn_server.live import LivePolicies
from qvpn_server.lookups import LookUps
from qvpn_server.network import gateway_network
from qvpn_server.offload import Offload
from qvpn_server.registry import Device, DevicePolicy, Invite, Registry
from qvpn_server.services import Services, service_target
from qvpn_server.sessions import Session, SessionTable
from qvpn_server.statedir import StateDir
from qvpn_server.website import Site, connect_ip_scope, refusal

log = logging.getLogger(__name__)

#: Seconds that a session's old tunnel still receives when the device has opened a new one.
TAKEOVER = 1.0


class Gateway:
    """Admits devices and keeps their sessions. Make one with :func:`running_gateway`."""

    def __init__(
        self,
        config: GatewayConfig,
        registry: Registry,
        sessions: SessionTable,
        forwarder: Forwarder,
        state: StateDir,
    ) -> None:
        self._config = config
        self._state = state
        self._registry = registry
        self._sessions = sessions
        self._forwarder = forwarder
        self.services = Services(config, self._announcement)
        self.policies = LivePolicies(config, registry, sessions, self.services)
        self._lookups = LookUps(registry, config)
        self._authenticator = Authenticator(registry, self._lookups)
        self._site = Site.built_in(0)
        #: SPKI pins that devices are told; empty when an authority vouches for the gateway.
        self._pins: tuple[str, ...] = ()
        self._since = datetime.now(UTC)
        #: What sessions that ended have moved.
        self._past = Traffic(drops={})
        self.listener: GatewayListener | None = None
        #: Carries sessions natively, where that is possible.
        self.offload: Offload | None = None
        self.policies.on_change = self._follow
        self.reload()

    def on_request(self, incoming: IncomingRequest) -> None:
        """Answer one request: a device gets a tunnel or a service, everybody else the web site."""
        request = incoming.request
        now = time.time()
        device = None
        try:
            caller = self._authenticator.caller(incoming)
            device = caller if isinstance(caller, Device) else None
            scope, service = connect_ip_scope(request), service_target(request)
            if isinstance(caller, Invite) and is_enrolment(request):
                receive_enrolment(incoming, caller, self._registry, lambda: self._pins)
            elif device is not None and service is not None:
                policy = self._lookups.policy_of(device)
                self.services.serve(incoming, device, policy, *service)
            elif device is None or scope is None:
                incoming.respond(*self._site.answer(request, now))
            elif not scope.unlimited:
                words = "this gateway does not limit tunnels to a target or protocol"
                incoming.respond(*refusal(request, 501, words, now))
            else:
                policy = self._lookups.policy_of(device)
                full = self.policies.no_room(device, policy)
                if full is not None:
                    incoming.respond(*refusal(request, 503, full, now))
                else:
                    self._admit(incoming, device, policy, now)
        except QvpnError as error:
            # The pool or the registry. A stranger must not learn of it; a device tries again.
            log.error("%s", error)
            if device is None:
                incoming.respond(*self._site.answer(request, now))
            else:
                incoming.respond(*refusal(request, 503, error.what, now))

    def reload(self) -> None:
        """Read the certificate, its key and the web site anew; sessions stay. Raises UsageError.

        Nothing changes when one of them cannot be used.
        """
        config = self._config
        site = Site.load(config.site) if config.site else Site.built_in(time.time())
        pins = announced_pins(config, self._state)
        if self.listener is not None:
            self.listener.use_certificate(config.certificate, config.private_key)
        self._site, self._pins = site, pins

    def answer(self, request: Request, uid: int) -> Reply:
        """Answer the administrator who has this user ID. Raises QvpnError."""
        match request:
            case StatusRequest():
                return self._status()
            case ReloadRequest():
                self.reload()
                return Done()
        barred = perform(self._registry, self._config, request, int(time.time()), f"uid {uid}")
        live = barred is not None and self._sessions.of_device(barred.id) is not None
        if barred is not None and self.listener is not None:
            # Of all devices: the others shake hands in full once.
            self.listener.forget_tickets()
        self.policies.follow()
        return Done() if barred is None else Revoked(barred.name, disconnected=live)

    def _admit(
        self, incoming: IncomingRequest, device: Device, policy: DevicePolicy, now: float
    ) -> None:
        addresses = self._registry.lease(device, self._config.pools)
        clock = asyncio.get_running_loop().time
        handler = DeviceTunnel(self._config, self._forwarder, clock, self._ended)
        tunnel = incoming.accept(handler, self._announcement())
        session = Session(
            device.id,
            device.name,
            addresses,
            tunnel,
            since=now,
            mtu=tunnel.mtu,
            groups=device.groups,
            policy=policy,
            destinations=self.policies.destinations.of(policy),
            tell=handler.policy_changed,
        )
        replaced = self._sessions.add(session)
        if replaced is not None:
            replaced.tunnel.unroute()
        handler.open(session)
        if self.offload is not None:
            self.offload.carry(session)
        log.info(
            "%s connected over %s from %s with %s",
            device.name,
            incoming.transport,
            join_host_port(*incoming.peer),
            ", ".join(map(str, addresses)),
        )
        if replaced is not None:
            log.info("%s: the new session replaces an older one", device.name)
            # Its last packets may be under way still, and arrive.
            asyncio.get_running_loop().call_later(TAKEOVER, replaced.tunnel.close)

    def _follow(self, session: Session) -> None:
        if self.offload is not None:
            self.offload.follow(session)

    def _announcement(self) -> Headers:
        """The pins for a device, the next one with them while there is one."""
        return ((PINS_FIELD, format_pins(self._pins)),) if self._pins else ()

    def _ended(self, session: Session, error: QvpnError | None) -> None:
        _add(self._past, _traffic(session))
        if self._sessions.remove(session):
            log.info("%s disconnected%s", session.device, f": {error.what}" if error else "")

    def _status(self) -> GatewayStatus:
        assert self.listener is not None
        sessions = [_session_status(session) for session in self._sessions]
        totals = Traffic(drops=dict(self._forwarder.drops))
        if self.offload is not None:
            _add(totals, Traffic(drops=self.offload.drops))
        for traffic in (self._past, *sessions):
            _add(totals, traffic)
        return GatewayStatus(
            host=self._config.host,
            listen=self.listening,
            since=rfc3339(self._since),
            connections=self.listener.connections,
            sessions=sessions,
            totals=totals,
            services=self.services.status(),
            service_totals=self.services.totals(),
            memory_bytes=_resident_memory(),
        )

    @property
    def listening(self) -> list[str]:
        """The addresses that are listened on, with their real ports."""
        assert self.listener is not None
        return [join_host_port(*address) for address in self.listener.addresses]


@asynccontextmanager
async def running_gateway(
    state: StateDir, config: GatewayConfig, stopped: asyncio.Future[None]
) -> AsyncIterator[Gateway]:
    """A gateway that serves while inside, and leaves nothing in the kernel afterwards.

    The caller holds the state directory's lock. Raises QvpnError when it cannot start; `stopped`
    gets one when it cannot go on.
    """
    async with AsyncExitStack() as stack:
        registry = stack.enter_context(Registry.open(config.registry or state.registry))
        tun = await stack.enter_async_context(gateway_network(config, state.sysctls))
        sessions = SessionTable()
        forwarder = Forwarder(
            sessions=sessions,
            own={address.version: address.packed for address in config.gateway_addresses},
            write_tun=tun.write_batch,
        )
        gateway = Gateway(config, registry, sessions, forwarder, state)
        pump = _Pump(tun, forwarder, stopped)
        stack.callback(pump.stop)
        gateway.offload = Offload(tun, sessions, pump.forward, pump.start, pump.gone)
        if not gateway.offload.start():
            pump.start()
        gateway.listener = await GatewayListener.start(
            config.listen,
            certificate=config.certificate,
            private_key=config.private_key,
            on_request=gateway.on_request,
        )
        # Without a reason phrase: callers who were never admitted get this close as well.
        stack.push_async_callback(gateway.listener.close)
        stack.push_async_callback(gateway.services.close)
        stack.enter_context(gateway.offload.serving(gateway.listener))
        await stack.enter_async_context(gateway.policies.following_others())
        await stack.enter_async_context(serve_admin(state, gateway.answer))
        yield gateway


class _Pump:
    """Takes from the TUN what the kernel routes into it, for the forwarder."""

    def __init__(self, tun: Tun, forwarder: Forwarder, stopped: asyncio.Future[None]) -> None:
        self._tun = tun
        self._forwarder = forwarder
        self._stopped = stopped
        self._loop = asyncio.get_running_loop()
        self._descriptor = tun.fileno()

    def start(self) -> None:
        self._loop.add_reader(self._descriptor, self._readable)

    def stop(self) -> None:
        self._loop.remove_reader(self._descriptor)

    def forward(self, packets: list[bytes]) -> None:
        self._forwarder.from_tun(packets, self._loop.time())

    def gone(self) -> None:
        """The engine found that the device is gone; reading it says the same in words."""
        self._readable()

    def _readable(self) -> None:
        try:
            packets = self._tun.read_batch(BATCH)
        except TunUnavailable as error:
            self.stop()
            if not self._stopped.done():
                self._stopped.set_exception(error)
            return
        self.forward(packets)


def _session_status(session: Session) -> SessionStatus:
    traffic = _traffic(session)
    tunnel = session.tunnel
    return SessionStatus(
        tx_packets=traffic.tx_packets,
        tx_bytes=traffic.tx_bytes,
        rx_packets=traffic.rx_packets,
        rx_bytes=traffic.rx_bytes,
        drops=traffic.drops,
        device=session.device,
        addresses=[str(address) for address in session.addresses],
        peer=join_host_port(*tunnel.peer),
        transport=tunnel.transport,
        datapath="native" if tunnel.carried else "aioquic",
        since=rfc3339(datetime.fromtimestamp(session.since, UTC)),
        rtt_ms=round(tunnel.rtt * 1000, 3),
        mtu=session.mtu,
    )


def _traffic(session: Session) -> Traffic:
    counters = session.tunnel.counters
    traffic = Traffic(
        tx_packets=counters.tx_packets,
        tx_bytes=counters.tx_bytes,
        rx_packets=counters.rx_packets,
        rx_bytes=counters.rx_bytes,
        drops=dict(counters.dropped),
    )
    _add(traffic, Traffic(drops=session.drops))
    return traffic


def _add(total: Traffic, part: Traffic) -> None:
    total.tx_packets += part.tx_packets
    total.tx_bytes += part.tx_bytes
    total.rx_packets += part.rx_packets
    total.rx_bytes += part.rx_bytes
    for reason, count in part.drops.items():
        total.drops[reason] = total.drops.get(reason, 0) + count


def _resident_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
