"""One tunnel from the user's wish for it to its end: does what the state machine says.

Runs sessions one after the other, waits between them, and keeps the network in place across a loss.
It prints nothing and knows neither sockets nor kernels; those are in `session.py` and
`attachment.py`. The agent and the app drive it by `run`, `disconnect`, `network_up` and watch it by
`subscribe`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from qvpn_core.client.attachment import Attachment
from qvpn_core.client.explain import Explanation
from qvpn_core.client.moving import LeftBehind, Mover, Surroundings
from qvpn_core.client.planner import RoutePolicy
from qvpn_core.client.profiles import Profile, excluded_words
from qvpn_core.client.resting import Resting
from qvpn_core.client.session import Session
from qvpn_core.client.states import Action, Event, KillSwitchMode, Machine, State, Transition
from qvpn_core.client.status import Stage, Status
from qvpn_core.errors import CaptivePortal, QvpnError, UsageError
from qvpn_core.net.plan import IPAddress
from qvpn_core.net.watch import Way

log = logging.getLogger("qvpn.tunnel")

#: Seconds between two looks whether a captive portal lets us out: nothing tells when it does.
PORTAL_RETRY = 5.0

_OVER = frozenset({State.DISCONNECTED, State.FAILED})
_WANTED = frozenset({State.CONNECTING, State.CONNECTED, State.RECONNECTING})
#: Seconds between two looks of `watch` at counters and round trips.
WATCH_INTERVAL = 1.0


class InternalError(QvpnError):
    """A defect of ours ended the session; the log has the traceback."""

    reason = "internal"


@dataclass(frozen=True, slots=True)
class Change:
    """A step that listeners are told; `error` is what led there, if one did."""

    transition: Transition
    error: QvpnError | None

    @property
    def state(self) -> State:
        """The state now."""
        return self.transition.after


class Tunnel:
    """A tunnel to one gateway. All calls on the event loop that runs `run`."""

    def __init__(
        self,
        profile: Profile,
        policy: RoutePolicy,
        kill_switch: KillSwitchMode = "off",
        *,
        random: Callable[[], float] = random.random,
        resting: Resting | None = None,
    ) -> None:
        """`resting` keeps the permission for another tunnel of this process."""
        self.profile = profile
        self.policy = policy
        self.kill_switch = kill_switch
        #: Why the tunnel is not connected, in every state that an error led to.
        self.error: QvpnError | None = None
        self.since = datetime.now(UTC)
        self._machine = Machine(random)
        self._attachment = Attachment(resting)
        self._surroundings = Surroundings()
        self._ways: tuple[Way | None, ...] = ()
        self._actions: asyncio.Queue[Action] = asyncio.Queue(maxsize=16)
        self._listeners: list[Callable[[Change], None]] = []
        self._watchers: list[asyncio.Event] = []
        self._over = False
        self._stage: Stage | None = None
        self._attempt: asyncio.Task[None] | None = None
        self._session: Session | None = None
        self._mover: Mover | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def state(self) -> State:
        """The machine's state."""
        return self._machine.state

    def subscribe(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call `listener` after every event, also one that keeps the state. Returns the undo."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def run(self) -> None:
        """Connect and stay until the tunnel is disconnected and the network as it was before.

        Raises the QvpnError with which the tunnel failed. Cancelling undoes everything too.
        """
        self._surroundings.subscribe(self._network_news)
        self._surroundings.start()
        self._feed(Event.CONNECT)
        try:
            while self.state not in _OVER or not self._actions.empty():
                await self._perform(await self._actions.get())
        finally:
            self._surroundings.close()
            try:
                await self._close()
            finally:
                try:
                    await self._attachment.close()
                finally:
                    self._over = True
                    self._tell()
        if self.state is State.FAILED:
            assert self.error is not None
            raise self.error

    async def connect(
        self, profile: Profile, policy: RoutePolicy, kill_switch: KillSwitchMode
    ) -> None:
        """Connect again from BLOCKED, perhaps otherwise, until that has succeeded or ended."""
        self.profile, self.policy, self.kill_switch = profile, policy, kill_switch
        decided = asyncio.Event()

        def on_change(change: Change) -> None:
            if change.state is not State.CONNECTING:
                decided.set()

        self._feed(Event.CONNECT)
        unsubscribe = self.subscribe(on_change)
        try:
            await decided.wait()
        finally:
            unsubscribe()

    def disconnect(self) -> None:
        """End the tunnel; `run` returns when nothing of it is left. Idempotent."""
        self._feed(Event.DISCONNECT)

    def retry(self) -> None:
        """The user does not want to wait: a pause ends, a tunnel given up starts afresh."""
        if self.state is State.BLOCKED:
            self._feed(Event.CONNECT)
        elif self.state is State.RECONNECTING:
            self._feed(Event.NETWORK_UP)

    def network_up(self) -> None:
        """A network came up: a pause between two attempts ends now."""
        self._feed(Event.NETWORK_UP)

    def _network_news(self, slept: float) -> None:
        """Something around us may have changed; a live session sees to itself."""
        before, self._ways = self._ways, self._surroundings.ways()
        if self.state is State.RECONNECTING and any(self._ways):
            if slept or self._ways != before:
                self.network_up()

    async def sign_in(self, seconds: int) -> str:
        """Let a browser out for `seconds`; returns what to open in it. Raises a QvpnError."""
        if not isinstance(self.error, CaptivePortal):
            raise UsageError("this network does not ask for signing in")
        await self._attachment.sign_in(seconds)
        return self.error.url

    def set_policy(self, policy: RoutePolicy) -> None:
        """Route by `policy` from now on; a live session follows without reconnecting.

        Raises GatewayRefused when it would make too many routes, and then changes nothing.
        """
        if self._session is not None:
            self._session.set_policy(policy)
        self.policy = policy
        self._tell()

    async def set_kill_switch(self, mode: KillSwitchMode) -> None:
        """Hold back by `mode` from now on: a live session at once, an attempt as its first step.

        A pause between two attempts ends. Raises UsageError when no tunnel is wanted, and what
        `Session.set_kill_switch` raises; then nothing is changed.
        """
        if self.state not in _WANTED:
            raise UsageError(f"the tunnel is {self.state}", "change the profile for the next one")
        before, self.kill_switch = self.kill_switch, mode
        try:
            if self._session is not None:
                await self._session.set_kill_switch(mode)
        except QvpnError:
            self.kill_switch = before
            raise
        self._see_kill_switch()
        if self._session is None and self.state is State.RECONNECTING:
            self._feed(Event.NETWORK_UP)
        self._tell()

    async def watch(self) -> AsyncGenerator[Status, None]:
        """The status now, after every change and every second, until `run` is over."""
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

    def status(self) -> Status:
        """A snapshot for people and programs."""
        error = self.error or (self._mover.trouble if self._mover else None)
        return msgspec.structs.replace(
            self._session.snapshot() if self._session else Status(),
            state=self.state,
            stage=self._stage,
            mode=self.policy.mode,
            destinations=tuple(map(str, self.policy.destinations)),
            excluded=excluded_words(self.policy),
            kill_switch=self.kill_switch,
            firewall=self._machine.firewall,
            profile=self.profile.name,
            gateway=self.profile.gateway,
            since=self.since.isoformat(timespec="seconds"),
            reason=error.reason if error else None,
            error=str(error) if error else None,
            portal=error.url if isinstance(error, CaptivePortal) else None,
        )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The tunnel's own addresses, without their prefix lengths."""
        plan = self._attachment.plan
        return () if plan is None else tuple(str(address.ip) for address in plan.addresses)

    def offer(self) -> tuple[tuple[str, ...], tuple[str, ...], int]:
        """What the gateway assigned and advertised, and the MTU; empty without a session."""
        session = self._session
        return ((), (), 0) if session is None else session.offer()

    def explain(self, destination: IPAddress) -> Explanation:
        """Which way packets to `destination` go."""
        return self._attachment.explain(destination)

    def _feed(self, event: Event, error: QvpnError | None = None) -> None:
        now = asyncio.get_running_loop().time()
        self._see_kill_switch()
        transition = self._machine.handle(event, now)
        if error is not None or transition.after is State.CONNECTED:
            self.error = error
        if transition.after is not transition.before:
            self.since = datetime.now(UTC)
        for action in transition.actions:
            self._actions.put_nowait(action)
        if isinstance(error, CaptivePortal):
            self._machine.retry_within(PORTAL_RETRY, now)
        self._set_timer()
        for listener in tuple(self._listeners):
            listener(Change(transition, error))
        self._tell()

    def _see_kill_switch(self) -> None:
        # One that could not be put in force blocks nothing, and giving up then is a failure.
        held = self._attachment.kill_switch is not None
        self._machine.kill_switch = self.kill_switch if held else "off"

    def _staged(self, stage: Stage | None) -> None:
        self._stage = stage
        self._tell()

    def _tell(self) -> None:
        for news in self._watchers:
            news.set()

    def _up(self) -> None:
        self._staged(None)
        self._feed(Event.SESSION_UP)

    def _set_timer(self) -> None:
        self._cancel_timer()
        if (due := self._machine.retry_at) is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(due, self._feed, Event.RETRY_DUE)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _perform(self, action: Action) -> None:
        match action:
            case Action.START:
                if self._attempt is None:
                    self._attempt = asyncio.create_task(self._run_session(), name="qvpn session")
            case Action.CLOSE:
                await self._close()
                self._feed(Event.CLOSED)
            case Action.RELEASE:
                await self._attachment.release()

    async def _run_session(self) -> None:
        mover = self._mover = Mover(self._surroundings)
        session = self._session = Session(
            self.profile,
            self.policy,
            self._attachment,
            mover,
            kill_switch=self.kill_switch,
            on_up=self._up,
            on_stage=self._staged,
            hurried=self._machine.hurried,
        )
        try:
            await session.run()
        except QvpnError as error:
            ended = error
        except Exception as defect:
            log.exception("the session ended by a defect")
            ended = InternalError(f"qvpn has a defect: {defect!r}", "please report it")
        finally:
            mover.close()
            self.profile = session.profile
            self._attempt = self._session = self._mover = self._stage = None
        self._ways = self._surroundings.ways()
        self._feed(Event.SESSION_LOST if ended.transient else Event.SESSION_REJECTED, ended)
        if isinstance(ended, LeftBehind) and self.state is State.RECONNECTING:
            self.network_up()  # it ended because another network is there

    async def _close(self) -> None:
        self._cancel_timer()
        if (attempt := self._attempt) is not None:
            attempt.cancel()
            await asyncio.wait([attempt])
            self._attempt = None  # its own clean-up does not run when it never started
        await self._attachment.release()
