"""The system's resolver without waiting for it: whoever stops asking is free at once.

`loop.getaddrinfo` runs on the loop's own threads, and a loop that ends waits for these: with name
servers that do not answer, a program that was told to end would stay for ten seconds and more.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

from qvpn_core.errors import NameNotResolved

#: Family, type, protocol, canonical name, and what `socket.connect` takes.
AddressInfo = tuple[int, int, int, str, Any]


async def look_up(host: str, port: int | None, kind: socket.SocketKind) -> list[AddressInfo]:
    """As `socket.getaddrinfo`. Raises NameNotResolved."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[AddressInfo]] = loop.create_future()

    def tell(result: list[Any] | Exception) -> None:
        if found.done():
            return
        if isinstance(result, Exception):
            found.set_exception(result)
        else:
            found.set_result(result)

    def ask() -> None:
        result: list[Any] | Exception
        try:
            result = socket.getaddrinfo(host, port, type=kind)
        except Exception as error:
            result = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result)

    threading.Thread(target=ask, name="qvpn resolver", daemon=True).start()
    try:
        return await found
    except (OSError, ValueError) as error:
        raise NameNotResolved(
            f"cannot find the address of {host}", "check the name and this machine's DNS"
        ) from error
