"""How a profile proves itself to its gateway, and what it learns of the gateway in return.

The same for every kind of request: tunnels and services. It refuses to know sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from qvpn_core.auth.concealed import Origin, authenticate
from qvpn_core.auth.exporter import Exporter
from qvpn_core.client import keys, profiles
from qvpn_core.client.profiles import Profile
from qvpn_core.errors import QvpnError
from qvpn_core.transport.dial import RequestMaker
from qvpn_core.transport.interface import Headers, Request
from qvpn_core.transport.trust import PINS_FIELD, announced_pins

log = logging.getLogger("qvpn.session")

#: Makes the value of a credential's field, for the connection that has the exporter.
Prover = Callable[[Exporter, Origin], str]


async def prover(profile: Profile) -> Prover:
    """What proves that requests are this device's. Raises KeyUnavailable."""
    if profile.key is None:
        return lambda _exporter, _origin: f"Bearer {profile.token}"
    # A desktop's password store may ask its owner first.
    key = await asyncio.to_thread(keys.load, profile.name, profile.key)
    return lambda exporter, origin: authenticate(key, exporter, origin)


async def request_maker(profile: Profile) -> RequestMaker:
    """What makes the request for a tunnel, once there is a connection to sign for.

    Raises KeyUnavailable.
    """
    authority, path = profile.resource
    origin = Origin.of("https", authority)
    prove = await prover(profile)

    def make(exporter: Exporter) -> Request:
        headers = (("authorization", prove(exporter, origin)),)
        return Request("CONNECT", "https", authority, path, "connect-ip", headers)

    return make


def learn_pins(profile: Profile, headers: Headers) -> Profile:
    """Keep the pins that a gateway's answer announces: it may soon change its key.

    Returns the profile as it is then.
    """
    pins = announced_pins(dict(headers).get(PINS_FIELD), profile.trust)
    if pins is None or set(pins) == set(profile.trust.pins):
        return profile
    try:
        learned = profiles.learn_pins(profile, pins)
    except QvpnError as error:
        log.warning("the gateway's next key is not remembered: %s", error)
        return profile
    log.info("the gateway announced its next key")
    return learned
