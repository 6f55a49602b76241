"""What goes over the admin socket: one JSON line each way, a request and its reply. Types only."""

from __future__ import annotations

from datetime import datetime

import msgspec


class StatusRequest(msgspec.Struct, tag_field="command", tag="status"):
    """Asks for a :class:`GatewayStatus`."""


class RevokeRequest(msgspec.Struct, tag_field="command", tag="revoke"):
    """Bars a device and cuts its live session; answered with a :class:`Revoked`."""

    name: str


Request = StatusRequest | RevokeRequest


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
    #: When it began; RFC 3339, UTC.
    since: str
    rtt_ms: float
    #: The largest IP packet in bytes.
    mtu: int


class GatewayStatus(msgspec.Struct, kw_only=True, tag_field="reply", tag="status"):
    """A running gateway."""

    running: bool = True
    host: str
    listen: list[str]
    #: When it began; RFC 3339, UTC.
    since: str
    #: Live QUIC connections, those without a tunnel too.
    connections: int
    sessions: list[SessionStatus]
    #: Of all sessions, past ones too.
    totals: Traffic
    #: Resident memory in bytes.
    memory_bytes: int


class Revoked(msgspec.Struct, tag_field="reply", tag="revoked"):
    """The device is barred."""

    name: str
    #: Whether a live session was cut.
    disconnected: bool


class Failure(msgspec.Struct, tag_field="reply", tag="failure"):
    """The request was refused, in the words of a QvpnError."""

    what: str
    hint: str = ""


Reply = GatewayStatus | Revoked | Failure


def rfc3339(moment: datetime) -> str:
    """A moment in UTC as programs read it, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
