"""Which transport carries a session: the first at its beginning, and a better one later.

QUIC is better, when it gets through. A session begins with the winner of a race; on TLS it looks
for QUIC again and again, less and less often; on QUIC that has fallen silent it looks for TLS. A
new link is open before the old one is left, so no packet has nowhere to go. It moves nothing
itself: that is the session's part, which takes the link that `better` found.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from qvpn_core.client.link import Link
from qvpn_core.client.networks import Networks
from qvpn_core.client.profiles import TRANSPORTS, TransportChoice
from qvpn_core.errors import QvpnError
from qvpn_core.transport.dial import Endpoint, RequestMaker, StageHandler
from qvpn_core.transport.interface import TransportName
from qvpn_core.transport.race import HEAD_START, schedule
from qvpn_core.transport.reach import Connection, Target, in_order, reach

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
#: Seconds that one try may take, the other transport carrying the session meanwhile.
TRY_SECONDS: Final = 5.0
#: QUIC that lasted for so many seconds is trusted again; less looks like a path that flaps.
STABLE: Final = 60.0


class _Recovered(Exception):
    """What was to be replaced works again."""


class Uplink:
    """The ways of one session to its gateway."""

    def __init__(
        self,
        target: Target,
        endpoints: Sequence[Endpoint],
        choice: TransportChoice,
        request: RequestMaker,
        networks: Networks,
    ) -> None:
        self._target = target
        self._endpoints = endpoints
        self._transports = TRANSPORTS[choice]
        self._request = request
        self._networks = networks
        self._probe = FIRST_PROBE
        self._since = 0.0
        #: Whether the gateway is being asked for a link that may replace the one there is.
        self.moving = False

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Every address and port that is talked to."""
        return [(each.address[0], each.address[1]) for each in self._endpoints]

    async def open(self, on_stage: StageHandler) -> Link:
        """The first link, not configured yet. Raises as `reach.connect`."""
        tell = in_order(on_stage)
        both = len(self._transports) > 1
        blocked = both and await asyncio.to_thread(self._networks.udp_was_blocked)
        entries = schedule(self._endpoints, self._transports, 0.0 if blocked else HEAD_START)
        link = await reach(
            self._target,
            entries,
            lambda connection: self._ask(connection, on_stage=tell),
            on_stage=tell,
        )
        if both:
            await self._remember(link)
        return link

    async def better(self, link: Link) -> Link:
        """A link to go on with in the place of `link`, configured; waits until there is one."""
        if len(self._transports) == 1:
            await asyncio.get_running_loop().create_future()  # there is no other
        if link.tunnel.transport == "quic":
            found = await self._fall_back(link)
        else:
            found = await self._return_to_quic(link)
        await self._remember(found)
        return found

    async def _fall_back(self, link: Link) -> Link:
        """Wait until QUIC is silent, and TLS is not."""

        def silent() -> bool:
            tunnel = link.tunnel
            return tunnel.silence > max(SILENCE, SILENT_TRIPS * tunnel.rtt)

        while True:
            await asyncio.sleep(LOOK)
            if not silent():
                continue
            log.info("QUIC is silent; trying TLS")
            try:
                return await self._replace("tls", link, silent)
            except _Recovered:
                log.info("QUIC answers again")
            except QvpnError as error:
                log.info("no TLS either: %s", error)
                await asyncio.sleep(FALL_BACK_PAUSE)

    async def _return_to_quic(self, link: Link) -> Link:
        """Try QUIC until it gets through."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._since > STABLE:
            self._probe = FIRST_PROBE
        while True:
            await asyncio.sleep(self._probe)
            self._probe = min(2 * self._probe, LAST_PROBE)
            try:
                found = await self._replace("quic", link, lambda: True)
            except QvpnError as error:
                log.debug("no QUIC yet: %s", error)
            else:
                self._since = loop.time()
                return found

    async def _replace(
        self, transport: TransportName, link: Link, wanted: Callable[[], bool]
    ) -> Link:
        async def ask(connection: Connection) -> Link:
            await connection.proven()
            if not wanted():
                raise _Recovered
            self.moving = True
            return await self._ask(connection, before=link)

        entries = schedule(self._endpoints, (transport,), 0.0)
        try:
            new = await reach(self._target, entries, ask, timeout=TRY_SECONDS)
            try:
                await new.configure()
            except BaseException:
                new.close()
                raise
        finally:
            self.moving = False
        return new

    async def _ask(
        self,
        connection: Connection,
        *,
        before: Link | None = None,
        on_stage: StageHandler = lambda stage: None,
    ) -> Link:
        link = Link(before.datapath if before is not None else None)
        link.tunnel = await connection.open(self._request, link, on_stage)
        return link

    async def _remember(self, link: Link) -> None:
        try:
            # Off the loop: a disk may take its time, and packets must not.
            await asyncio.to_thread(self._networks.note, link.tunnel.transport)
        except BaseException:
            link.close()
            raise
