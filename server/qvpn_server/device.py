"""One device's tunnel at the gateway: capsules answered, packets handed on, its end noticed.

What the device does wrong ends its own tunnel and nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import ip_network

from qvpn_core.errors import QvpnError
from qvpn_core.masque.connect_ip import (
    AddressRequest,
    AssignedAddress,
    ConnectIpError,
    ConnectIpSession,
    DnsAssign,
    Role,
    prefixes_to_ranges,
)
from qvpn_server.config import GatewayConfig
from qvpn_server.forwarding import Forwarder
from qvpn_server.registry.records import DevicePolicy
from qvpn_server.sessions import Session

log = logging.getLogger(__name__)


class DeviceTunnel:
    """The handler of one accepted tunnel; see `qvpn_core.transport.interface.TunnelHandler`.

    `open` must follow `accept` at once. `clock` gives seconds that never go back; `ended` is told
    the session when its tunnel is gone.
    """

    def __init__(
        self,
        config: GatewayConfig,
        forwarder: Forwarder,
        clock: Callable[[], float],
        ended: Callable[[Session, QvpnError | None], None],
    ) -> None:
        self._config = config
        self._forwarder = forwarder
        self._clock = clock
        self._ended = ended
        self._connect_ip = ConnectIpSession(Role.PROXY)
        self._session: Session | None = None

    def open(self, session: Session) -> None:
        """Begin: assign addresses unprompted, advertise routes, then assign DNS.

        The order lets a client ask the resolvers only through the tunnel
        (draft-ietf-masque-connect-ip-dns section 5). A client that does not know DNS_ASSIGN skips
        it (RFC 9297 section 3.2), so nothing is negotiated. Without configured servers it is not
        sent, which also serves a client that aborts on capsules it does not know.
        """
        self._session = session
        capsules = self._connect_ip.assign_addresses(
            AssignedAddress(0, ip_network(address)) for address in session.addresses
        )
        capsules += self._advertise(session)
        if session.policy.dns:
            capsules += self._connect_ip.assign_dns(DnsAssign.plain(session.policy.dns))
        session.tunnel.send_capsules(capsules)

    def policy_changed(self, before: DevicePolicy) -> None:
        """Tell the device what is different from `before` in its session's policy."""
        session = self._live()
        capsules = b""
        if session.policy.routes != before.routes:
            capsules += self._advertise(session)
        if session.policy.dns != before.dns:
            dns = session.policy.dns
            assign = DnsAssign.plain(dns) if dns else DnsAssign(())
            capsules += self._connect_ip.assign_dns(assign)
        if capsules:
            session.tunnel.send_capsules(capsules)

    def capsule_data(self, data: bytes) -> None:
        session = self._live()
        try:
            for event in self._connect_ip.receive(data):
                if isinstance(event, AddressRequest):
                    session.tunnel.send_capsules(self._answer(session, event))
                # A device's own addresses and routes are not used: nothing is routed behind it.
        except ConnectIpError as error:
            self._violation(session, error)

    def capsule_end(self) -> None:
        session = self._live()
        try:
            self._connect_ip.receive_end()
        except ConnectIpError as error:
            self._violation(session, error)
        else:
            session.tunnel.close()

    def packets(self, packets: list[bytes]) -> None:
        self._forwarder.from_device(self._live(), packets, self._clock())

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        self._forwarder.too_big(self._live(), packet, mtu, self._clock())

    def mtu_changed(self, mtu: int) -> None:
        self._live().mtu = mtu

    def closed(self, error: QvpnError | None) -> None:
        self._ended(self._live(), error)

    def _advertise(self, session: Session) -> bytes:
        prefixes = (*session.policy.routes, *self._config.inside)
        return self._connect_ip.advertise_routes(prefixes_to_ranges(prefixes))

    def _answer(self, session: Session, request: AddressRequest) -> bytes:
        """ADDRESS_ASSIGN for a request: the lease, whatever was wished, and once per family.

        Further addresses of a family are refused (RFC 9484 section 4.7.2).
        """
        leases = {address.version: ip_network(address) for address in session.addresses}
        entries = []
        for wish in request.addresses:
            lease = leases.pop(wish.prefix.version, None)
            entries.append(
                AssignedAddress(wish.request_id, lease) if lease is not None else wish.refusal()
            )
        # The list is a full one: what was not asked for now stays assigned.
        kept = [AssignedAddress(0, lease) for lease in leases.values()]
        return self._connect_ip.assign_addresses([*kept, *entries])

    def _violation(self, session: Session, error: ConnectIpError) -> None:
        log.warning("device %s broke the protocol: %s", session.device, error.what)
        session.tunnel.close(error.code)

    def _live(self) -> Session:
        assert self._session is not None, "open() follows accept() before any event can arrive"
        return self._session
