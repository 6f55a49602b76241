"""A profile's proxies as a session: connected, looking for the gateway again, given up.

What `qvpn status`, `qvpn down` and the app see and end as they do a tunnel. It needs no rights and
touches nothing of this machine's network; what it serves is in `local.py`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import suppress
from datetime import UTC, datetime

from qvpn_core.client import control
from qvpn_core.client.holding import hold
from qvpn_core.client.profiles import Profile
from qvpn_core.client.proxy.link import GatewayLink
from qvpn_core.client.proxy.options import format_address
from qvpn_core.client.proxy.run import raise_descriptor_limit, serve, until
from qvpn_core.client.states import Event, Machine, State
from qvpn_core.client.status import Proxy, Status
from qvpn_core.errors import QvpnError, UsageError

log = logging.getLogger("qvpn.proxy")

#: Seconds after which `watch` says again what it said.
WATCH_INTERVAL = 10.0


async def run(profile: Profile) -> None:
    """Serve the proxies of `profile` as this user's agent, until asked to end or cancelled.

    Raises the QvpnError with which they could not start or go on, and UsageError when another agent
    runs.
    """
    raise_descriptor_limit()
    session = ProxySession(profile)
    await hold(session, session.answer)


class ProxySession:
    """All calls on the event loop that runs `run`."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._wanted = profile.proxy.listeners()
        self._proxies = tuple(Proxy.of(each, format_address(each.listen)) for each in self._wanted)
        self._error: QvpnError | None = None
        self._since = datetime.now(UTC)
        # The pauses are the link's; of the machine only the states are used.
        self._machine = Machine(random.random)
        self._link = GatewayLink(profile, on_change=self._changed)
        self._stopped = asyncio.Event()
        self._over = False
        self._watchers: list[asyncio.Event] = []

    async def run(self) -> None:
        """Listen, connect and serve until `disconnect`. Raises QvpnError; cancelling ends it."""
        try:
            if not self._stopped.is_set():
                self._feed(Event.CONNECT)
                await until(self._stopped, serve(self._link, self._wanted, self._bound))
        except QvpnError as error:
            self._feed(Event.SESSION_REJECTED, error)
            if not self._stopped.is_set():
                raise
        finally:
            self._over = True
            if self._machine.state is not State.FAILED:
                self._feed(Event.DISCONNECT)
                if self._machine.state is State.DISCONNECTING:
                    self._feed(Event.CLOSED)
            self._tell()

    def disconnect(self) -> None:
        """End; `run` returns when nothing is left. Idempotent."""
        if not (self._stopped.is_set() or self._over):
            self._stopped.set()
            self._feed(Event.DISCONNECT)

    def status(self) -> Status:
        """A snapshot for people and programs."""
        error = self._error
        return Status(
            state=self._machine.state,
            profile=self.profile.name,
            gateway=self.profile.gateway,
            transport=self._link.transport,
            since=self._since.isoformat(timespec="seconds"),
            reason=error.reason if error else None,
            error=str(error) if error else None,
            proxies=self._proxies,
        )

    async def watch(self) -> AsyncGenerator[Status, None]:
        """The status now, after every change and now and then, until `run` is over."""
        news = asyncio.Event()
        self._watchers.append(news)
        try:
            while True:
                news.clear()
                over = self._over
                yield self.status()
                if over:
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_INTERVAL):
                        await news.wait()
        finally:
            self._watchers.remove(news)

    async def answer(self, request: control.Concern) -> control.Reply:
        """What can be asked of proxies beside their status. Raises UsageError."""
        match request:
            case control.RetryRequest():
                self._link.retry()
                return control.Done()
            case control.OfferRequest():
                return control.OfferReply()
            case control.ExplainRequest(destination=destination):
                words = "what a program asks the proxy for goes by the gateway, no tunnel is up"
                return control.ExplainReply("direct", "", f"{destination} goes direct: {words}")
        raise UsageError("only a proxy is up, no tunnel", "end it first: qvpn down")

    def _bound(self, proxies: tuple[Proxy, ...]) -> None:
        self._proxies = proxies
        self._tell()

    def _changed(self, error: QvpnError | None) -> None:
        self._feed(Event.SESSION_UP if error is None else Event.SESSION_LOST, error)

    def _feed(self, event: Event, error: QvpnError | None = None) -> None:
        step = self._machine.handle(event, asyncio.get_running_loop().time())
        self._error = error
        if step.after is not step.before:
            self._since = datetime.now(UTC)
            log.info("proxies of %s: %s", self.profile.name, step.after)
        self._tell()

    def _tell(self) -> None:
        for news in self._watchers:
            news.set()
