"""Who wins the race to a gateway: by a clock that the test moves, and on real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.errors import AuthenticationFailed, GatewayUnreachable
from qvpn_core.transport.dial import Endpoint
from qvpn_core.transport.interface import IncomingRequest
from qvpn_core.transport.listeners import GatewayListener
from qvpn_core.transport.race import (
    GRACE,
    HEAD_START,
    MAX_ENDPOINTS,
    STAGGER,
    Entry,
    Race,
    schedule,
)
from qvpn_core.transport.reach import connect
from qvpn_core.transport.tls_listen import TlsListener
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import (
    CONNECT_IP,
    AcceptingServer,
    Identity,
    RecordingHandler,
    in_loop,
    make_identity,
)

V4 = [Endpoint(socket.AF_INET, (f"192.0.2.{n}", 443)) for n in range(9)]
V6 = [Endpoint(socket.AF_INET6, (f"2001:db8::{n}", 443, 0, 0)) for n in range(9)]
QUIC, TLS = 0, 1


def two(head_start: float = HEAD_START) -> list[Entry]:
    """One address, both transports."""
    return schedule(V4[:1], ("quic", "tls"), head_start)


# When to try what


def test_quic_comes_first_and_families_alternate() -> None:
    entries = schedule([*V6[:2], *V4[:2]], ("quic", "tls"), HEAD_START)
    quic = [entry for entry in entries if entry.transport == "quic"]
    assert [entry.endpoint for entry in quic] == [V6[0], V4[0], V6[1], V4[1]]
    assert [entry.at for entry in quic] == [0, STAGGER, 2 * STAGGER, 3 * STAGGER]
    tls = next(entry for entry in entries if entry.transport == "tls")
    assert (tls.endpoint, tls.at) == (V6[0], HEAD_START)


@given(
    st.lists(st.sampled_from([*V4, *V6]), min_size=1, unique=True),
    st.sampled_from([("quic",), ("tls",), ("quic", "tls")]),
    st.sampled_from([0.0, HEAD_START]),
)
def test_every_schedule_is_bounded_ordered_and_begins_at_once(
    endpoints: list[Endpoint], transports: tuple[str, ...], head_start: float
) -> None:
    entries = schedule(endpoints, transports, head_start)  # type: ignore[arg-type]
    times = [entry.at for entry in entries]
    assert times == sorted(times)
    assert times[0] == 0
    assert entries[0].endpoint == endpoints[0]
    assert len(entries) == min(len(endpoints), MAX_ENDPOINTS) * len(transports)
    assert len({(entry.transport, entry.endpoint) for entry in entries}) == len(entries)


# Whose turn it is


def test_quic_that_is_ready_asks_at_once() -> None:
    race = Race(two(), 0.0)
    assert race.due(0.0) == [QUIC]
    assert race.next_at() == HEAD_START
    race.ready(QUIC, 0.05)
    assert race.turn(0.05) == QUIC
    assert race.turn(0.06) is None, "named once"


def test_tls_waits_a_moment_for_quic_that_is_close() -> None:
    race = Race(two(), 0.0)
    race.due(0.0)
    assert race.due(HEAD_START) == [TLS]
    race.ready(TLS, 0.5)
    assert race.turn(0.5) is None
    assert race.next_at() == 0.5 + GRACE
    race.ready(QUIC, 0.55)
    assert race.turn(0.55) == QUIC


def test_tls_asks_when_quic_does_not_come() -> None:
    race = Race(two(), 0.0)
    race.due(0.0)
    race.due(HEAD_START)
    race.ready(TLS, 0.5)
    assert race.turn(0.5 + GRACE) == TLS


def test_only_one_asks_at_a_time_and_the_next_when_it_failed() -> None:
    race = Race(two(), 0.0)
    race.due(0.0)
    race.due(HEAD_START)
    race.ready(QUIC, 0.1)
    race.ready(TLS, 0.4)
    assert race.turn(0.4) == QUIC
    assert race.turn(9.9) is None
    race.failed(QUIC)
    assert race.turn(9.9) == TLS
    race.failed(TLS)
    assert race.lost


def test_a_failure_brings_the_next_forward() -> None:
    race = Race(two(), 0.0)
    race.due(0.0)
    race.failed(QUIC)
    assert race.due(0.01) == [TLS]


@given(st.lists(st.tuples(st.sampled_from("rftd"), st.integers(0, 5), st.floats(0, 0.3))))
def test_whatever_happens_nobody_is_started_or_asked_twice_at_a_time(
    happenings: list[tuple[str, int, float]],
) -> None:
    race = Race(schedule([V6[0], V4[0], V4[1]], ("quic", "tls"), HEAD_START), 0.0)
    now, started, asking = 0.0, set(), None
    ready: set[int] = set()
    failed: set[int] = set()
    for kind, number, later in happenings:
        now += later
        if kind == "d":
            due = race.due(now)
            assert not started & set(due)
            started |= set(due)
        elif kind == "r" and number in started - failed - ready:
            race.ready(number, now)
            ready.add(number)
        elif kind == "f" and number in started - failed:
            race.failed(number)
            failed.add(number)
            asking = None if asking == number else asking
        elif kind == "t" and (turn := race.turn(now)) is not None:
            assert asking is None
            assert turn in ready - failed
            asking = turn
    assert race.lost == (len(failed) == 6)


# On sockets


@pytest.fixture
def pinned(identity: Identity) -> Trust:
    return Trust(pins=(identity.pin,))


@asynccontextmanager
async def gateway(identity: Identity, server: AcceptingServer) -> AsyncIterator[GatewayListener]:
    listener = await GatewayListener.start(
        [("127.0.0.1", 0)],
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=server,
    )
    try:
        yield listener
    finally:
        await listener.close()


@in_loop
async def test_quic_wins_where_it_gets_through_and_is_the_only_one_that_asks(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvpn_core.transport.race.GRACE", 10.0)  # for a machine that is busy
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnel = await connect(
            *listener.addresses[0],
            trust=pinned,
            request=CONNECT_IP,
            handler=RecordingHandler(),
            transports=("quic", "tls"),
        )
        assert tunnel.transport == "quic"
        assert len(server.requests) == 1
        tunnel.close()


@asynccontextmanager
async def tls_only(identity: Identity, server: AcceptingServer) -> AsyncIterator[int]:
    """A gateway behind something that swallows UDP; yields its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as swallower:
        swallower.bind(("127.0.0.1", 0))
        port: int = swallower.getsockname()[1]
        listener = await TlsListener.start(
            [("127.0.0.1", port)],
            certificate=identity.certificate_file,
            private_key=identity.key_file,
            on_request=server,
        )
        try:
            yield port
        finally:
            await listener.close()


