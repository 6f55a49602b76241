"""What the registry holds, as values, and why it refuses. No storage, no I/O.

Times are UNIX seconds by the wall clock of whoever passed them in. A value is what was true when it
was read; it refuses to follow later changes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from qvpn_core.auth.enrolment import RefusalReason
from qvpn_core.auth.invite import NAME_PATTERN
from qvpn_core.errors import QvpnError, UsageError
from qvpn_server.pool import IPAddress, IPNetwork
from qvpn_server.service_rules import ServiceRule

#: Of one device, and of one group's routes or destinations. All of them together must fit into one
#: ROUTE_ADVERTISEMENT of the size that clients take.
MAX_GROUPS = 16
MAX_PREFIXES = 100
MAX_DNS = 8
MAX_SERVICES = 100

_NAME = re.compile(NAME_PATTERN)

InviteState = Literal["open", "used", "expired", "revoked"]


class RegistryUnavailable(QvpnError):
    """The registry cannot be opened, read or written."""

    reason = "registry"


class InviteRefused(QvpnError):
    """An invite is known and enrols nobody (any more). `refusal` is what the device is told."""

    reason = "invite-refused"
    refusal: ClassVar[RefusalReason]


class InviteUsed(InviteRefused):
    """Another device enrolled with it."""

    refusal = "used"


class InviteExpired(InviteRefused):
    """Its time is over, by the gateway's clock."""

    refusal = "expired"


class InviteRevoked(InviteRefused):
    """The administrator withdrew it."""

    refusal = "revoked"


class NameTaken(InviteRefused):
    """A device of the invite's name was enrolled otherwise in the meantime."""

    refusal = "name-taken"


class InviteUnknown(QvpnError):
    """No invite has this key. A caller without a valid credential must not learn even that."""

    reason = "invite-unknown"


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled client identity."""

    id: int
    name: str
    created: int
    #: When it was revoked, or None while it may connect.
    revoked: int | None
    #: Its leases, IPv4 first; empty before its first connection and after its revocation.
    addresses: tuple[IPAddress, ...] = ()
    #: Names of the groups it belongs to, sorted.
    groups: tuple[str, ...] = ()
    #: Its Ed25519 key (32 bytes), or None for one that has a bearer token.
    public_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Invite:
    """What the gateway keeps of an invite: nothing that could redeem it."""

    id: int
    #: The name that the device will have.
    name: str
    #: Of the key that follows from the invite's secret (qvpn_core.auth.invite).
    public_key: bytes
    created: int
    #: When it stops being good.
    expires: int
    used: int | None
    revoked: int | None
    #: Groups that the device will join, sorted.
    groups: tuple[str, ...]
    #: Suggested destinations for the tunnel; empty suggests all.
    routes: tuple[IPNetwork, ...]

    def state(self, now: int) -> InviteState:
        """What has become of it at `now`. Used and revoked it stays, whatever clocks say."""
        if self.used is not None:
            return "used"
        if self.revoked is not None:
            return "revoked"
        return "expired" if now >= self.expires else "open"


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """What a group says. None leaves a matter to the gateway's own configuration."""

    #: Prefixes advertised to its devices.
    routes: tuple[IPNetwork, ...] | None = None
    #: What its devices may reach; None: its routes.
    destinations: tuple[IPNetwork, ...] | None = None
    dns: tuple[IPAddress, ...] | None = None
    #: Services that its devices may use; None: whatever is at its destinations.
    services: tuple[ServiceRule, ...] | None = None
    #: Live sessions of all its devices together, at one gateway; None: no quota.
    max_sessions: int | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Devices with a common policy."""

    id: int
    name: str
    policy: GroupPolicy
    #: How many devices belong to it, revoked ones not counted.
    members: int = 0


@dataclass(frozen=True, slots=True)
class DevicePolicy:
    """What one device gets: the union of its groups. Equal policies compare and hash equal."""

    #: Prefixes to advertise (RFC 9484 section 4.7.3), disjoint and sorted, the gateway's own
    #: addresses not included.
    routes: tuple[IPNetwork, ...]
    #: What it may reach, disjoint and sorted, the gateway's own addresses not included.
    destinations: tuple[IPNetwork, ...]
    #: Resolvers for DNS_ASSIGN, in order.
    dns: tuple[IPAddress, ...]
    #: What it may use through the gateway without a tunnel.
    services: tuple[ServiceRule, ...] = ()
    #: Its groups that have a quota, and how many live sessions each may have.
    quotas: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One administrative act."""

    id: int
    at: int
    #: Who: ``uid 0`` for an administrator, ``invite NAME`` for an enrolment.
    actor: str
    #: The verb, as on the command line.
    action: str
    #: What it was done to: the name of a device, an invite or a group.
    subject: str
    detail: str


def check_name(name: str, kind: str = "device") -> None:
    """Refuse a name that would be awkward in a file, a log or a shell. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a {kind}",
            "use up to 63 letters, digits and . _ -, starting with a letter or digit",
        )
