"""The registry: devices, invites, groups, leases and the audit of what administrators did."""

from qvpn_server.pool import PoolExhausted
from qvpn_server.registry.records import (
    AuditEntry,
    Device,
    DevicePolicy,
    Group,
    GroupPolicy,
    Invite,
    InviteExpired,
    InviteRefused,
    InviteRevoked,
    InviteUnknown,
    InviteUsed,
    NameTaken,
    RegistryUnavailable,
    check_name,
)
from qvpn_server.registry.registry import Registry

__all__ = [
    "AuditEntry",
    "Device",
    "DevicePolicy",
    "Group",
    "GroupPolicy",
    "Invite",
    "InviteExpired",
    "InviteRefused",
    "InviteRevoked",
    "InviteUnknown",
    "InviteUsed",
    "NameTaken",
    "PoolExhausted",
    "Registry",
    "RegistryUnavailable",
    "check_name",
]
