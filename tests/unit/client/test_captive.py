"""Captive portals are told from an open network, whatever they answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.client import captive
from qvpn_core.client.captive import DEFAULT_CHECK, Portal, find_portal, judge
from qvpn_core.transport.dial import open_socket

CHECK = "http://check.example/generate_204"


def head(status: str, *fields: str) -> bytes:
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode()


@pytest.mark.parametrize(
    "answer",
    [
        head("204 No Content"),
        head("204"),
        head("404 Not Found"),
        head("503 Busy"),
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"",
    ],
)
def test_no_portal(answer: bytes) -> None:
    assert judge(answer, CHECK) is None


@pytest.mark.parametrize(
    ("answer", "url"),
    [
        (head("302 Found", "Location: https://wifi.hotel/login?x=1"), "https://wifi.hotel/login?x=1"),
        (head("307 T", "a: b", "LOCATION:http://10.0.0.1:8080/"), "http://10.0.0.1:8080/"),
        (head("302 Found", "location: /login"), "http://check.example/login"),
        (head("200 OK", "content-type: text/html"), CHECK),
        (head("511 Network Authentication Required"), CHECK),
        # What no browser should be sent to, and no terminal shown.
        (head("302 Found", "Location: javascript:alert(1)"), CHECK),
        (head("302 Found", "Location: file:///etc/passwd"), CHECK),
        (head("302 Found", "Location: http://x/\x1b[2J"), CHECK),
        (head("302 Found", "Location: http://x/" + "a" * 300), CHECK),
        (head("302 Found", "Location: http://x/$(reboot)`"), CHECK),
        (head("302 Found"), CHECK),
    ],
)  # fmt: skip
def test_a_portal_and_what_to_open(answer: bytes, url: str) -> None:
    assert judge(answer, CHECK) == Portal(url)


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_hostile_answers_show_nothing_strange(status: bytes, location: bytes) -> None:
    found = judge(b"HTTP/1.1 302 " + status + b"\r\nLocation: " + location + b"\r\n\r\n", CHECK)
    if found is not None:
        assert found.url.isascii()
        assert found.url.isprintable()
        assert " " not in found.url


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ask(monkeypatch: pytest.MonkeyPatch, answer: Answer, *, check: str = "") -> Portal | None:
    """What `find_portal` finds when `answer` is at the other end."""

    answering: list[asyncio.Task[None]] = []

    async def answer_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        answering.append(task)
        try:
            await answer(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def main() -> Portal | None:
        server = await asyncio.start_server(answer_and_close, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        monkeypatch.setenv(captive.VARIABLE, check or f"http://check.example:{port}/generate_204")
        async with server:
            found = await find_portal(open_socket, resolve)
            await asyncio.gather(*answering)
            return found

    async def resolve(host: str) -> Sequence[str]:
        assert host == "check.example"
        return ["127.0.0.1"]

    return asyncio.run(main())


def test_it_asks_one_plain_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(head("302 Found", "Location: http://portal.example/"))
        with suppress(ConnectionError):
            await reader.read()

    assert ask(monkeypatch, answer) == Portal("http://portal.example/")
    assert asked[0].startswith(b"GET /generate_204 HTTP/1.1\r\nHost: check.example:")
    assert b"qvpn" not in asked[0].lower(), "who asks is nobody's business"


def test_silence_and_floods_are_no_portal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captive, "TIMEOUT", 0.3)

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()

    async def endless(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"HTTP/1.1 200 OK " * 4096)
                await writer.drain()

    async def rude(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    for answer in (silent, endless, rude):
        assert ask(monkeypatch, answer) is None


@pytest.mark.parametrize(
    "check",
    ["http://", "no address at all", "http://127.0.0.1:0/", "http://[::1", "http://x:99999"],
)
def test_a_check_that_cannot_be_made_finds_nothing(
    monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    async def resolve(_host: str) -> Sequence[str]:
        raise socket.gaierror

    monkeypatch.setenv(captive.VARIABLE, check)
    assert asyncio.run(find_portal(open_socket, resolve)) is None


def test_who_wants_no_check_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_socket(_family: int, _kind: int) -> socket.socket:
        raise AssertionError("asked")

    async def nobody(_host: str) -> Sequence[str]:
        raise AssertionError("asked")

    monkeypatch.setenv(captive.VARIABLE, "")
    assert asyncio.run(find_portal(no_socket, nobody)) is None


def test_the_usual_check_is_a_plain_one() -> None:
    """A portal can answer in the place of http only."""
    assert DEFAULT_CHECK.startswith("http://")
