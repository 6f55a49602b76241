"""What the user can do: each a plain call that starts it and returns at once.

Connecting runs the core's agent as a task of this process; everything else is asked of whichever
agent runs, by the control socket. Results are seen in the session model. Failures that no agent
can report are signalled here. It shows nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from importlib import import_module
from typing import Final

import msgspec
from PySide6.QtCore import QObject, Signal

from qvpn_core.client import control, instance, paths, profiles, remote, sign_in
from qvpn_core.client.profiles import Profile
from qvpn_core.client.proxy.options import ProxyOptions, format_address
from qvpn_core.client.resting import Resting
from qvpn_core.client.route_list import (
    Lookups,
    RouteList,
    compile_policy,
    stored,
    stored_lookups,
    with_lan,
)
from qvpn_core.client.route_names import refreshed
from qvpn_core.client.states import KillSwitchMode, State
from qvpn_core.client.status import Proxy
from qvpn_core.errors import QvpnError
from qvpn_core.helper import launch
from qvpn_core.net import killswitch
from qvpn_gui import settings
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Policy
from qvpn_gui.watching import FileWatch

log = logging.getLogger("qvpn.app")

#: Seconds for an agent in another process to end after it said that it is done.
_GONE: Final = 5.0
#: Seconds for an agent to try once more; the user may be asked for permission meanwhile.
_CONNECT: Final = 120.0
#: Seconds for our own agent to tell the gateway and undo the network.
_CLOSE: Final = 15.0


class Actions(QObject):
    """The commands of the tray and of the window."""

    #: A command failed for a reason that the session does not show: a QvpnError.
    failed = Signal(object)
    #: The stored profiles, the chosen one, or what is in them, changed.
    profiles_changed = Signal()
    #: A captive portal can be signed in to: what to open in a browser.
    portal_open = Signal(str)

    def __init__(self, model: SessionModel, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.memory = settings.load_memory()
        self._model = model
        self._names: list[str] | None = None
        self._stored: dict[str, Profile | None] = {}
        #: What is wrong with a profile, by its name.
        self._damage: dict[str, QvpnError] = {}
        self._watch = FileWatch(paths.config_dir() / "profiles", "*.toml", self)
        self._watch.changed.connect(self.profiles_moved)
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: asyncio.Task[None] | None = None
        #: So that disconnecting and connecting again asks for no password.
        self._resting = Resting()
        #: One command at a time; a session that it began goes on beside it.
        self._turn = asyncio.Lock()

    # Profiles

    @property
    def profile(self) -> str | None:
        """The chosen profile: that of the session, or the last one used, or the only one."""
        if self._model.state is not State.DISCONNECTED and self._model.status.profile:
            return self._model.status.profile
        known = self.profile_names()
        if self.memory.profile in known:
            return self.memory.profile
        return known[0] if known else None

    def profile_names(self) -> list[str]:
        """The stored profiles."""
        if self._names is None:
            self._names = []
            try:
                self._names = profiles.names()
            except QvpnError as error:
                log.warning("%s", error)
        return self._names

    def stored_profile(self) -> Profile | None:
        """The chosen profile; None when there is none, or it is damaged."""
        name = self.profile
        return self._profile(name) if name is not None else None

    def _profile(self, name: str) -> Profile | None:
        if name not in self._stored:
            self._stored[name] = None
            try:
                self._stored[name] = profiles.load(name)
            except QvpnError as error:
                log.warning("%s", error)
                self._damage[name] = error
        return self._stored[name]

    def damage(self) -> QvpnError | None:
        """What is wrong with the chosen profile, which is then not there to be changed."""
        self.stored_profile()
        return self._damage.get(self.profile or "")

    def choose(self, name: str) -> None:
        """Make `name` the chosen profile; a session of another one moves over to it."""
        moving = self._model.wanted and self._model.status.profile != name
        self._model.forget_failure()
        self._remember(profile=name)
        self.profiles_moved()
        if moving:
            self.connect_to(name)

    def recent_policies(self) -> tuple[Policy, ...]:
        """Route policies that were used with the chosen profile, the latest first."""
        return self.memory.recent.get(self.profile or "", ())

    # Commands

    def toggle(self) -> None:
        """Connect the chosen profile, or disconnect; where a kill switch holds, try again."""
        if self._model.wanted:
            self.disconnect_session()
        elif self._model.state is State.BLOCKED:
            self.retry()
        elif self._model.state is State.DISCONNECTING:
            return  # it is about to end
        elif (name := self.profile) is not None:
            self.connect_to(name)

    def connect_to(self, name: str) -> None:
        """Connect a profile, after ending the session of another one."""
        self._remember(profile=name)
        self._start(self._connect(name))

    def disconnect_session(self) -> None:
        """End the session. A kill switch that is meant to outlive it goes on holding."""
        self._start(self._down())

    def release(self) -> None:
        """End the block of a kill switch, and the session that it belongs to."""
        self._start(self._release())

    def retry(self) -> None:
        """Do not wait for the next attempt."""
        self._start(self._retry())

    def sign_in(self) -> None:
        """Let a browser out to the captive portal, and have it opened."""
        self._start(self._sign_in())

    def set_policy(self, policy: Policy) -> None:
        """Store a route policy in the chosen profile; a live session follows at once."""
        name = self.profile
        if name is not None:
            self._start(self._set_policy(name, policy))

    def set_kill_switch(self, mode: KillSwitchMode) -> None:
        """Store the kill switch's mode in the chosen profile; a live session follows at once.

        ``off`` also ends a block that holds without a session.
        """
        name = self.profile
        if name is not None:
            self._start(self._set_kill_switch(name, mode))

    def set_lan(self, reach: bool) -> None:
        """Keep the local network out of the chosen profile's tunnel, or not; at once."""
        profile = self.stored_profile()
        if profile is not None:
            routes, lookups = stored(profile)
            self._start(self.apply_routes(profile.name, with_lan(routes, reach), lookups))

    def set_proxy(self, name: str, options: ProxyOptions) -> None:
        """Store a profile's proxies, or that it has none; what is up of it follows at once."""
        self._start(self._set_proxy(name, options))

    def change_profile(self, change: Callable[[Profile], Profile]) -> None:
        """Store a change of the chosen profile; for the next connection."""
        name = self.profile
        if name is not None:
            self._start(self._change(name, change))

    def profiles_moved(self) -> None:
        """Somebody stored, edited, renamed or removed a profile."""
        self._names = None
        self._stored.clear()
        self._damage.clear()
        self.profiles_changed.emit()

    def keep_for_next_session(self) -> None:
        """The desktop's session ends: remember whether a tunnel was wanted of us."""
        wanted = self._session is not None and self._model.wanted
        resume = self._model.status.profile or "" if wanted else ""
        if resume != self.memory.resume:
            self.memory = msgspec.structs.replace(self.memory, resume=resume)
            settings.save_memory(self.memory)  # at once: there may be no time for another thread

    async def settled(self) -> None:
        """Wait until every command so far is done; a session may go on."""
        while tasks := self._tasks - {self._session}:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """End everything that was started here. The network is as it was when this returns."""
        await self._resting.close()
        for task in tuple(self._tasks):
            if task is not self._session:
                task.cancel()
        if self._session is not None:
            self._session.cancel()
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=_CLOSE)

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._reported(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reported(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except QvpnError as error:
            self.failed.emit(error)

    async def _connect(self, name: str) -> None:
        async with self._turn:
            await self._end()
            self._model.expect(name, self._proxies(name))
            self._session = self._start(self._hold(name))
            self._session.add_done_callback(self._session_over)

    def _session_over(self, _task: asyncio.Task[None]) -> None:
        self._session = None
        self._model.expect(None)

    async def _hold(self, name: str) -> None:
        """Be the agent of a profile until its tunnel is over."""
        try:
            profile = await asyncio.to_thread(profiles.load, name)
            # Half a second to import, so not before it is needed, and not on Qt's thread.
            if profile.proxy.enabled:
                await asyncio.to_thread(import_module, "qvpn_core.client.proxy.session")
                from qvpn_core.client.proxy import session

                await session.run(profile)
            else:
                await asyncio.to_thread(import_module, "qvpn_core.client.agent")
                from qvpn_core.client import agent

                wish = control.Wish.of(await refreshed(profile))
                await agent.run(wish, signals=False, resting=self._resting)
        except QvpnError as error:
            # The same that the agent said with its last status, if it came to be at all.
            self._model.fail(name, error)

    def _proxies(self, name: str) -> tuple[Proxy, ...]:
        profile = self._profile(name)
        if profile is None or not profile.proxy.enabled:
            return ()
        return tuple(
            Proxy.of(each, format_address(each.listen)) for each in profile.proxy.listeners()
        )

    async def _down(self) -> None:
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        """End whatever session there is, and wait until nothing of it is left."""
        answer = await remote.ask(control.DownRequest())
        if (session := self._session) is not None:
            if answer is None:  # it has not begun to listen
                session.cancel()
            await asyncio.wait([session])
        elif answer is not None:
            await asyncio.to_thread(instance.wait_until_gone, _GONE)
        else:
            self._model.forget_failure()

    async def _retry(self) -> None:
        if (name := self.profile) is None:
            return
        if self._model.state is State.BLOCKED:
            # As it is set now, which may be why it is tried again.
            profile = await asyncio.to_thread(profiles.load, name)
            if profile.proxy.enabled:
                await self._connect(name)
                return
            request = control.ConnectRequest(control.Wish.of(await refreshed(profile)))
            answer = await remote.ask(request, timeout=_CONNECT)
        else:
            answer = await remote.ask(control.RetryRequest())
        if answer is None:
            await self._connect(name)  # what holds is what a session left that is over

    async def _sign_in(self) -> None:
        answer = await remote.ask(control.SignInRequest(sign_in.DEFAULT_SECONDS))
        # Without an agent nothing of ours is in a browser's way.
        url = answer.url if isinstance(answer, control.SignInReply) else self._model.status.portal
        if url:
            self.portal_open.emit(url)

    async def _set_kill_switch(self, name: str, mode: KillSwitchMode) -> None:
        status = self._model.status
        if status.profile == name and self._model.wanted and not status.proxies:
            await remote.ask(control.KillSwitchRequest(mode))
        await self._change(name, lambda profile: replace(profile, kill_switch=mode))
        if mode == "off" and status.state is State.BLOCKED:
            await self._release()

    async def _release(self) -> None:
        async with self._turn:
            await self._end()
            if killswitch.holding():
                await asyncio.to_thread(launch.unlock)
        self._model.look()

    async def _set_proxy(self, name: str, options: ProxyOptions) -> None:
        options.listeners()  # raises UsageError
        before = await asyncio.to_thread(profiles.load, name)
        if before.proxy == options:
            return
        await self._change(name, lambda profile: replace(profile, proxy=options))
        one_is_meant = before.proxy.enabled or options.enabled
        if one_is_meant and self._model.wanted and self._model.status.profile == name:
            await self._connect(name)

    async def _set_policy(self, name: str, policy: Policy) -> None:
        parsed = policy.parse()
        await self._use(name, policy)
        await self._change(name, lambda profile: replace(profile, policy=parsed))

    async def _use(self, name: str, policy: Policy) -> None:
        """Have a live session follow a policy, and remember that it was used."""
        if self._model.status.profile == name and self._model.status.mode is not None:
            request = control.RoutesRequest(policy.mode, policy.destinations, policy.excluded)
            await remote.ask(request)
        self.memory = self.memory.used(name, policy)
        self._remember()

    async def apply_routes(self, name: str, routes: RouteList, lookups: Lookups) -> None:
        """Store a profile's list of destinations; a live session of it follows at once.

        Raises QvpnError, and then nothing is stored.
        """
        policy = compile_policy(routes, lookups)
        lines = tuple(entry.line for entry in routes.entries)
        found = stored_lookups(routes, lookups)
        await self._use(name, Policy.of(policy))
        await self._change(
            name,
            lambda profile: replace(profile, policy=policy, route_lines=lines, lookups=found),
        )

    async def _change(self, name: str, change: Callable[[Profile], Profile]) -> None:
        await asyncio.to_thread(profiles.edit, name, change)
        self.profiles_moved()

    def _remember(self, *, profile: str | None = None) -> None:
        if profile is not None:
            self.memory = settings.Memory(profile, self.memory.recent)
        memory = self.memory
        asyncio.get_running_loop().run_in_executor(None, settings.save_memory, memory)
