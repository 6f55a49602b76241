"""Ordinary requests beside tunnels, the exporter, tickets, and what strangers may cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qvpn_core.auth.exporter import Exporter
from qvpn_core.errors import ProtocolViolation
from qvpn_core.transport import http3, settings
from qvpn_core.transport.http3 import Http3Tunnel, Response
from qvpn_core.transport.interface import Address, HttpTunnel, IncomingRequest, Request
from qvpn_core.transport.reach import connect, fetch
from qvpn_core.transport.tickets import CAPACITY, TicketStore, unpack_ticket
from qvpn_core.transport.trust import Trust, announced_pins, format_pins
from tests.unit.transport.helpers import (
    CONNECT_IP,
    AcceptingServer,
    Identity,
    RecordingHandler,
    in_loop,
    make_identity,
)
from tests.unit.transport.peers import dial, gateway

LABEL, CONTEXT = b"EXPORTER-test", b"context"


@pytest.fixture
def pinned(identity: Identity) -> Trust:
    return Trust(pins=(identity.pin,))


def post(path: str = "/echo", *headers: tuple[str, str]) -> Request:
    return Request("POST", "https", "localhost", path, None, headers)


async def ask(
    address: Address,
    trust: Trust,
    body: bytes,
    limit: int = 1 << 20,
    exporters: list[Exporter] | None = None,
) -> Response:
    def make(exporter: Exporter) -> tuple[Request, bytes]:
        if exporters is not None:
            exporters.append(exporter)
        return post(), body

    return await fetch(address[0], address[1], trust=trust, make=make, limit=limit)


def echo(limit: int) -> Callable[[IncomingRequest], None]:
    def answer(incoming: IncomingRequest) -> None:
        incoming.read_body(
            limit,
            lambda body: incoming.respond(
                200 if body is not None else 413, (("x-kind", "echo"),), body or b""
            ),
        )

    return answer


@pytest.mark.parametrize("size", [0, 1, 1200, 200_000])
@in_loop
async def test_content_goes_there_and_back(identity: Identity, pinned: Trust, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with gateway(identity, echo(1 << 20)) as listener:
        response = await ask(listener.addresses[0], pinned, body)
        assert response == Response(200, (("x-kind", "echo"),), body)


@in_loop
async def test_content_beyond_the_limit_is_not_gathered(identity: Identity, pinned: Trust) -> None:
    async with gateway(identity, echo(1000)) as listener:
        assert (await ask(listener.addresses[0], pinned, b"x" * 1000)).status == 200
        assert (await ask(listener.addresses[0], pinned, b"x" * 1001)).status == 413


@in_loop
async def test_an_answer_beyond_the_limit_is_refused(identity: Identity, pinned: Trust) -> None:
    async with gateway(identity, echo(1 << 20)) as listener:
        with pytest.raises(ProtocolViolation):
            await ask(listener.addresses[0], pinned, b"x" * 1001, limit=1000)


@in_loop
async def test_both_ends_of_a_request_export_the_same_and_of_another_not(
    identity: Identity, pinned: Trust
) -> None:
    at_gateway: list[bytes] = []

    def answer(incoming: IncomingRequest) -> None:
        at_gateway.append(incoming.export_keying_material(LABEL, CONTEXT, 48))
        incoming.respond(204)

    async with gateway(identity, answer) as listener:
        exporters: list[Exporter] = []
        for _ in range(2):
            await ask(listener.addresses[0], pinned, b"", exporters=exporters)
        at_client = [exporter(LABEL, CONTEXT, 48) for exporter in exporters]
        assert at_client == at_gateway
        assert at_client[0] != at_client[1]


@in_loop
async def test_a_request_for_a_tunnel_can_be_made_from_the_exporter(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()

    def make(exporter: Exporter) -> Request:
        proof = exporter(LABEL, CONTEXT, 32).hex()
        return Request(
            "CONNECT", "https", "localhost", CONNECT_IP.path, "connect-ip", (("proof", proof),)
        )

    async with gateway(identity, server) as listener:
        host, port = listener.addresses[0]
        tunnel = await connect(host, port, trust=pinned, request=make, handler=RecordingHandler())
        (request,) = server.requests
        expected = request.export_keying_material(LABEL, CONTEXT, 32).hex()
        assert request.request.header("proof") == expected
        tunnel.close()


@in_loop
async def test_fields_of_the_answer_reach_the_client(identity: Identity, pinned: Trust) -> None:
    def accept(incoming: IncomingRequest) -> None:
        incoming.accept(RecordingHandler(), (("public-key-pins", format_pins(pinned.pins)),))

    async with gateway(identity, accept) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        field = dict(tunnel.response_headers)["public-key-pins"]
        assert announced_pins(field, pinned) == pinned.pins
        tunnel.close()


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (None, None),
        ("", None),
        ("max-age=5", None),
        ('pin-sha256="{other}"; max-age=5', None),
        ('pin-sha256="short"; pin-sha256="{held}"', ("held",)),
        ('max-age=1;pin-sha256="{other}";pin-sha256="{held}"', ("other", "held")),
        ('pin-sha256="{held}";pin-sha256="{held}"', ("held",)),
    ],
)
def test_announced_pins_are_taken_only_with_one_that_is_held(
    field: str | None, expected: tuple[str, ...] | None
) -> None:
    digests = {"held": "A" * 43 + "=", "other": "B" * 42 + "A="}
    trust = Trust(pins=("sha256/" + digests["held"],))
    text = None if field is None else field.format(**digests)
    pins = None if expected is None else tuple("sha256/" + digests[name] for name in expected)
    assert announced_pins(text, trust) == pins
    assert announced_pins(text, Trust()) is None


# Another certificate


@in_loop
async def test_another_certificate_is_shown_to_newcomers_and_sessions_stay(
    identity: Identity, pinned: Trust, tmp_path: Path
) -> None:
    second = make_identity(tmp_path, "second")
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        handler = RecordingHandler()
        first = await dial(listener.addresses[0], pinned, handler)
        listener.use_certificate(second.certificate_file, second.key_file)
        newcomer = await dial(listener.addresses[0], Trust(pins=(second.pin,)))
        server.tunnels[0].send_packets([b"E" * 100])
        await handler.packets_arrived(1)
        first.close()
        newcomer.close()


# Tickets


class Jar:
    """A client's ticket in memory."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.saved = asyncio.Event()

    def load(self) -> bytes | None:
        data, self.data = self.data, None
        return data

    def save(self, data: bytes) -> None:
        self.data = data
        self.saved.set()


