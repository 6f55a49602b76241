"""Whether somebody else answers for the whole internet: a captive portal (RFC 8952).

Asked only when the gateway does not answer: one plain HTTP request to a well-known address that
gives an empty answer (status 204), outside the tunnel. Any other success means that the network
answered in its place. What a portal says is hostile input: a few bounded lines of it are read, and
an address is shown only if it is an ordinary one. Nobody is signed in here.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from qvpn_core.errors import QvpnError
from qvpn_core.transport.dial import SocketFactory

#: The variable that names another address to ask; empty, nobody is asked.
VARIABLE: Final = "QVPN_PORTAL_CHECK"
DEFAULT_CHECK: Final = "http://connectivitycheck.gstatic.com/generate_204"
#: Seconds for all of it: a portal is near.
TIMEOUT: Final = 5.0
#: Bytes of an answer's head.
_MAX_HEAD: Final = 8192
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?\r\n")
_LOCATION: Final = re.compile(rb"\r\nlocation:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)
#: Printable ASCII that no terminal acts upon, nor a shell except for what separates parameters.
_ORDINARY: Final = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@&+,=%-]{1,256}")
_NETWORK_AUTHENTICATION_REQUIRED: Final = 511  # RFC 6585 section 6

#: Finds the addresses of a host name. Outside the tunnel, when one is in place.
Resolver = Callable[[str], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Portal:
    """Somebody who wants to be signed in to."""

    #: What to open in a browser.
    url: str


async def find_portal(socket_factory: SocketFactory, resolve: Resolver) -> Portal | None:
    """The portal that holds us up, None when there is none or it cannot be told. Never raises."""
    check = os.environ.get(VARIABLE, DEFAULT_CHECK)
    if not check:
        return None
    try:
        async with asyncio.timeout(TIMEOUT):
            return judge(await _fetch_head(check, socket_factory, resolve), check)
    except (OSError, ValueError, TimeoutError, EOFError, QvpnError, asyncio.LimitOverrunError):
        return None


async def _fetch_head(check: str, socket_factory: SocketFactory, resolve: Resolver) -> bytes:
    url = urlsplit(check)
    host = url.hostname or ""
    address = (await resolve(host))[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = await socket_factory(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (address, url.port or 80))
        reader, writer = await asyncio.open_connection(sock=sock, limit=_MAX_HEAD)
    except BaseException:
        sock.close()
        raise
    try:
        path = url.path or "/"
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\n"
            "Connection: close\r\nCache-Control: no-store\r\n\r\n".encode("ascii")
        )
        return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()


def judge(head: bytes, check: str) -> Portal | None:
    """What the head of the answer to a request for `check` says."""
    status = _STATUS.match(head)
    if status is None:
        return None
    code = int(status[1])
    if code == 204 or not (200 <= code < 400 or code == _NETWORK_AUTHENTICATION_REQUIRED):
        return None
    location = _LOCATION.search(head)
    if location is not None:
        url = location[1].decode("ascii", "replace")
        if url.startswith("/"):
            here = urlsplit(check)
            url = f"{here.scheme}://{here.netloc}{url}"
        if _ORDINARY.fullmatch(url):
            return Portal(url)
    return Portal(check)  # opening that leads to the portal as it led us
