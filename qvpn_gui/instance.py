"""One app per user: the first start serves, a further start hands over what it was asked and ends.

A lock that dies with its holder, and a socket beside it, in the runtime directory. It needs neither
Qt nor a session bus, so that a second start is over before anybody waits for it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec

from qvpn_core.client import paths
from qvpn_core.errors import QvpnError

_MAX_LINE = 4096  # bytes
_PATIENCE = 5.0  # seconds that the running app gets to hear us
#: Left by a launcher so that the window it asked for may come to the front.
_TOKENS = ("XDG_ACTIVATION_TOKEN", "DESKTOP_STARTUP_ID")


class AppSilent(QvpnError):
    """An app runs but does not answer."""

    reason = "app-silent"


class Start(msgspec.Struct, frozen=True):
    """What a start of the app was asked for."""

    #: Connect this profile.
    connect: str | None = None
    #: Stay in the background.
    minimized: bool = False
    #: By which the compositor knows that the user asked for the window.
    token: str = ""


_starts = msgspec.json.Decoder(Start)


def activation_token() -> str:
    """The launcher's token, taken out of the environment so that our children do not use it."""
    found = [os.environ.pop(name, "") for name in _TOKENS]
    return next(filter(None, found), "")


@contextmanager
def single() -> Iterator[bool]:
    """Whether we are the only app of this user; then we are until the block ends."""
    path = paths.runtime_dir() / "app.lock"
    try:
        paths.make_private(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QvpnError(
            f"{path} cannot be written ({error.strerror})", "set QVPN_RUNTIME_DIR"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def hand_over(start: Start) -> None:
    """Tell the running app what we were asked for. Raises AppSilent."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(_PATIENCE)
                sock.connect(str(_socket()))
                sock.sendall(msgspec.json.encode(start) + b"\n")
                if sock.recv(1):
                    return
        except OSError:
            pass  # it may be starting, or ending
        if time.monotonic() > deadline:
            raise AppSilent("qvpn runs already but does not answer", "end that process")
        time.sleep(0.05)


@asynccontextmanager
async def serve(on_start: Callable[[Start], None]) -> AsyncIterator[None]:
    """Hear of further starts while the block runs. The caller is the only app."""

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, msgspec.MsgspecError):
            async with asyncio.timeout(_PATIENCE):
                start = _starts.decode(await reader.readline())
                writer.write(b"+")
                on_start(start)
        writer.close()

    path = _socket()
    path.unlink(missing_ok=True)
    mask = os.umask(0o177)
    try:
        server = await asyncio.start_unix_server(hear, path, limit=_MAX_LINE)
    finally:
        os.umask(mask)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _socket() -> Path:
    return paths.runtime_dir() / "app.sock"
