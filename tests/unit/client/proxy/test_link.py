"""The connection that proxied services share, at a real gateway on the loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qvpn_core.client.profiles import Profile, make_profile
from qvpn_core.client.proxy import link
from qvpn_core.client.proxy.link import MAX_LEFT, GatewayLink
from qvpn_core.errors import QvpnError
from qvpn_core.masque.target import make_target
from qvpn_core.transport.interface import H3_REQUEST_CANCELLED, HttpStream, TransportName
from tests.unit.server.test_gateway import World
from tests.unit.server.test_services import echo, story, tcp_server, until

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("CONFIG", "STATE", "RUNTIME"):
        monkeypatch.setenv(f"QVPN_{kind}_DIR", str(tmp_path / kind.lower()))


def profile(world: World) -> Profile:
    token = world.enrol("alice")
    return make_profile("home", f"127.0.0.1:{world.port}", token, pins=world.trust.pins)


async def move(ours: GatewayLink, transport: TransportName) -> None:
    """As when the other transport is found to be better."""
    found = await ours._open_connection((transport,), PATIENCE, lambda: True)
    ours._move(ours._latest, found)


async def echoes(stream: HttpStream) -> None:
    await stream.send(b"hello")
    async with asyncio.timeout(PATIENCE):
        assert await stream.receive() == b"hello"


def test_what_is_open_goes_on_where_it_is_and_the_rest_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvpn_core.transport.race.GRACE", 10.0)  # for a machine that is busy

    async def tell(world: World) -> None:
        ours = GatewayLink(profile(world))
        async with tcp_server(echo) as port:
            target = make_target("127.0.0.1", port)
            await ours.connect()
            before = await ours.open_tcp(target)
            await move(ours, "tls")
            after = await ours.open_tcp(target)
            assert (before.transport, after.transport) == ("quic", "tls")
            await echoes(before)
            await echoes(after)
            assert world.status().connections == 2
            before.reset(H3_REQUEST_CANCELLED)
            async with asyncio.timeout(PATIENCE):
                await ours._left[0].ended()
            await echoes(after)
            after.reset(H3_REQUEST_CANCELLED)
            ours.close()

    story(tmp_path, tell)


def test_connections_that_were_left_are_few(tmp_path: Path) -> None:
    """A path that flaps while something is open on every one of them."""

    async def tell(world: World) -> None:
        ours = GatewayLink(profile(world))
        async with tcp_server(echo) as port:
            target = make_target("127.0.0.1", port)
            await ours.connect()
            streams = [await ours.open_tcp(target)]
            for number in range(MAX_LEFT + 2):
                await move(ours, ("tls", "quic")[number % 2])  # type: ignore[arg-type]
                streams.append(await ours.open_tcp(target))
            for stream in streams[:2]:
                with pytest.raises(QvpnError):
                    await stream.receive()
            for stream in streams[2:]:
                await echoes(stream)
            ours.close()
            for stream in streams[2:]:
                with pytest.raises(QvpnError):
                    await stream.receive()

    story(tmp_path, tell)


def test_a_request_without_an_answer_is_made_again_on_the_better_transport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(world: World) -> None:
        ours = GatewayLink(profile(world))
        async with tcp_server(echo) as port:
            await ours.connect()
            # Nothing answers at the first gateway connection any more, as when its path is dead.
            held: list[object] = []
            serve = world.gateway.services.serve
            monkeypatch.setattr(
                world.gateway.services, "serve", lambda *request: held.append(request[0].hold())
            )
            asking = asyncio.ensure_future(ours.open_tcp(make_target("127.0.0.1", port)))
            await until(lambda: held)
            monkeypatch.setattr(world.gateway.services, "serve", serve)
            await move(ours, "tls")
            stream = await asking
            assert stream.transport == "tls"
            await echoes(stream)
            ours.close()

    story(tmp_path, tell)


def test_a_gateway_that_does_not_answer_is_an_error_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def tell(world: World) -> None:
        ours = GatewayLink(profile(world))
        monkeypatch.setattr(world.gateway.services, "serve", lambda *request: request[0].hold())
        monkeypatch.setattr(link.settings, "HANDSHAKE_TIMEOUT", 0.5)
        with pytest.raises(QvpnError, match="no answer from 127"):
            await ours.connect()

    story(tmp_path, tell)
