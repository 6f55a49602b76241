"""The host names in a profile's list, looked up anew for a new connection.

What a name was when the list was stored may be somebody else's address by now. A name that is not
found just now keeps what it was, and a connection does not wait for slow name servers.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from qvpn_core.client import profiles
from qvpn_core.client.lookup import look_up
from qvpn_core.client.profiles import Profile
from qvpn_core.client.route_list import compile_policy, names, stored, stored_lookups
from qvpn_core.errors import QvpnError

log = logging.getLogger("qvpn.routes")

#: Seconds for all names together.
PATIENCE: Final = 3.0


async def refreshed(profile: Profile) -> Profile:
    """The profile with its names as they are now, which is also stored; it waits `PATIENCE`.

    Where the list cannot be meant with the new addresses, or not be stored, that is logged.
    """
    routes, known = stored(profile)
    wanted = names(routes)
    if not wanted or routes.mode == "all":
        return profile
    found = await look_up(wanted, PATIENCE)
    lookups = {name: found[name] or known.get(name, ()) for name in wanted}
    if all(set(lookups[name]) == set(known.get(name, ())) for name in wanted):
        return profile
    try:
        policy = compile_policy(routes, lookups)
        fresh = replace(profile, policy=policy, lookups=stored_lookups(routes, lookups))
    except QvpnError as error:
        log.warning("the names of %s are used as they were: %s", profile.name, error)
        return profile
    log.info("names of %s have other addresses now", profile.name)

    def keep(now: Profile) -> Profile:
        if (now.policy, now.route_lines) != (profile.policy, profile.route_lines):
            return now  # somebody edited the list meanwhile
        return replace(now, policy=fresh.policy, lookups=fresh.lookups)

    try:
        await asyncio.to_thread(profiles.edit, profile.name, keep)
    except QvpnError as error:
        log.warning("the new addresses of names are not stored: %s", error)
    return fresh
