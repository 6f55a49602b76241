"""One CONNECT-IP request (RFC 9484) as bytes in, events out: the state that capsules build up.

`ConnectIpSession` checks what the peer may say and remembers what holds now; the values themselves
are in `address`, `route` and `dns`, and all are importable from here. It moves no packets: HTTP
Datagrams, also those that arrive as DATAGRAM capsules, are the transport's and are skipped here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from typing import NoReturn

from qvpn_core.masque.address import (
    NO_ADDRESS,
    AddressAssign,
    AddressRequest,
    AssignedAddress,
    IPAddress,
    IPNetwork,
    RequestedAddress,
)
from qvpn_core.masque.capsule import CapsuleDecoder, CapsuleError, CapsuleType
from qvpn_core.masque.dns import DnsAssign, DnsConfiguration, Nameserver
from qvpn_core.masque.route import (
    IPAddressRange,
    RouteAdvertisement,
    prefixes_to_ranges,
    ranges_to_prefixes,
)
from qvpn_core.masque.varint import decode_varint

__all__ = [
    "CONTEXT_ID_IP",
    "MAX_REQUESTS",
    "NO_ADDRESS",
    "AddressAssign",
    "AddressRequest",
    "AssignedAddress",
    "ConnectIpError",
    "ConnectIpSession",
    "DnsAssign",
    "DnsConfiguration",
    "Event",
    "IPAddress",
    "IPAddressRange",
    "IPNetwork",
    "Nameserver",
    "RequestedAddress",
    "Role",
    "RouteAdvertisement",
    "prefixes_to_ranges",
    "ranges_to_prefixes",
    "split_context",
]

#: The context ID of HTTP Datagrams that hold a whole IP packet (RFC 9484 section 6).
CONTEXT_ID_IP = 0

#: The most addresses that a peer may ask for in one session. Request IDs must not be reused, so
#: every one is remembered; this bounds that memory.
MAX_REQUESTS = 1024

Event = AddressAssign | AddressRequest | RouteAdvertisement | DnsAssign


class ConnectIpError(CapsuleError):
    """The peer broke RFC 9484 on this stream; reset it with the HTTP/3 error `code`."""


class Role(Enum):
    """Which end of the request we are."""

    CLIENT = "client"
    PROXY = "proxy"


def split_context(datagram: bytes) -> tuple[int, bytes] | None:
    """The context ID and the payload of an HTTP Datagram; None when the context ID is cut short."""
    if datagram[:1] == b"\0":
        return CONTEXT_ID_IP, datagram[1:]
    decoded = decode_varint(datagram)
    return None if decoded is None else (decoded[0], datagram[decoded[1] :])


_PARSERS: dict[int, Callable[[bytes], Event]] = {
    CapsuleType.ADDRESS_ASSIGN: AddressAssign.parse,
    CapsuleType.ADDRESS_REQUEST: AddressRequest.parse,
    CapsuleType.ROUTE_ADVERTISEMENT: RouteAdvertisement.parse,
    CapsuleType.DNS_ASSIGN: DnsAssign.parse,
}

# A proxy has no use for a client's DNS configuration and must not act on it
# (draft-ietf-masque-connect-ip-dns sections 3.5 and 5), so to a proxy the type is unknown.
_UNDERSTOOD = {
    Role.CLIENT: frozenset(_PARSERS),
    Role.PROXY: frozenset(_PARSERS) - {CapsuleType.DNS_ASSIGN},
}


class ConnectIpSession:
    """The configuration half of one IP proxying request.

    `receive` takes the peer's capsule stream; the senders return bytes for ours and raise
    ValueError when asked for what the RFC forbids. What holds now, each a tuple:

    - `local_addresses`: what the peer assigned to us, without refusals;
    - `peer_addresses`: what we assigned to the peer, without refusals;
    - `local_routes`, `peer_routes`: the ranges that we, and the peer, offer to forward to;
    - `dns`: the configurations for the client, received by it and sent by the proxy.

    The peer may assign without being asked, and answer what it was not asked.
    """

    __slots__ = (
        "_decoder",
        "_error",
        "_last_request_id",
        "_peer_request_ids",
        "dns",
        "local_addresses",
        "local_routes",
        "peer_addresses",
        "peer_routes",
        "role",
    )

    def __init__(self, role: Role) -> None:
        self.role = role
        self.local_addresses: tuple[AssignedAddress, ...] = ()
        self.peer_addresses: tuple[AssignedAddress, ...] = ()
        self.local_routes: tuple[IPAddressRange, ...] = ()
        self.peer_routes: tuple[IPAddressRange, ...] = ()
        self.dns: tuple[DnsConfiguration, ...] = ()
        self._decoder = CapsuleDecoder(known=_UNDERSTOOD[role])
        self._last_request_id = 0
        self._peer_request_ids: set[int] = set()
        self._error: ConnectIpError | None = None

    def receive(self, data: bytes) -> list[Event]:
        """What the next bytes of the peer's stream say, in order, after it took effect here.

        Raises ConnectIpError when the peer breaks the protocol; the session is then dead and every
        further call raises the same error. So does data behind the end of the stream.
        """
        self._check_alive()
        try:
            events = [_PARSERS[c.type](c.value) for c in self._decoder.feed(data)]
            for event in events:
                self._apply(event)
        except CapsuleError as error:
            self._die(error)
        return events

    def receive_end(self) -> None:
        """The peer finished its stream. Raises ConnectIpError when that was inside a capsule."""
        self._check_alive()
        try:
            self._decoder.end()
        except CapsuleError as error:
            self._die(error)
        self._error = ConnectIpError("the capsule stream has ended")

    def assign_addresses(self, addresses: Iterable[AssignedAddress]) -> bytes:
        """ADDRESS_ASSIGN with the full list of what the peer may use from now on.

        Raises ValueError for a request ID that is neither 0 nor one of the peer's.
        """
        assign = AddressAssign(tuple(addresses))
        for entry in assign.addresses:
            if entry.request_id and entry.request_id not in self._peer_request_ids:
                raise ValueError(f"the peer made no request {entry.request_id}")
        self.peer_addresses = _without_refusals(assign)
        return assign.encode()

    def refuse(self, request: AddressRequest) -> bytes:
        """ADDRESS_ASSIGN that gives nothing for `request` and keeps what the peer has."""
        refusals = (entry.refusal() for entry in request.addresses)
        return self.assign_addresses((*self.peer_addresses, *refusals))

    def request_addresses(self, prefixes: Iterable[IPNetwork]) -> bytes:
        """ADDRESS_REQUEST for `prefixes`; an all-zero address leaves the choice to the peer.

        Request IDs count up from 1 over the session. Raises ValueError when `prefixes` is empty.
        """
        first = self._last_request_id + 1
        request = AddressRequest(
            tuple(RequestedAddress(number, prefix) for number, prefix in enumerate(prefixes, first))
        )
        self._last_request_id += len(request.addresses)
        return request.encode()

    def advertise_routes(self, ranges: Iterable[IPAddressRange]) -> bytes:
        """ROUTE_ADVERTISEMENT with the full list of what we forward to.

        Raises ValueError unless `ranges` are as `prefixes_to_ranges` makes them.
        """
        advertisement = RouteAdvertisement(tuple(ranges))
        self.local_routes = advertisement.ranges
        return advertisement.encode()

    def assign_dns(self, assign: DnsAssign) -> bytes:
        """DNS_ASSIGN with the client's full DNS configuration.

        Raises ValueError at a client, and before the first route was advertised: queries would
        leave the client outside the tunnel (draft-ietf-masque-connect-ip-dns section 5).
        """
        if self.role is not Role.PROXY:
            raise ValueError("a client assigns no DNS")
        if assign.configurations and not self.local_routes:
            raise ValueError("routes must be advertised before DNS is assigned")
        self.dns = assign.configurations
        return assign.encode()

    def _apply(self, event: Event) -> None:
        match event:
            case AddressAssign():
                self.local_addresses = _without_refusals(event)
            case AddressRequest():
                self._remember_requests(event)
            case RouteAdvertisement():
                self.peer_routes = event.ranges
            case DnsAssign():
                self.dns = event.configurations

    def _remember_requests(self, request: AddressRequest) -> None:
        for entry in request.addresses:
            if entry.request_id in self._peer_request_ids:
                raise CapsuleError(f"the peer reused request ID {entry.request_id}")
            self._peer_request_ids.add(entry.request_id)
        if len(self._peer_request_ids) > MAX_REQUESTS:
            raise CapsuleError(f"the peer asked for more than {MAX_REQUESTS} addresses")

    def _check_alive(self) -> None:
        if self._error is not None:
            raise self._error

    def _die(self, cause: CapsuleError) -> NoReturn:
        self._error = ConnectIpError(cause.what, "the other end does not follow RFC 9484")
        raise self._error from cause


def _without_refusals(assign: AddressAssign) -> tuple[AssignedAddress, ...]:
    return tuple(entry for entry in assign.addresses if not entry.refused)