async def open_with(jar: Jar, address: Address, trust: Trust) -> HttpTunnel:
    host, port = address
    return await connect(
        host, port, trust=trust, request=CONNECT_IP, handler=RecordingHandler(), tickets=jar
    )


def resumed(tunnel: HttpTunnel) -> bool:
    assert isinstance(tunnel, Http3Tunnel)
    return tunnel._connection.quic.resumed


@in_loop
async def test_a_device_that_had_a_tunnel_resumes_and_resumes_again(
    identity: Identity, pinned: Trust
) -> None:
    jar = Jar()
    async with gateway(identity, AcceptingServer()) as listener:
        for expected in (False, True, True):
            jar.saved.clear()
            tunnel = await open_with(jar, listener.addresses[0], pinned)
            assert resumed(tunnel) is expected
            await jar.saved.wait()
            tunnel.close()


@in_loop
async def test_a_ticket_serves_once_and_not_after_it_was_cleared(
    identity: Identity, pinned: Trust
) -> None:
    jar = Jar()
    async with gateway(identity, AcceptingServer()) as listener:
        (await open_with(jar, listener.addresses[0], pinned)).close()
        ticket = jar.data
        for expected in (True, False):
            jar.data = ticket
            tunnel = await open_with(jar, listener.addresses[0], pinned)
            assert resumed(tunnel) is expected
            tunnel.close()
        listener.tickets.clear()
        tunnel = await open_with(jar, listener.addresses[0], pinned)
        assert not resumed(tunnel)
        tunnel.close()


@in_loop
async def test_a_stranger_is_sent_a_ticket_that_is_worth_nothing(
    identity: Identity, pinned: Trust
) -> None:
    async with gateway(identity, lambda incoming: incoming.respond(404)) as listener:
        jar = Jar()
        host, port = listener.addresses[0]
        with pytest.raises(Exception, match="does not know"):
            await connect(
                host,
                port,
                trust=pinned,
                request=CONNECT_IP,
                handler=RecordingHandler(),
                tickets=jar,
            )
        assert jar.data is not None
        assert len(listener.tickets) == 0