@in_loop
async def test_tls_wins_where_udp_is_swallowed(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with tls_only(identity, server) as port:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        tunnel = await connect(
            "127.0.0.1",
            port,
            trust=pinned,
            request=CONNECT_IP,
            handler=RecordingHandler(),
            transports=("quic", "tls"),
        )
        assert tunnel.transport == "tls"
        assert loop.time() - begin >= HEAD_START
        tunnel.close()


@in_loop
async def test_a_login_page_in_the_gateways_place_is_no_reason_to_give_up_for_good(
    identity: Identity, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hotel = make_identity(tmp_path_factory.mktemp("hotel"), "hotel")
    async with tls_only(hotel, AcceptingServer()) as port:
        with pytest.raises(GatewayUnreachable, match="login page") as caught:
            await connect(
                "127.0.0.1",
                port,
                trust=Trust(pins=(identity.pin,)),
                request=CONNECT_IP,
                handler=RecordingHandler(),
                transports=("quic", "tls"),
                timeout=3.0,
            )
        assert caught.value.transient


@in_loop
async def test_a_refusal_is_final_whoever_else_is_ready(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvpn_core.transport.race.GRACE", 10.0)  # for a machine that is busy
    requests: list[str] = []

    def refuse(incoming: IncomingRequest) -> None:
        requests.append(incoming.transport)
        incoming.respond(404)

    listener = await GatewayListener.start(
        [("127.0.0.1", 0)],
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=refuse,
    )
    try:
        with pytest.raises(AuthenticationFailed):
            await connect(
                *listener.addresses[0],
                trust=pinned,
                request=CONNECT_IP,
                handler=RecordingHandler(),
                transports=("quic", "tls"),
            )
        assert requests == ["quic"]
    finally:
        await listener.close()


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.31, 0.33, 0.5])
@in_loop
async def test_cancelling_at_any_moment_leaves_nothing_behind(
    identity: Identity, pinned: Trust, delay: float
) -> None:
    async with tls_only(identity, AcceptingServer()) as port:
        attempt = asyncio.create_task(
            connect(
                "127.0.0.1",
                port,
                trust=pinned,
                request=CONNECT_IP,
                handler=RecordingHandler(),
                transports=("quic", "tls"),
            )
        )
        await asyncio.sleep(delay)  # a moment is what is tested
        attempt.cancel()
        try:
            (await attempt).close()
        except asyncio.CancelledError:
            pass
