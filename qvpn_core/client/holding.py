"""The agent around a session: the lock, the control socket, the note of how it failed.

The same for a tunnel and for proxies. It knows nothing of what the session does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

from qvpn_core.client import control, instance
from qvpn_core.client.profiles import Profile
from qvpn_core.client.status import Status
from qvpn_core.errors import QvpnError, UsageError


class Held(Protocol):
    """A session, as its agent sees it."""

    @property
    def profile(self) -> Profile:
        """Whose session it is."""

    async def run(self) -> None:
        """Live until `disconnect`. Raises the QvpnError with which it failed."""

    def disconnect(self) -> None:
        """End; `run` returns when nothing is left. Idempotent."""

    def status(self) -> Status:
        """What it does now."""

    def watch(self) -> AsyncGenerator[Status, None]:
        """The status now and after every change, until `run` is over."""


async def hold(
    session: Held, answer: Callable[[control.Concern], Awaitable[control.Reply]]
) -> None:
    """Run a session and answer for it; `answer` is asked what is about more than status and end.

    Raises the QvpnError with which the session failed, and UsageError when another agent runs.
    """
    over = asyncio.Event()

    async def reply(request: control.Question) -> control.Reply:
        match request:
            case control.StatusRequest():
                return control.StatusReply(session.status())
            case control.DownRequest(profile=profile):
                name = session.profile.name
                if profile is not None and profile != name:
                    raise UsageError(
                        f"profile {profile!r} is not up, {name!r} is", f"qvpn down {name}"
                    )
                session.disconnect()
                await over.wait()
                return control.Done()
        return await answer(request)

    with instance.single_instance():
        instance.forget_failure()
        async with control.serve(reply, session.watch):
            try:
                await session.run()
            except QvpnError:
                instance.keep_failure(session.status())
                raise
            finally:
                over.set()