def test_a_ticket_is_used_only_under_the_trust_that_it_was_made_with(
    identity: Identity, pinned: Trust
) -> None:
    jar = Jar()

    async def get() -> None:
        async with gateway(identity, AcceptingServer()) as listener:
            (await open_with(jar, listener.addresses[0], pinned)).close()

    asyncio.run(get())
    data = jar.data
    assert data is not None
    assert unpack_ticket(data, Trust(pins=("sha256/" + "A" * 43 + "=",))) is None
    assert unpack_ticket(data, Trust()) is None
    assert unpack_ticket(data, Trust(ca_file="/ca.pem")) is None
    for damaged in (b"", data[:-1], b"x" + data, data.replace(b"127", b"\xff27")):
        assert unpack_ticket(damaged, Trust()) is None
    unpacked = unpack_ticket(data, pinned)
    assert unpacked is not None
    ticket, pin = unpacked
    assert pin == identity.pin
    assert ticket.max_early_data_size is None, "nothing that could be replayed"

    store = TicketStore()
    for number in range(CAPACITY + 10):
        ticket.ticket = number.to_bytes(4, "big")
        store.keep(ticket)
        ticket = replace(ticket)
    assert len(store) == CAPACITY
    assert store.take((0).to_bytes(4, "big")) is None


# What strangers may cost


@in_loop
async def test_strangers_are_few_at_once_and_the_oldest_goes(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 3)
    answers: list[IncomingRequest] = []

    async with gateway(identity, answers.append) as listener:
        host, port = listener.addresses[0]
        waiting = [
            asyncio.ensure_future(
                fetch(host, port, trust=pinned, make=lambda _: (post(), b""), limit=1)
            )
            for _ in range(8)
        ]
        async with asyncio.timeout(10):
            done = 0
            while done < 5:
                await asyncio.sleep(0.01)
                done = sum(task.done() for task in waiting)
        assert listener.connections == 3
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@in_loop
async def test_a_tunnel_is_no_stranger(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 1)
    async with gateway(identity, AcceptingServer()) as listener:
        handlers = [RecordingHandler() for _ in range(4)]
        tunnels = [await dial(listener.addresses[0], pinned, handler) for handler in handlers]
        assert listener.connections == 4
        assert not any(handler.closings for handler in handlers)
        for tunnel in tunnels:
            tunnel.close()


@in_loop
async def test_a_device_cannot_collect_connections(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 2)
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnels = []
        for number in range(6):
            handler = RecordingHandler()
            tunnel = await dial(listener.addresses[0], pinned, handler)
            tunnels.append(tunnel)
            assert isinstance(tunnel, Http3Tunnel)
            # As the gateway does when a newer session replaces this one, to a peer that stays.
            tunnel._connection.quic.close = lambda *_, **__: None  # type: ignore[method-assign]
            server.tunnels[number].close()
        await server.changes.until(lambda: listener.connections <= 2)
        for tunnel in tunnels:
            tunnel.close()


@in_loop
async def test_who_takes_no_answers_gets_no_more(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http3, "MAX_BUFFERED", 1000)

    def answer(incoming: IncomingRequest) -> None:
        if incoming.request.protocol:
            incoming.accept(handler)
        else:
            incoming.respond(200, (), b"x" * 600)

    handler = RecordingHandler()
    async with gateway(identity, answer) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert isinstance(tunnel, Http3Tunnel)
        connection = tunnel._connection
        h3 = connection._h3
        assert h3 is not None
        for _ in range(50):  # in one flight, so that nothing is acknowledged between
            stream = connection.quic.get_next_available_stream_id()
            h3.send_headers(
                stream,
                [
                    (b":method", b"GET"),
                    (b":scheme", b"https"),
                    (b":authority", b"localhost"),
                    (b":path", b"/"),
                ],
                end_stream=True,
            )
        connection._transmit()
        await handler.until(lambda: handler.closings)
        tunnel.close()
