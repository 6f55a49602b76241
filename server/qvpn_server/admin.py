"""The admin socket: how the command line talks to a running gateway.

A UNIX stream socket in the state directory, one JSON line each way. The modes of directory and
socket keep others out; SO_PEERCRED is checked besides: only root and the owner of the state
directory are answered. A peer gets a few seconds and a bounded line.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import msgspec

from qvpn_core.errors import QvpnError, UsageError
from qvpn_server.admin_protocol import Failure, Reply, Request
from qvpn_server.statedir import StateDir

MAX_LINE = 1 << 16  # bytes of a request; a group has 100 prefixes of each kind at most
MAX_REPLY = 16 << 20  # bytes; a status of 1024 sessions is below 1 MiB
TIMEOUT = 5.0  # seconds for either side
_BACKLOG = 8
_CREDENTIALS = struct.Struct("iII")  # struct ucred of <linux/socket.h>: pid, uid, gid

_requests = msgspec.json.Decoder(Request)
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


@asynccontextmanager
async def serve_admin(
    state: StateDir, answer: Callable[[Request, int], Reply]
) -> AsyncIterator[None]:
    """Answer admin requests while inside. The caller holds the state directory's lock.

    `answer` is given the request and the user ID of who makes it.
    """
    owner = state.path.stat().st_uid

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            uid = _peer_uid(writer)
            if uid in (0, owner):
                with suppress(TimeoutError, ConnectionError, ValueError):
                    async with asyncio.timeout(TIMEOUT):
                        line = await reader.readline()
                        if line:
                            writer.write(msgspec.json.encode(_reply(line, uid, answer)) + b"\n")
                            await writer.drain()
        finally:
            writer.close()

    with state.admin_address() as address:
        with suppress(FileNotFoundError):
            os.unlink(address)  # of a gateway that was killed; we hold the lock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            sock.bind(address)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(mask)
        server = await asyncio.start_unix_server(
            handle, sock=sock, limit=MAX_LINE, backlog=_BACKLOG
        )
        try:
            yield
        finally:
            server.close()
            with suppress(FileNotFoundError):
                os.unlink(address)


def ask(state: StateDir, request: Request) -> Reply | None:
    """Send one request to the gateway that runs on `state`; None if none runs.

    Raises QvpnError for a refusal and for a gateway that does not answer.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    try:
        with sock, state.admin_address() as address:
            try:
                sock.connect(address)
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            sock.sendall(msgspec.json.encode(request) + b"\n")
            with sock.makefile("rb") as lines:
                reply = _replies.decode(lines.readline(MAX_REPLY))
    except (OSError, msgspec.DecodeError) as error:
        raise QvpnError(
            f"the gateway on {state.path} does not answer: {error}",
            "run this as root or as the owner of the state directory",
        ) from None
    if isinstance(reply, Failure):
        raise (UsageError if reply.usage else QvpnError)(reply.what, reply.hint)
    return reply


def _reply(line: bytes, uid: int, answer: Callable[[Request, int], Reply]) -> Reply:
    try:
        return answer(_requests.decode(line), uid)
    except msgspec.DecodeError as error:
        return Failure(f"not an admin request: {error}", "use the qvpn-server of the same version")
    except QvpnError as error:
        return Failure(error.what, error.hint, isinstance(error, UsageError))


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return int(uid)
