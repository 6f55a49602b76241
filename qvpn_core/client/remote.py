"""The control socket from an event loop: ask the running agent, follow what it does.

What the app is built on; `control.ask` is the same for callers without a loop. It starts no agent
and knows none of the messages' meanings.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from qvpn_core.client import control
from qvpn_core.client.status import Status
from qvpn_core.errors import PermissionMissing

#: A status with as many routes as a plan may have, and room for more.
_MAX_LINE = 1 << 20  # bytes
#: Statuses come every second; an agent that says nothing for so long is stuck.
_SILENCE = 30.0  # seconds


async def ask(request: control.Question, *, timeout: float = 15.0) -> control.Reply | None:
    """Ask the running agent; None when none runs. Waits up to `timeout` seconds.

    Raises RefusedByAgent with the agent's words, AgentSilent, and PermissionMissing.
    """
    try:
        async with asyncio.timeout(timeout), _connection() as (reader, writer):
            writer.write(control.encode(request))
            line = await reader.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, ConnectionError) and control.has_ended():
            return None
        raise control.silent(error) from None
    if not line and control.has_ended():
        return None
    return control.understand(line)


async def follow() -> AsyncGenerator[Status, None]:
    """The running agent's status: now, after every change, every second, and its last.

    Ends at once when none runs, and when the agent ends. Raises AgentSilent, PermissionMissing.
    """
    try:
        async with _connection() as (reader, writer):
            writer.write(control.encode(control.SubscribeRequest()))
            while line := await _line(reader):
                reply = control.understand(line)
                if isinstance(reply, control.StatusReply):
                    yield reply.status
    except (FileNotFoundError, ConnectionError):
        return  # there is none, or it died
    except (OSError, ValueError) as error:
        raise control.silent(error) from None


async def _line(reader: asyncio.StreamReader) -> bytes:
    # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with the line.
    async with asyncio.timeout(_SILENCE):
        return await reader.readline()


@asynccontextmanager
async def _connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    path = control.usable_socket_path()
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=_MAX_LINE)
    except PermissionError:
        raise PermissionMissing(f"{path} belongs to another user", "use sudo") from None
    try:
        yield reader, writer
    finally:
        writer.close()
