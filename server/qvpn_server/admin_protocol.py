"""What goes over the admin socket: one JSON line each way, a request and its reply. Types only."""

from __future__ import annotations

from datetime import datetime

import msgspec

from qvpn_server.config import EVERYONE

#: Seconds that an invite can be good for at most.
MAX_INVITE_LIFETIME = 365 * 86400


class StatusRequest(msgspec.Struct, tag_field="command", tag="status"):
    """Asks for a :class:`GatewayStatus`."""


class ReloadRequest(msgspec.Struct, tag_field="command", tag="reload"):
    """Has the certificate, its key and the web site read anew; answered with :class:`Done`."""


class TokenRequest(msgspec.Struct, tag_field="command", tag="token"):
    """Creates a device that has a bearer token."""

    name: str
    token_hash: bytes
    groups: tuple[str, ...] = (EVERYONE,)


class RevokeRequest(msgspec.Struct, tag_field="command", tag="revoke"):
    """Bars a device and cuts its live session; answered with a :class:`Revoked`."""

    name: str


class RenameRequest(msgspec.Struct, tag_field="command", tag="rename"):
    """Gives a device another name."""

    old: str
    new: str


class InviteRequest(msgspec.Struct, tag_field="command", tag="invite"):
    """Keeps an invite, whose secret stays where it was made."""

    name: str
    public_key: bytes
    #: UNIX seconds.
    expires: int
    groups: tuple[str, ...] = (EVERYONE,)
    #: CIDR prefixes.
    routes: tuple[str, ...] = ()


class UninviteRequest(msgspec.Struct, tag_field="command", tag="uninvite"):
    """Withdraws an open invite."""

    name: str


class GroupSettings(msgspec.Struct):
    """What to change of a group: prefixes and addresses as text, None for the gateway's own."""

    routes: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    destinations: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    dns: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    services: tuple[str, ...] | msgspec.UnsetType | None = msgspec.UNSET
    max_sessions: int | msgspec.UnsetType | None = msgspec.UNSET


class GroupAddRequest(msgspec.Struct, tag_field="command", tag="group add"):
    """Creates a group."""

    name: str
    settings: GroupSettings


class GroupSetRequest(msgspec.Struct, tag_field="command", tag="group set"):
    """Changes a group, for live sessions too."""

    name: str
    settings: GroupSettings


class GroupRemoveRequest(msgspec.Struct, tag_field="command", tag="group remove"):
    """Removes a group, for live sessions too."""

    name: str


class GroupJoinRequest(msgspec.Struct, tag_field="command", tag="group join"):
    """Puts a device into a group, its live session too."""

    group: str
    device: str


class GroupLeaveRequest(msgspec.Struct, tag_field="command", tag="group leave"):
    """Takes a device out of a group, its live session too."""

    group: str
    device: str


#: Changes of the registry: answered with :class:`Done` unless they say otherwise.
Act = (
    TokenRequest
    | RevokeRequest
    | RenameRequest
    | InviteRequest
    | UninviteRequest
    | GroupAddRequest
    | GroupSetRequest
    | GroupRemoveRequest
    | GroupJoinRequest
    | GroupLeaveRequest
)
Request = StatusRequest | ReloadRequest | Act


class Traffic(msgspec.Struct, kw_only=True):
    """What was moved and dropped. `tx` is towards the devices."""

    tx_packets: int = 0
    tx_bytes: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    #: Packets by reason.
    drops: dict[str, int] = {}


class SessionStatus(Traffic, kw_only=True):
    """One live session."""

    device: str
    addresses: list[str]
    peer: str
    transport: str
    #: What moves its packets: "native", or "aioquic" for Python, on either transport.
    datapath: str = "aioquic"
    #: When it began; RFC 3339, UTC.
    since: str
    rtt_ms: float
    #: The largest IP packet in bytes.
    mtu: int


class ServiceTraffic(msgspec.Struct, kw_only=True):
    """What went through services. `tx` is towards the devices, as everywhere."""

    #: Streams and UDP flows: open now, and ever opened.
    open: int = 0
    opened: int = 0
    tx_bytes: int = 0
    rx_bytes: int = 0
    #: UDP packets that were dropped, and requests that were refused, by reason.
    drops: dict[str, int] = {}
    refused: dict[str, int] = {}


class ServiceStatus(ServiceTraffic, kw_only=True):
    """What one device uses now."""

    device: str
    peer: str


class GatewayStatus(msgspec.Struct, kw_only=True, tag_field="reply", tag="status"):
    """A running gateway."""

    running: bool = True
    host: str
    listen: list[str]
    #: When it began; RFC 3339, UTC.
    since: str
    #: Live QUIC and TLS connections, those without a tunnel too.
    connections: int
    sessions: list[SessionStatus]
    #: Of all sessions, past ones too.
    totals: Traffic
    #: Devices that use services now; and of all, past ones too.
    services: list[ServiceStatus]
    service_totals: ServiceTraffic
    #: Resident memory in bytes.
    memory_bytes: int


class Revoked(msgspec.Struct, tag_field="reply", tag="revoked"):
    """The device is barred."""

    name: str
    #: Whether a live session was cut.
    disconnected: bool


class Done(msgspec.Struct, tag_field="reply", tag="done"):
    """The change is made, and live sessions follow it."""


class Failure(msgspec.Struct, tag_field="reply", tag="failure"):
    """The request was refused, in the words of a QvpnError."""

    what: str
    hint: str = ""
    #: Whether it was a UsageError.
    usage: bool = False


Reply = GatewayStatus | Revoked | Done | Failure


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as programs read it, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
