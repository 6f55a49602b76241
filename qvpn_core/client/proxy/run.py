"""Proxies and forwards from connecting to their end; `run` is the whole of a program in foreground.

It prints nothing, but says where it listens to the function that it is given.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from qvpn_core.client.profiles import Profile
from qvpn_core.client.proxy import local
from qvpn_core.client.proxy.link import GatewayLink
from qvpn_core.client.proxy.options import Listener
from qvpn_core.client.status import Proxy
from qvpn_core.errors import QvpnError

#: Is told where it listens, with the real ports.
Say = Callable[[tuple[Proxy, ...]], None]


def run(profile: Profile, wanted: Sequence[Listener], say: Say) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. Raises QvpnError when it cannot start or go on.

    `say` is called once it is connected.
    """
    raise_descriptor_limit()
    # Sockets of our own need a loop that watches descriptors, which Windows' default one cannot.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_until_interrupted(profile, wanted, say))


async def _until_interrupted(profile: Profile, wanted: Sequence[Listener], say: Say) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Elsewhere Ctrl-C cancels us, which ends things as well.
        with suppress(NotImplementedError, AttributeError):
            loop.add_signal_handler(getattr(signal, name), stopped.set)
    bound: list[tuple[Proxy, ...]] = []

    def changed(error: QvpnError | None) -> None:
        if error is None and bound:
            say(bound.pop())

    await until(stopped, serve(GatewayLink(profile, on_change=changed), wanted, bound.append))


async def until(stopped: asyncio.Event, work: Coroutine[None, None, None]) -> None:
    """Do `work` until it is over or `stopped`; raises what it raises. Nothing of it is left."""
    task = asyncio.create_task(work)
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
        await asyncio.wait((task, waiting))
    if not task.cancelled():
        task.result()


async def serve(link: GatewayLink, wanted: Sequence[Listener], bound: Say) -> None:
    """Listen, connect, and serve until cancelled; `bound` is called before it is connected.

    Raises QvpnError when it cannot start or go on.
    """
    listeners = local.Listeners()
    try:
        # Bound first: what is wrong with an address needs no gateway to be found out.
        bound(tuple(Proxy.of(each, listeners.bind(local.service(link, each))) for each in wanted))
        await link.connect()
        async with asyncio.TaskGroup() as group:
            group.create_task(link.run())
            group.create_task(listeners.serve_all())
    except* QvpnError as errors:
        raise _first(errors) from None
    finally:
        listeners.close()
        link.close()


def _first(group: BaseExceptionGroup[QvpnError]) -> QvpnError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, QvpnError)
    return error


def raise_descriptor_limit() -> None:
    """Each program's connection is a socket; the soft limit is often 256 or 1024."""
    if sys.platform == "win32":
        return
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS has an infinite hard limit that it does not grant.
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(_soft, wanted), hard))


def log_to_stderr() -> None:
    """The log of a program in the foreground."""
    logging.basicConfig(stream=sys.stderr, format="qvpn: %(message)s")
    logging.getLogger("qvpn").setLevel(logging.INFO)
