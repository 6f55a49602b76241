"""`qvpn proxy` and `qvpn forward` as one program in the foreground: connect, listen, until the end.

It prints nothing but where it listens, by the function it is given.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from qvpn_core.client.profiles import Profile
from qvpn_core.client.proxy.link import GatewayLink
from qvpn_core.client.proxy.local import Listeners, Serve, Service
from qvpn_core.errors import QvpnError
from qvpn_core.transport.interface import Address

#: What to listen for: words for a person, an address, and how to serve once there is a link.
Wanted = tuple[str, Address, Callable[[GatewayLink], Serve]]


def run(profile: Profile, wanted: Sequence[Wanted], say: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. Raises QvpnError when it cannot start or go on."""
    _raise_descriptor_limit()
    # Sockets of our own need a loop that watches descriptors, which Windows' default one cannot.
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_until_interrupted(profile, wanted, say))


async def _until_interrupted(
    profile: Profile, wanted: Sequence[Wanted], say: Callable[[str], None]
) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        # Elsewhere Ctrl-C cancels us, which ends things as well.
        with suppress(NotImplementedError, AttributeError):
            loop.add_signal_handler(getattr(signal, name), stopped.set)
    work = asyncio.create_task(_serve(profile, wanted, say))
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait((work, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not work.done():
            work.cancel()
        await asyncio.wait((work, waiting))
    if not work.cancelled():
        work.result()


async def _serve(profile: Profile, wanted: Sequence[Wanted], say: Callable[[str], None]) -> None:
    link = GatewayLink(profile)
    listeners = Listeners()
    try:
        # Bound first: what is wrong with an address needs no gateway to be found out.
        bound = [
            (words, listeners.bind(Service(address, make(link)))) for words, address, make in wanted
        ]
        await link.connect()
        for words, address in bound:
            say(f"{words} at {address}")
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


def _raise_descriptor_limit() -> None:
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
