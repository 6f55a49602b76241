"""A tunnel goes with this machine: other networks, other addresses, suspend and resume.

`Surroundings` is what a tunnel knows of the network around it, from one session to the next;
`Mover` holds one session to it. What a path is, the kernel says (`net/watch.py`); how a connection
changes its path is the transport's matter. Nothing here opens a socket or waits for a fixed time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from qvpn_core.errors import GatewayUnreachable, NoNetwork, QvpnError, TunnelLost
from qvpn_core.net.watch import NetworkWatch, Way, find_way
from qvpn_core.transport.interface import HttpTunnel

log = logging.getLogger("qvpn.moving")

#: Told the seconds slept since the last news, mostly 0.0.
NewsHandler = Callable[[float], None]

T = TypeVar("T")


class LeftBehind(TunnelLost):
    """The session cannot go on where this machine is now; another one can, at once."""


class Surroundings:
    """The network around this machine, as far as it concerns one gateway."""

    def __init__(self, way_to: Callable[[str], Way | None] = find_way) -> None:
        #: The gateway's addresses, once they are known. They are not asked for again: the resolver
        #: may be behind the tunnel.
        self.addresses: tuple[str, ...] = ()
        self.way_to = way_to
        self._handlers: list[NewsHandler] = []
        self._watch = NetworkWatch(self.news)

    def start(self) -> None:
        """Watch from now on."""
        self._watch.start()

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._watch.close()

    def subscribe(self, handler: NewsHandler) -> Callable[[], None]:
        """Call `handler` whenever something may have changed. Returns the undo."""
        self._handlers.append(handler)
        return lambda: self._handlers.remove(handler)

    def news(self, slept: float = 0.0) -> None:
        """Something may have changed."""
        for handler in tuple(self._handlers):
            handler(slept)

    def ways(self) -> tuple[Way | None, ...]:
        """The ways to the gateway's addresses; an empty tuple while none is known."""
        return tuple(self.way_to(address) for address in self.addresses)


class Mover:
    """Keeps one session on the path that there is. Subscribes at once; `close` it."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self._changed = asyncio.Event()
        self._slept = 0.0
        self._unsubscribe = surroundings.subscribe(self._on_news)
        #: The tunnel that was connected or is followed, and the way that it takes.
        self._tunnel: HttpTunnel | None = None
        self._way: Way | None = None
        #: Why nothing gets through although the session lives, while that is so.
        self.trouble: QvpnError | None = None

    def close(self) -> None:
        """Hear no more news."""
        self._unsubscribe()

    def _on_news(self, slept: float) -> None:
        self._slept += slept
        self._changed.set()

    async def _news(self) -> float:
        """Wait for news; returns the seconds slept."""
        await self._changed.wait()
        self._changed.clear()
        slept, self._slept = self._slept, 0.0
        return slept

    async def connect(self, dial: Callable[[], Awaitable[HttpTunnel]]) -> HttpTunnel:
        """What `dial` returns or raises; it is begun again when the network changes meanwhile.

        Raises NoNetwork, and sends nothing, while no address of the gateway can be reached.
        """
        while True:
            ways = self.surroundings.ways()
            if not any(ways):
                raise NoNetwork("this machine has no network connection", "connect it to one")
            attempt = asyncio.ensure_future(dial())
            other = asyncio.create_task(self._until_other(ways))
            try:
                await asyncio.wait((attempt, other), return_when=asyncio.FIRST_COMPLETED)
                if attempt.done():
                    tunnel = attempt.result()
                    known = dict(zip(self.surroundings.addresses, ways, strict=True))
                    self._tunnel, self._way = tunnel, known.get(tunnel.peer[0])
                    return tunnel
            finally:
                await _end(attempt, other)
            log.info("the network changed while connecting")

    async def _until_other(self, ways: tuple[Way | None, ...]) -> None:
        while not await self._news() and self.surroundings.ways() == ways:
            pass

    def switch(self, tunnel: HttpTunnel) -> None:
        """Move `tunnel` along from now on, which took the place of the one before."""
        self._tunnel, self._way = tunnel, self.surroundings.way_to(tunnel.peer[0])
        self.trouble = None

    async def follow(self) -> NoReturn:
        """Move the tunnel along. Raises LeftBehind when it cannot come with us."""
        while True:
            slept = await self._news()
            tunnel = self._tunnel
            assert tunnel is not None
            way = self.surroundings.way_to(tunnel.peer[0])
            if way == self._way and not slept:
                continue
            if way is None and any(self.surroundings.ways()):
                raise LeftBehind("the network changed, and the gateway has another address there")
            moved = way is not None and await self._rebind(tunnel, slept)
            if not moved and self.trouble is None:
                self.trouble = NoNetwork(
                    "this machine has no network connection", "the tunnel goes on as soon as it has"
                )
                tunnel.hold()
                log.info("no way to the gateway")
            elif moved:
                self.trouble = None
                log.info("moved to another path%s", f" after {slept:.0f} s asleep" if slept else "")
            self._way = way if moved else None

    async def _rebind(self, tunnel: HttpTunnel, slept: float) -> bool:
        """Whether there is a path again. Raises LeftBehind when the session is of no use there."""
        try:
            if await tunnel.rebind(slept):
                return True
        except GatewayUnreachable:
            return False  # gone again; the kernel tells when it is back
        raise LeftBehind(
            f"this machine slept for {slept:.0f} seconds" if slept else "the network changed"
        )


async def first_to_end(*several: Awaitable[T]) -> T:
    """Run all until one ends; end the others and return or raise what it did."""
    tasks = [asyncio.ensure_future(each) for each in several]
    try:
        done, _pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()
    finally:
        await _end(*tasks)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait for its end."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # was looked at, or is of no interest any more
