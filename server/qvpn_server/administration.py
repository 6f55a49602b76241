"""What an administrator can change, as one function for both ways: over the admin socket, and
directly on the registry while no gateway runs.

Everything is checked here, since the socket's other end may be another version's command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from qvpn_core.auth.device_key import PUBLIC_KEY_BYTES
from qvpn_core.errors import UsageError
from qvpn_server.admin_protocol import (
    MAX_INVITE_LIFETIME,
    Act,
    GroupAddRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupRemoveRequest,
    GroupSetRequest,
    GroupSettings,
    InviteRequest,
    RenameRequest,
    RevokeRequest,
    TokenRequest,
    UninviteRequest,
)
from qvpn_server.config import GatewayConfig, parse_address, parse_network
from qvpn_server.pool import IPNetwork
from qvpn_server.registry import Device, GroupPolicy, Registry
from qvpn_server.registry.policy import check_group
from qvpn_server.service_rules import parse_rule

_HASH_BYTES = 32


def perform(
    registry: Registry, config: GatewayConfig, act: Act, now: int, actor: str
) -> Device | None:
    """Change the registry. Returns the device that was barred, if one was. Raises QvpnError."""
    match act:
        case TokenRequest(name, token_hash, groups):
            _check_size(token_hash, _HASH_BYTES)
            registry.add_device(name, token_hash, now, groups=groups, actor=actor)
        case RevokeRequest(name):
            return registry.revoke(name, now, actor=actor)
        case RenameRequest(old, new):
            registry.rename(old, new, now, actor=actor)
        case InviteRequest(name, public_key, expires, groups, routes):
            _check_size(public_key, PUBLIC_KEY_BYTES)
            if not now < expires <= now + MAX_INVITE_LIFETIME:
                raise UsageError("an invite cannot expire then", "give a time within a year")
            registry.create_invite(
                name, public_key, expires, now,
                groups=groups, routes=_networks("route", routes), actor=actor,
            )  # fmt: skip
        case UninviteRequest(name):
            registry.revoke_invite(name, now, actor=actor)
        case GroupAddRequest(name, settings):
            policy = _changed(GroupPolicy(), settings, config)
            registry.add_group(name, policy, now, actor=actor)
        case GroupSetRequest(name, settings):

            def changed(policy: GroupPolicy) -> GroupPolicy:
                return _changed(policy, settings, config)

            registry.set_group(name, changed, now, actor=actor)
        case GroupRemoveRequest(name):
            registry.remove_group(name, now, actor=actor)
        case GroupJoinRequest(group, device):
            registry.join(group, device, now, actor=actor)
        case GroupLeaveRequest(group, device):
            registry.leave(group, device, now, actor=actor)
    return None


def _changed(policy: GroupPolicy, settings: GroupSettings, config: GatewayConfig) -> GroupPolicy:
    values: dict[str, Any] = {}
    for key in ("routes", "destinations"):
        prefixes = getattr(settings, key)
        if prefixes is not msgspec.UNSET:
            values[key] = None if prefixes is None else _networks(key[:-1], prefixes)
    if settings.dns is not msgspec.UNSET:
        servers = settings.dns
        values["dns"] = None if servers is None else tuple(map(parse_address, servers))
    if settings.services is not msgspec.UNSET:
        rules = settings.services
        values["services"] = None if rules is None else tuple(map(parse_rule, rules))
    if settings.max_sessions is not msgspec.UNSET:
        values["max_sessions"] = settings.max_sessions
    changed = replace(policy, **values)
    check_group(changed, config)
    return changed


def _networks(name: str, texts: Sequence[str]) -> tuple[IPNetwork, ...]:
    return tuple(parse_network(name, text) for text in texts)


def _check_size(value: bytes, size: int) -> None:
    if len(value) != size:
        raise UsageError(f"{len(value)} bytes instead of {size}", "use qvpn-server's own commands")
