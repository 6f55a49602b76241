"""The system's resolver, without waiting for it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from qvpn_core.errors import NameNotResolved
from qvpn_core.transport.resolver import look_up


def test_an_address_is_its_own() -> None:
    (entry,) = asyncio.run(look_up("192.0.2.7", 443, socket.SOCK_DGRAM))
    assert entry[4] == ("192.0.2.7", 443)


@pytest.mark.parametrize("host", ["a" * 300, "no\0name", "x..y", "999.1.1.1.invalid"])
def test_what_is_no_name_is_not_found(host: str) -> None:
    async def story() -> None:
        with pytest.raises(NameNotResolved):
            await look_up(host, 443, socket.SOCK_DGRAM)

    asyncio.run(story())


def test_who_stops_asking_is_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the whole program: its loop does not wait for an answer that may never come."""
    answer, asked = threading.Event(), threading.Event()

    def slow(*_arguments: object, **_options: object) -> list[object]:
        asked.set()
        answer.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    async def story() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await look_up("slow.example", 443, socket.SOCK_DGRAM)

    begun = time.monotonic()
    try:
        asyncio.run(story())
        assert asked.is_set()
        assert time.monotonic() - begun < 10
    finally:
        answer.set()
