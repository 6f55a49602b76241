"""Which transport carries a session: the first at its beginning, and a better one later.

A session begins with the winner of a race; when it tries another transport says `preference.py`. A
new link is open before the old one is left, so no packet has nowhere to go. It moves nothing
itself: that is the session's part, which takes the link that `better` found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from qvpn_core.client.link import Link
from qvpn_core.client.networks import Networks
from qvpn_core.client.preference import TRY_SECONDS, Preference, Recovered
from qvpn_core.client.profiles import TRANSPORTS, TransportChoice
from qvpn_core.transport.dial import Endpoint, RequestMaker, StageHandler
from qvpn_core.transport.interface import TransportName
from qvpn_core.transport.race import HEAD_START, schedule
from qvpn_core.transport.reach import Connection, Target, in_order, reach


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
        self._preference = Preference()
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
        found = await self._preference.better(link.tunnel, partial(self._replace, link))
        await self._remember(found)
        return found

    async def _replace(
        self, link: Link, transport: TransportName, wanted: Callable[[], bool]
    ) -> Link:
        async def ask(connection: Connection) -> Link:
            await connection.proven()
            if not wanted():
                raise Recovered
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
