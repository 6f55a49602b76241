"""The commands about groups. See `registry_commands` for how they reach the registry."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence

import msgspec

from qvpn_core.errors import UsageError
from qvpn_server.admin_protocol import (
    GroupAddRequest,
    GroupJoinRequest,
    GroupLeaveRequest,
    GroupRemoveRequest,
    GroupSetRequest,
    GroupSettings,
)
from qvpn_server.config import load_config
from qvpn_server.printing import print_json, print_table
from qvpn_server.registry_commands import act_on, done, open_registry
from qvpn_server.statedir import StateDir

#: Words in place of prefixes and addresses.
DEFAULT = "default"
NONE = "none"
_COUNT = re.compile(r"[0-9]{1,7}")


def add(state: StateDir, options: argparse.Namespace) -> int:
    """Create a group."""
    act_on(state, load_config(state.config), GroupAddRequest(options.group, _settings(options)))
    return done(options, f"created the group {options.group}", group=options.group)


def change(state: StateDir, options: argparse.Namespace) -> int:
    """Change a group."""
    settings = _settings(options)
    if settings == GroupSettings():
        raise UsageError(
            "nothing to change", "give --route, --destination, --dns, --service, --max-sessions"
        )
    act_on(state, load_config(state.config), GroupSetRequest(options.group, settings))
    return done(options, f"changed the group {options.group}", group=options.group)


def remove(state: StateDir, options: argparse.Namespace) -> int:
    """Remove a group."""
    act_on(state, load_config(state.config), GroupRemoveRequest(options.group))
    return done(options, f"removed the group {options.group}", group=options.group)


def join(state: StateDir, options: argparse.Namespace) -> int:
    """Put a device into a group."""
    request = GroupJoinRequest(options.group, options.device)
    act_on(state, load_config(state.config), request)
    words = f"{options.device} is in the group {options.group}"
    return done(options, words, group=options.group, device=options.device)


def leave(state: StateDir, options: argparse.Namespace) -> int:
    """Take a device out of a group."""
    request = GroupLeaveRequest(options.group, options.device)
    act_on(state, load_config(state.config), request)
    words = f"{options.device} is not in the group {options.group}"
    return done(options, words, group=options.group, device=options.device)


def show(state: StateDir, options: argparse.Namespace) -> int:
    """All groups with their policies."""
    with open_registry(state) as registry:
        groups = registry.groups()
    if options.json:
        print_json(
            [
                {
                    "group": group.name,
                    "devices": group.members,
                    "routes": _texts(group.policy.routes),
                    "destinations": _texts(group.policy.destinations),
                    "dns": _texts(group.policy.dns),
                    "services": _texts(group.policy.services),
                    "max_sessions": group.policy.max_sessions,
                }
                for group in groups
            ]
        )
        return 0

    def words(values: Iterable[object] | None, unset: str = DEFAULT) -> str:
        texts = _texts(values)
        return unset if texts is None else " ".join(texts) or NONE

    print_table(
        ("GROUP", "DEVICES", "ROUTES", "DESTINATIONS", "DNS", "SERVICES", "MAX-SESSIONS"),
        (
            (
                group.name,
                str(group.members),
                words(group.policy.routes),
                words(group.policy.destinations, "as routes"),
                words(group.policy.dns),
                words(group.policy.services, "as destinations"),
                str(group.policy.max_sessions or ""),
            )
            for group in groups
        ),
    )
    return 0


def _settings(options: argparse.Namespace) -> GroupSettings:
    return GroupSettings(
        routes=_words(options.route),
        destinations=_words(options.destination),
        dns=_words(options.dns),
        services=_words(options.service),
        max_sessions=_quota(options.max_sessions),
    )


def _words(given: Sequence[str] | None) -> tuple[str, ...] | msgspec.UnsetType | None:
    if given is None:
        return msgspec.UNSET
    if list(given) == [DEFAULT]:
        return None
    return () if list(given) == [NONE] else tuple(given)


def _quota(given: str | None) -> int | msgspec.UnsetType | None:
    if given is None:
        return msgspec.UNSET
    if given == NONE:
        return None
    if not _COUNT.fullmatch(given):
        raise UsageError(f"{given!r} is not a number of sessions", f"give a number, or {NONE}")
    return int(given)


def _texts(values: Iterable[object] | None) -> list[str] | None:
    return None if values is None else [str(value) for value in values]
