"""The request for a tunnel, with the credential of a profile. It keeps no key."""

from __future__ import annotations

import asyncio

from qvpn_core.auth.concealed import Origin, authenticate
from qvpn_core.auth.exporter import Exporter
from qvpn_core.client import keys
from qvpn_core.client.profiles import Profile
from qvpn_core.transport.dial import RequestMaker
from qvpn_core.transport.interface import Request


async def request_maker(profile: Profile) -> RequestMaker:
    """What makes the request, once there is a connection to sign for. Raises KeyUnavailable."""
    authority, path = profile.resource
    origin = Origin.of("https", authority)
    key = None
    if profile.key is not None:
        # A desktop's password store may ask its owner first.
        key = await asyncio.to_thread(keys.load, profile.name, profile.key)

    def make(exporter: Exporter) -> Request:
        credential = (
            f"Bearer {profile.token}" if key is None else authenticate(key, exporter, origin)
        )
        headers = (("authorization", credential),)
        return Request("CONNECT", "https", authority, path, "connect-ip", headers)

    return make
