"""Finding the gateway's name past the kill switch, against name servers on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from qvpn_core.client import resolve as module
from qvpn_core.client.resolve import resolve, system_servers
from qvpn_core.errors import GatewayUnreachable, NameNotResolved, PermissionMissing
from qvpn_core.transport.dial import open_socket

T = TypeVar("T")
NAME = "vpn.example.org"
V4, V6 = "192.0.2.7", "2001:db8::7"
#: What a server sends for one question, datagram by datagram.
Behaviour = Callable[[dns.message.Message], list[bytes]]


class System:
    """The machine's own resolver, which knows what a test says."""

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}
        self.hangs = 0.0
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: str, port: int | None, *rest: Any, **options: Any) -> Any:
        if host[:1].isdigit() or ":" in host:
            return self._real(host, port, *rest, **options)
        time.sleep(self.hangs)
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_AGAIN, "refused")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (self.hosts[host], 0))]


@pytest.fixture(autouse=True)
def system(monkeypatch: pytest.MonkeyPatch) -> System:
    system = System()
    monkeypatch.setattr(socket, "getaddrinfo", system.getaddrinfo)
    monkeypatch.setattr(module, "_PATIENCE", 5.0)
    return system


class Server(asyncio.DatagramProtocol):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self.asked.append(dns.rdatatype.to_text(query.question[0].rdtype))
        for datagram in self.behaviour(query):
            self.transport.sendto(datagram, address)


def run(
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Behaviour,
    story: Callable[[Server], Coroutine[Any, Any, T]],
) -> T:
    async def main() -> T:
        loop = asyncio.get_running_loop()
        transport, server = await loop.create_datagram_endpoint(
            lambda: Server(behaviour), local_addr=("127.0.0.1", 0)
        )
        monkeypatch.setattr(module, "_PORT", transport.get_extra_info("sockname")[1])
        try:
            return await story(server)
        finally:
            transport.close()

    return asyncio.run(main())


def answer(query: dns.message.Message, *records: str) -> dns.message.Message:
    reply = dns.message.make_response(query)
    (question,) = query.question
    for record in records or ((V4,) if question.rdtype == dns.rdatatype.A else (V6,)):
        reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", question.rdtype, record))
    return reply


def well(query: dns.message.Message) -> list[bytes]:
    return [answer(query).to_wire()]


async def ask(_server: Server) -> tuple[str, ...]:
    return await resolve(NAME, open_socket, ["127.0.0.1"])


def test_both_kinds_of_addresses_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, well, ask) == (V6, V4)


def test_an_address_needs_no_server() -> None:
    assert asyncio.run(resolve("::1", open_socket, [])) == ("::1",)


def test_what_the_machine_knows_by_itself_goes_first(
    monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    system.hosts[NAME] = "198.51.100.1"
    assert run(monkeypatch, well, ask) == ("198.51.100.1",)


def test_a_resolver_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    system.hosts[NAME] = "198.51.100.1"
    system.hangs = 6.0

    async def story(server: Server) -> tuple[str, ...]:
        begin = time.monotonic()
        found = await ask(server)
        assert time.monotonic() - begin < 5
        return found

    assert run(monkeypatch, well, story) == (V6, V4)


def forged(query: dns.message.Message) -> list[bytes]:
    """Everything that is no answer to the question, then the answer."""
    other_id = answer(query, "203.0.113.66" if is_a(query) else "2001:db8::66")
    other_id.id ^= 1
    other_name = answer(
        dns.message.make_query("evil.example.org", query.question[0].rdtype, id=query.id),
    )
    no_response = answer(query)
    no_response.flags &= ~dns.flags.QR
    junk = [b"", b"\0", os.urandom(40), query.to_wire()[:13], b"\xff" * 512]
    wrong = [message.to_wire() for message in (other_id, other_name, no_response)]
    return [*junk, *wrong, *well(query)]


def is_a(query: dns.message.Message) -> bool:
    return query.question[0].rdtype == dns.rdatatype.A


def test_what_is_no_answer_to_the_question_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, forged, ask) == (V6, V4)


