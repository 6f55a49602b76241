"""Connecting to services: several addresses, names, and words for failures."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_server import dialing
from qvpn_server.dialing import (
    Resolver,
    ServiceUnavailable,
    connect_tcp,
    connect_udp,
    interleave,
    unavailable,
)
from tests.unit.transport.helpers import in_loop

PATIENCE = 15.0


@given(st.lists(st.ip_addresses(), min_size=1, max_size=12, unique=True))
def test_families_take_turns_and_none_is_lost(addresses: list[object]) -> None:
    given_ = [ip_address(str(address)) for address in addresses]
    mixed = interleave(given_)
    assert sorted(map(str, mixed)) == sorted(map(str, given_))
    assert mixed[0] == given_[0]
    for version in (4, 6):
        of_one = [address for address in mixed if address.version == version]
        assert of_one == [address for address in given_ if address.version == version]


@in_loop
async def test_the_first_address_that_accepts_wins() -> None:
    with socket.create_server(("127.0.0.3", 0)) as server:
        port = server.getsockname()[1]
        addresses = [ip_address(f"127.0.0.{number}") for number in (1, 2, 3)]
        async with asyncio.timeout(PATIENCE):
            with await connect_tcp(addresses, port) as sock:
                assert sock.getpeername() == ("127.0.0.3", port)
                assert not sock.getblocking()


@in_loop
async def test_an_address_that_does_not_answer_delays_the_next_but_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt = dialing._attempt

    async def hang(address: dialing.IPAddress, port: int) -> socket.socket:
        if str(address) == "127.0.0.1":
            await asyncio.Event().wait()
        return await attempt(address, port)

    monkeypatch.setattr(dialing, "_attempt", hang)
    with socket.create_server(("127.0.0.2", 0)) as server:
        addresses = [ip_address("127.0.0.1"), ip_address("127.0.0.2")]
        async with asyncio.timeout(PATIENCE):
            with await connect_tcp(addresses, server.getsockname()[1]) as sock:
                assert sock.getpeername()[0] == "127.0.0.2"


@in_loop
async def test_the_first_failure_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await connect_tcp([ip_address("127.0.0.1"), ip_address("127.0.0.2")], port)


def test_udp_takes_the_first_address_that_there_is_a_route_to() -> None:
    with connect_udp([ip_address("127.0.0.1")], 9) as sock:
        assert sock.getpeername() == ("127.0.0.1", 9)
    with pytest.raises(PermissionError):
        connect_udp([ip_address("255.255.255.255")], 9)


@pytest.mark.parametrize(
    ("number", "status", "error"),
    [
        (errno.ECONNREFUSED, 502, "connection_refused"),
        (errno.ETIMEDOUT, 504, "connection_timeout"),
        (errno.ENETUNREACH, 502, "destination_ip_unroutable"),
        (errno.EHOSTUNREACH, 502, "destination_unavailable"),
        (errno.EMFILE, 503, "connection_limit_reached"),
        (errno.EIO, 502, "proxy_internal_error"),
    ],
)
def test_errors_of_the_kernel_in_words_of_http(number: int, status: int, error: str) -> None:
    reason = unavailable(OSError(number, "x"))
    assert (reason.status, reason.error) == (status, error)


@in_loop
async def test_names_are_looked_up_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(20)

    def lookup(name: str) -> list[dialing.IPAddress] | ServiceUnavailable:
        together.wait(PATIENCE)
        if name == "none":
            return ServiceUnavailable(502, "dns_error", "x")
        return [ip_address("192.0.2.1")]

    monkeypatch.setattr(dialing, "_lookup", lookup)
    resolver = Resolver()
    names = ["none", *(f"host-{number}" for number in range(19))]
    async with asyncio.timeout(PATIENCE):
        found = await asyncio.gather(*map(resolver.lookup, names), return_exceptions=True)
    assert isinstance(found[0], ServiceUnavailable)
    assert found[1:] == [[ip_address("192.0.2.1")]] * 19


@in_loop
async def test_a_lookup_that_hangs_can_be_given_up_and_still_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()

    def lookup(_name: str) -> list[dialing.IPAddress]:
        release.wait(PATIENCE)
        return [ip_address("192.0.2.1")]

    monkeypatch.setattr(dialing, "_lookup", lookup)
    monkeypatch.setattr(dialing, "MAX_LOOKUPS", 1)
    resolver = Resolver()
    begin = time.monotonic()
    for _ in range(2):  # the second waits for the thread of the first
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await resolver.lookup("slow")
    assert time.monotonic() - begin < PATIENCE / 2
    release.set()
    async with asyncio.timeout(PATIENCE):
        assert await resolver.lookup("slow") == [ip_address("192.0.2.1")]
