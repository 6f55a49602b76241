"""``qvpn enroll``: from an invite to a profile that can connect. It prints nothing.

The device's key is made and stored first, then the gateway is asked, then the profile is written:
an interruption leaves at worst a key that nothing refers to, never an invite that is used up for a
key that was lost. What a failure leaves is removed again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qvpn_core.auth.concealed import Origin
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.auth.enrolment import (
    ENROLMENT_PATH,
    MAX_BODY,
    Enrolment,
    EnrolmentRefused,
    make_request,
    read_answer,
)
from qvpn_core.auth.exporter import Exporter
from qvpn_core.auth.invite import Gateway, Invite
from qvpn_core.auth.invite_text import find_invite
from qvpn_core.client import keys, profiles
from qvpn_core.client.profiles import Profile
from qvpn_core.errors import GatewayUnreachable, NameNotResolved, QvpnError, TunnelLost
from qvpn_core.transport.interface import Request
from qvpn_core.transport.reach import fetch
from qvpn_core.transport.trust import Trust, parse_pin

#: Statuses under which the gateway's answer is about the invite.
_ANSWERS = (200, 403)
_ATTEMPTS = 2  # when the connection breaks; the gateway knows the same key again


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What was stored."""

    profile: Profile
    path: Path
    groups: tuple[str, ...]


async def enrol(text: str, name: str | None = None) -> Enrolled:
    """Enrol this machine with the invite in `text` and store the profile `name`.

    Without a name it is called after the gateway. Raises what :func:`find_invite` raises,
    InviteExpired, EnrolmentRefused, UsageError when the profile exists, and what :func:`fetch`
    raises; nothing is stored then.
    """
    invite = find_invite(text)
    invite.check_expiry(time.time())
    name = profiles.check_name(name or invite.gateways[0].host.replace(":", "-"))
    profiles.check_free(name)
    key = DeviceKey.generate()
    try:
        place = keys.store(name, key)
    except OSError as error:
        raise profiles.unwritable(error) from error
    try:
        gateway, enrolment = await _ask_any(invite, key)
        profile = _profile(name, gateway, invite, enrolment, place)
        path = profiles.save(profile)
    except BaseException:
        keys.delete(name, place)
        raise
    return Enrolled(profile, path, enrolment.groups)


async def _ask_any(invite: Invite, key: DeviceKey) -> tuple[Gateway, Enrolment]:
    """Ask the invite's gateways in turn until one can be reached."""
    failure: QvpnError | None = None
    for gateway in invite.gateways:
        try:
            return gateway, await _ask(gateway, invite, key)
        except (GatewayUnreachable, NameNotResolved) as error:
            failure = failure or error
    assert failure is not None
    raise failure


async def _ask(gateway: Gateway, invite: Invite, key: DeviceKey) -> Enrolment:
    authority = profiles.join_host_port(gateway.host, gateway.port)
    for attempt in range(_ATTEMPTS):
        try:
            response = await fetch(
                gateway.host,
                gateway.port,
                trust=Trust(pins=invite.pins),
                make=partial(_request, invite, key, authority),
                limit=MAX_BODY,
                transports=("quic", "tls"),
            )
        except TunnelLost:
            if attempt + 1 == _ATTEMPTS:
                raise
        else:
            break
    if response.status not in _ANSWERS:
        if response.status == 404:
            raise EnrolmentRefused(
                f"the gateway {authority} does not know this invite",
                "ask its administrator for a new one",
            )
        words = response.body.decode(errors="replace").strip().partition("\n")[0][:200]
        raise QvpnError(
            f"the gateway {authority} could not enrol this device (status {response.status})",
            words if response.status in (400, 413, 503) and words.isprintable() else "try later",
        )
    return read_answer(response.body)


def _request(
    invite: Invite, key: DeviceKey, authority: str, exporter: Exporter
) -> tuple[Request, bytes]:
    origin = Origin.of("https", authority)
    credential, body = make_request(invite, key, exporter, origin)
    headers = (
        ("authorization", credential),
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
    )
    return Request("POST", "https", authority, ENROLMENT_PATH, None, headers), body


def _profile(
    name: str, gateway: Gateway, invite: Invite, enrolment: Enrolment, place: keys.KeyPlace
) -> Profile:
    # Only a gateway that was found by a pin may name others.
    pins = (enrolment.pins or invite.pins) if invite.pins else ()
    routes = enrolment.routes
    policy = profiles.route_policy("only" if routes else "all", routes)
    return Profile(
        name=name,
        host=gateway.host,
        port=gateway.port,
        key=place,
        device=enrolment.name,
        trust=Trust(pins=tuple(map(parse_pin, pins))),
        policy=policy,
    )