def test_aliases_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    def alias(query: dns.message.Message) -> list[bytes]:
        reply = dns.message.make_response(query)
        name, kind = query.question[0].name, query.question[0].rdtype
        reply.answer.append(dns.rrset.from_text(name, 60, "IN", "CNAME", "real.example.org."))
        address = V4 if is_a(query) else V6
        reply.answer.append(dns.rrset.from_text("real.example.org.", 60, "IN", kind, address))
        return [reply.to_wire()]

    assert run(monkeypatch, alias, ask) == (V6, V4)


def test_a_name_with_one_kind_of_address_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_a(query: dns.message.Message) -> list[bytes]:
        return well(query) if is_a(query) else [dns.message.make_response(query).to_wire()]

    assert run(monkeypatch, only_a, ask) == (V4,)


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def many(query: dns.message.Message) -> list[bytes]:
        if not is_a(query):
            return [dns.message.make_response(query).to_wire()]
        reply = dns.message.make_response(query)
        addresses = [f"10.0.{number}.1" for number in range(200)]
        reply.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *addresses))
        return [reply.to_wire(max_size=65535)]

    assert len(run(monkeypatch, many, ask)) == 8


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_server_that_fails_makes_room_for_the_next(
    monkeypatch: pytest.MonkeyPatch, rcode: dns.rcode.Rcode
) -> None:
    asked = 0

    def fails_at_first(query: dns.message.Message) -> list[bytes]:
        nonlocal asked
        asked += 1
        if asked > 2:
            return well(query)
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        return [reply.to_wire()]

    assert run(monkeypatch, fails_at_first, ask) == (V6, V4)


def test_a_name_that_does_not_exist_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(query: dns.message.Message) -> list[bytes]:
        reply = dns.message.make_response(query)
        reply.set_rcode(dns.rcode.NXDOMAIN)
        return [reply.to_wire()]

    async def story(server: Server) -> None:
        with pytest.raises(NameNotResolved):
            await ask(server)
        assert sorted(server.asked) == ["A", "AAAA"]

    run(monkeypatch, unknown, story)


def test_silence_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.3)

    async def story(server: Server) -> None:
        with pytest.raises(NameNotResolved):
            await ask(server)
        assert len(server.asked) == 4

    run(monkeypatch, lambda query: [], story)


def test_without_a_name_server_it_says_so() -> None:
    with pytest.raises(NameNotResolved):
        asyncio.run(resolve(NAME, open_socket, []))


def test_a_missing_address_family_is_no_answer_and_missing_rights_are_an_error() -> None:
    def refusing(error: Exception) -> Callable[[int, int], Coroutine[Any, Any, socket.socket]]:
        async def factory(_family: int, _kind: int) -> socket.socket:
            raise error

        return factory

    with pytest.raises(NameNotResolved):
        asyncio.run(resolve(NAME, refusing(GatewayUnreachable("no IPv6")), ["::1"]))
    with pytest.raises(PermissionMissing):
        asyncio.run(resolve(NAME, refusing(PermissionMissing("no")), ["::1"]))


def test_the_system_s_servers_are_those_beyond_this_machine(tmp_path: Path) -> None:
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    stub.write_text("# stub\nnameserver 127.0.0.53\nsearch example.org\n")
    upstream.write_text(
        "nameserver 192.0.2.1\nnameserver\nnameserver nonsense\n  nameserver fe80::1%eth0\n"
        + "nameserver 192.0.2.2\n" * 9
    )
    assert system_servers((tmp_path / "none", stub, upstream)) == (
        "192.0.2.1", "fe80::1%eth0", "192.0.2.2", "192.0.2.2",
    )  # fmt: skip
    assert system_servers((stub,)) == ()
    upstream.write_bytes(os.urandom(1 << 18))
    assert system_servers((upstream,)) == ()
