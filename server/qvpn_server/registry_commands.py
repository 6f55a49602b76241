"""The commands about devices, invites and the audit.

What changes something goes through the gateway while one runs, so that live sessions follow, and
to the registry itself otherwise. What only reads always reads the registry.
"""

from __future__ import annotations

import argparse
import re
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qvpn_core.errors import UsageError
from qvpn_server.admin import ask
from qvpn_server.admin_protocol import (
    MAX_INVITE_LIFETIME,
    Act,
    InviteRequest,
    RenameRequest,
    Reply,
    Revoked,
    RevokeRequest,
    TokenRequest,
    UninviteRequest,
)
from qvpn_server.config import EVERYONE, GatewayConfig, load_config, parse_network
from qvpn_server.credentials import new_token, token_hash
from qvpn_server.printing import moment, print_json, print_table
from qvpn_server.statedir import StateDir

if TYPE_CHECKING:  # SQLAlchemy takes longer to import than most commands take
    from qvpn_server.registry import Registry

_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNITS = {"m": 60, "h": 3600, "d": 86400}


def token(state: StateDir, options: argparse.Namespace) -> int:
    """Create a device with a bearer token, which is shown now and never again."""
    from qvpn_server.certificate import is_self_signed, pin_of

    config = load_config(state.config)
    pin = pin_of(config.certificate)
    secret = new_token()
    act_on(state, config, TokenRequest(options.name, token_hash(secret), _groups(options.group)))
    if options.json:
        print_json({"name": options.name, "token": secret, "gateway": config.endpoint, "pin": pin})
        return 0
    command = ["qvpn", "profile", "add", options.name, "--gateway", config.endpoint]
    command += ["--token", secret]
    if is_self_signed(config.certificate):
        # A certificate from an authority gets a new key sooner or later; no pin for that.
        command += ["--pin", pin]
    print(shlex.join(command))
    return 0


def invite(state: StateDir, options: argparse.Namespace) -> int:
    """Make an invite and print its link, which is shown now and never again."""
    from qvpn_core.auth.invite import Gateway, Invite, new_secret
    from qvpn_server.identity import announced_pins

    config = load_config(state.config)
    pins = announced_pins(config, state)
    lifetime = parse_duration(options.expires)
    if lifetime > MAX_INVITE_LIFETIME:
        raise UsageError(f"{options.expires} is too long for an invite", "give 365d or less")
    expires = int(time.time()) + lifetime
    groups = _groups(options.group)
    routes = tuple(str(parse_network("route", text)) for text in options.route)
    gateway = Gateway(config.host, config.listen[0][1])
    try:
        made = Invite((gateway,), new_secret(), pins, options.name, expires)
    except ValueError as error:
        raise UsageError(f"cannot make that invite: {error}", "see --help") from None
    request = InviteRequest(options.name, made.key.public_key, expires, groups, routes)
    act_on(state, config, request)
    if options.json:
        print_json(
            {
                "name": options.name,
                "link": made.link,
                "expires": moment(expires),
                "groups": groups,
                "routes": routes,
            }
        )
    else:
        print(made.link)
    return 0


def invites(state: StateDir, options: argparse.Namespace) -> int:
    """All invites, the newest first."""
    now = int(time.time())
    with open_registry(state) as registry:
        found = registry.invites()
    if options.json:
        print_json(
            [
                {
                    "name": invite.name,
                    "state": invite.state(now),
                    "created": moment(invite.created),
                    "expires": moment(invite.expires),
                    "used": moment(invite.used),
                    "revoked": moment(invite.revoked),
                    "groups": invite.groups,
                    "routes": list(map(str, invite.routes)),
                }
                for invite in found
            ]
        )
    elif found:
        print_table(
            ("NAME", "STATE", "EXPIRES", "GROUPS"),
            (
                (
                    invite.name,
                    invite.state(now),
                    moment(invite.expires) or "",
                    " ".join(invite.groups),
                )
                for invite in found
            ),
        )
    else:
        print("no invites yet")
    return 0


def uninvite(state: StateDir, options: argparse.Namespace) -> int:
    """Withdraw an open invite."""
    act_on(state, load_config(state.config), UninviteRequest(options.name))
    return done(options, f"withdrew the invite for {options.name}", name=options.name)


def list_devices(state: StateDir, options: argparse.Namespace) -> int:
    """All devices, revoked ones too."""
    with open_registry(state) as registry:
        devices = registry.devices()
    if options.json:
        print_json(
            [
                {
                    "name": device.name,
                    "credential": "token" if device.public_key is None else "key",
                    "groups": device.groups,
                    "addresses": [str(address) for address in device.addresses],
                    "created": moment(device.created),
                    "revoked": moment(device.revoked),
                }
                for device in devices
            ]
        )
    elif devices:
        print_table(
            ("NAME", "CREDENTIAL", "GROUPS", "ADDRESSES", "CREATED", "REVOKED"),
            (
                (
                    device.name,
                    "token" if device.public_key is None else "key",
                    " ".join(device.groups),
                    " ".join(map(str, device.addresses)),
                    moment(device.created) or "",
                    moment(device.revoked) or "",
                )
                for device in devices
            ),
        )
    else:
        print("no devices yet")
    return 0


def revoke(state: StateDir, options: argparse.Namespace) -> int:
    """Bar a device; a running gateway cuts its live session too."""
    reply = act_on(state, load_config(state.config), RevokeRequest(options.name))
    disconnected = isinstance(reply, Revoked) and reply.disconnected
    if options.json:
        print_json({"name": options.name, "revoked": True, "disconnected": disconnected})
    else:
        print(f"revoked {options.name}" + (" and cut its session" if disconnected else ""))
    return 0


def rename(state: StateDir, options: argparse.Namespace) -> int:
    """Give a device another name."""
    act_on(state, load_config(state.config), RenameRequest(options.old, options.new))
    return done(options, f"renamed {options.old} to {options.new}", name=options.new)


def audit(state: StateDir, options: argparse.Namespace) -> int:
    """Every administrative act, the oldest first."""
    with open_registry(state) as registry:
        entries = registry.audit()
    if options.json:
        print_json(
            [
                {
                    "at": moment(entry.at),
                    "actor": entry.actor,
                    "action": entry.action,
                    "subject": entry.subject,
                    "detail": entry.detail,
                }
                for entry in entries
            ]
        )
    elif entries:
        print_table(
            ("TIME", "ACTOR", "ACTION", "SUBJECT", "DETAIL"),
            (
                (moment(entry.at) or "", entry.actor, entry.action, entry.subject, entry.detail)
                for entry in entries
            ),
        )
    else:
        print("no administrative acts yet")
    return 0


def parse_duration(text: str) -> int:
    """Seconds of ``30m``, ``24h`` or ``7d``. Raises UsageError."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a duration", "give one such as 30m, 24h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def act_on(state: StateDir, config: GatewayConfig, act: Act) -> Reply | None:
    """Make a change through the running gateway, or directly when none runs. Raises QvpnError."""
    reply = ask(state, act)
    if reply is None:
        from qvpn_server.administration import perform

        with open_registry(state) as registry:
            perform(registry, config, act, int(time.time()), "cli")
    return reply


def open_registry(state: StateDir) -> Registry:
    """The registry of this gateway. Raises QvpnError."""
    from qvpn_server.registry import Registry

    config = load_config(state.config)
    return Registry.open(config.registry or state.registry)


def _groups(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names)) or (EVERYONE,)


def done(options: argparse.Namespace, words: str, **document: str) -> int:
    """Say that it is done, in words or as a document. Returns the exit status."""
    if options.json:
        print_json(document)
    else:
        print(words)
    return 0
