"""The addresses of host names that a person lists as destinations, by this machine's own resolver.

What a name means is up to whoever answers for it: an exclusion by name trusts that answer as much
as it trusts a network's owner. It keeps nothing; a list's lookups are stored with the list.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

from qvpn_core.errors import NameNotResolved
from qvpn_core.net.plan import Network
from qvpn_core.transport import resolver

#: Seconds for one name; the C library itself goes on for up to half a minute.
PATIENCE: Final = 10.0
#: Names that are looked up at once: each holds a thread.
_AT_ONCE: Final = 8
#: Addresses of one name that are taken: more are a mistake or an attack.
MAX_ADDRESSES: Final = 64


async def look_up(
    names: Iterable[str], within: float = float("inf")
) -> dict[str, tuple[Network, ...]]:
    """The addresses of each name, in order, as host networks; none when it was not found.

    All together take at most `within` seconds; what is not known then is not found.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + within
    turn = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> tuple[Network, ...]:
        async with turn:
            patience = min(PATIENCE, end - clock())
            return await _addresses(name, patience) if patience > 0 else ()

    wanted = list(dict.fromkeys(names))
    return dict(zip(wanted, await asyncio.gather(*map(one, wanted)), strict=True))


async def _addresses(name: str, patience: float) -> tuple[Network, ...]:
    try:
        async with asyncio.timeout(patience):
            found = await resolver.look_up(name, None, socket.SOCK_STREAM)
    except (NameNotResolved, TimeoutError):
        return ()
    # A link-local answer names a link, which no route of ours can.
    texts = {str(entry[4][0]) for entry in found if "%" not in str(entry[4][0])}
    networks = sorted(map(ip_network, texts), key=lambda it: (it.version, it.network_address))
    return tuple(networks[:MAX_ADDRESSES])
