"""When what is carried by one transport tries the other.

QUIC is better, when it gets through. On TLS it looks for QUIC again and again, less and less often;
on QUIC that has fallen silent it looks for TLS. It opens nothing itself and moves nothing: who asks
for a better way passes what opens one, and does with it what must be done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeVar

from qvpn_core.errors import QvpnError
from qvpn_core.transport.interface import TransportName

log = logging.getLogger("qvpn.transport")

#: Seconds between two looks at QUIC, the silence from which TLS is tried beside it, in round trips
#: when these are long, and the pause after a try that failed.
LOOK: Final = 0.5
SILENCE: Final = 1.0
SILENT_TRIPS: Final = 4
FALL_BACK_PAUSE: Final = 1.0
#: Seconds until QUIC is tried while on TLS: at first, and at most; it doubles between.
FIRST_PROBE: Final = 3.0
LAST_PROBE: Final = 25.0
#: Seconds that one try may take, the other transport carrying on meanwhile.
TRY_SECONDS: Final = 5.0
#: QUIC that lasted for so many seconds is trusted again; less looks like a path that flaps.
STABLE: Final = 60.0

T = TypeVar("T")


class Recovered(Exception):
    """What was to be replaced works again."""


class Way(Protocol):
    """What is used now: a tunnel, or a connection."""

    @property
    def transport(self) -> TransportName: ...

    @property
    def rtt(self) -> float:
        """See `HttpTunnel.rtt`."""

    @property
    def silence(self) -> float:
        """See `HttpTunnel.silence`."""


#: Opens another way over a transport, within `TRY_SECONDS`. It asks whether that is still wanted
#: before the gateway learns of it, and raises Recovered when it is not.
Replace = Callable[[TransportName, Callable[[], bool]], Awaitable[T]]


class Preference:
    """The tries of one session, or of one proxy, over its life."""

    def __init__(self) -> None:
        self._probe = FIRST_PROBE
        self._since = 0.0

    async def better(self, way: Way, replace: Replace[T]) -> T:
        """What `replace` opened to go on with in the place of `way`; waits until there is one."""
        if way.transport == "quic":
            return await self._fall_back(way, replace)
        return await self._return_to_quic(replace)

    async def _fall_back(self, way: Way, replace: Replace[T]) -> T:
        """Wait until QUIC is silent, and TLS is not."""

        def silent() -> bool:
            return way.silence > max(SILENCE, SILENT_TRIPS * way.rtt)

        while True:
            await asyncio.sleep(LOOK)
            if not silent():
                continue
            log.info("QUIC is silent; trying TLS")
            try:
                return await replace("tls", silent)
            except Recovered:
                log.info("QUIC answers again")
            except QvpnError as error:
                log.info("no TLS either: %s", error)
                await asyncio.sleep(FALL_BACK_PAUSE)

    async def _return_to_quic(self, replace: Replace[T]) -> T:
        """Try QUIC until it gets through."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._since > STABLE:
            self._probe = FIRST_PROBE
        while True:
            await asyncio.sleep(self._probe)
            self._probe = min(2 * self._probe, LAST_PROBE)
            try:
                found = await replace("quic", lambda: True)
            except QvpnError as error:
                log.debug("no QUIC yet: %s", error)
            else:
                self._since = loop.time()
                return found
