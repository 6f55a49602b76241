"""The native engine under a connection: keys, packet numbers, faults, and the way back.

Over loopback, with real connections; what an engine does with bytes is tested in Rust.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aioquic.tls import CipherSuite

from qvpn_core.datapath import engine as engine_module
from qvpn_core.datapath.engine import NativeEngine, NativeOffload, available
from qvpn_core.transport import settings
from qvpn_core.transport.http3 import Http3Tunnel
from tests.unit.datapath.benches import NativeBench, native_bench, until
from tests.unit.datapath.test_conformance import OTHER_V4, OWN, OWN_V4, v4
from tests.unit.transport.helpers import (
    CONNECT_IP,
    Identity,
    RecordingHandler,
    in_loop,
)

pytestmark = pytest.mark.skipif(not available(), reason="qvpn_datapath is not built (make native)")


def engine_of(bench: NativeBench) -> NativeEngine:
    engine = bench.datapath._engine  # type: ignore[attr-defined]
    assert isinstance(engine, NativeEngine)
    return engine


def offload_of(bench: NativeBench) -> NativeOffload:
    [offload] = engine_of(bench).sessions.values()
    return offload


async def exchange(bench: NativeBench, count: int = 20) -> None:
    """Packets in both directions, all of which arrive."""
    out = [v4(OWN_V4, OTHER_V4, 60 + serial) for serial in range(count)]
    back = [v4(OTHER_V4, OWN_V4, 60 + serial) for serial in range(count)]
    before = len(bench.sent)
    for packet in out:
        bench.device.give(packet)
    await bench.until_sent(before + count)
    assert bench.sent[before:] == out
    bench.arrive(back)
    assert await bench.device.delivered(count) == back


def in_bench(case: Any) -> Any:
    @in_loop
    async def run(identity: Identity) -> None:
        async with native_bench(identity) as bench:
            bench.datapath.start(OWN)
            assert bench.datapath.name == "native"
            await case(bench)

    run.__name__, run.__doc__ = case.__name__, case.__doc__
    return run


def quic_of(tunnel: Any) -> Any:
    assert isinstance(tunnel, Http3Tunnel)
    return tunnel.connection.quic


# Sharing a connection


@in_bench
async def test_packets_pass_through_the_engine_and_are_counted(bench: NativeBench) -> None:
    await exchange(bench)
    counters = bench.tunnel.counters
    assert (counters.tx_packets, counters.rx_packets) == (20, 20)
    assert counters.tx_bytes == sum(range(60, 80))
    assert bench.link.received == [], "none of them came by Python"
    assert bench.tunnel.rtt > 0


@in_bench
async def test_capsules_go_on_beside(bench: NativeBench) -> None:
    for serial in range(10):
        await exchange(bench, 5)
        bench.tunnel.send_capsules(b"up %d " % serial)
        bench.far_tunnel.send_capsules(b"down %d " % serial)
    await bench.far.until(lambda: bench.far.data.endswith(b"up 9 "))
    await bench.link.until(lambda: bench.link.data.endswith(b"down 9 "))
    await exchange(bench)


@in_bench
async def test_packets_of_others_share_the_packet_numbers(bench: NativeBench) -> None:
    """ICMP answers, for example, which a program makes and sends by itself."""
    for _ in range(10):
        await exchange(bench, 3)
        bench.tunnel.send_packets([v4(OWN_V4, OTHER_V4, 99)])
        await bench.far.until(lambda: len(bench.far.received[-1]) == 99)
    assert quic_of(bench.far_tunnel).packets_lost == 0
    loss = quic_of(bench.tunnel)._loss
    # What was sent from here is acknowledged here, though the engine receives the ACKs.
    await until(lambda: sum(len(space.sent_packets) for space in loss.spaces) == 0)
    assert quic_of(bench.tunnel).packets_lost == 0


@in_bench
async def test_the_far_end_hears_acks_and_loses_nothing(bench: NativeBench) -> None:
    await exchange(bench, 100)
    far = quic_of(bench.far_tunnel)
    await until(lambda: sum(len(space.sent_packets) for space in far._loss.spaces) == 0)
    assert far.packets_lost == 0


@in_bench
async def test_closing_the_tunnel_is_seen_at_the_far_end(bench: NativeBench) -> None:
    await exchange(bench)
    bench.tunnel.close()
    await bench.far.until(lambda: bench.far.ends or bench.far.closings)


@in_bench
async def test_the_far_end_closing_is_seen_here(bench: NativeBench) -> None:
    await exchange(bench)
    bench.far_tunnel.close()
    await bench.link.until(lambda: bench.link.ends or bench.link.closings)


@in_bench
async def test_a_second_tunnel_of_a_connection_does_not_share_the_engine(
    bench: NativeBench,
) -> None:
    """It would count packets by itself, and use nonces twice."""
    await exchange(bench)
    connection = bench.tunnel.connection
    handler = RecordingHandler()
    second = await connection.request(CONNECT_IP, handler)
    assert engine_of(bench).attach(second) is None
    packet = v4(OWN_V4, OTHER_V4, 77)
    second.send_packets([packet])
    far_tunnel, far = bench.server.tunnels[1], bench.server.handlers[1]
    await far.packets_arrived(1)
    assert far.received == [packet]
    far_tunnel.send_packets([packet])
    await handler.packets_arrived(1)
    await exchange(bench)
    second.close()
    await far.until(lambda: far.ends or far.closings)
    await exchange(bench)


# Keys


@pytest.mark.parametrize(
    "suite",
    [
        CipherSuite.AES_128_GCM_SHA256,
        CipherSuite.AES_256_GCM_SHA384,
        CipherSuite.CHACHA20_POLY1305_SHA256,
    ],
)
def test_key_updates_by_either_end_lose_nothing(
    suite: CipherSuite, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = settings.client_configuration

    def configuration(*arguments: Any) -> Any:
        made = original(*arguments)
        made.cipher_suites = [suite]
        return made

    monkeypatch.setattr(settings, "client_configuration", configuration)

    @in_loop
    async def run() -> None:
        async with native_bench(identity) as bench:
            bench.datapath.start(OWN)
            near, far = quic_of(bench.tunnel), quic_of(bench.far_tunnel)
            for generation in range(1, 7):
                await exchange(bench)
                if generation % 2:
                    far.request_key_update()
                else:
                    bench.tunnel.connection.engine_update_due()
                await exchange(bench)
                await until(lambda g=generation: near.keys.generation == far.keys.generation == g)
                bench.tunnel.send_capsules(b"x")
                await bench.far.until(lambda g=generation: len(bench.far.data) == g)
            assert bench.link.received == [], "not one packet took the slow way"
            assert (near.packets_lost, far.packets_lost) == (0, 0)

    run()


# Faults and the way back


@in_bench
async def test_a_fault_of_the_engine_costs_no_session(bench: NativeBench) -> None:
    await exchange(bench)
    failing = engine_of(bench)
    failing.engine = Failing(failing.engine)
    for _ in range(2):
        bench.device.give(v4(OWN_V4, OTHER_V4, 70))
        failing._readable()
    assert bench.datapath.name == "aioquic"
    assert bench.device.offloads == [True, False]
    before = len(bench.sent)
    await bench.until_sent(before)
    bench.sent.clear()
    await exchange_after_fault(bench)
    assert bench.link.closings == []
    assert bench.tunnel.counters.tx_packets >= 40, "what the engine counted is not forgotten"


@in_bench
async def test_a_thread_that_dies_costs_no_session(bench: NativeBench) -> None:
    """Packet numbers that are never given back stop it, after seconds: a defect, on purpose."""
    await exchange(bench)
    offload = offload_of(bench)
    offload._engine = Greedy(offload._engine)
    offload.reserve()
    bench.device.give(v4(OWN_V4, OTHER_V4, 70))
    async with asyncio.timeout(20):
        while bench.datapath.name != "aioquic":  # noqa: ASYNC110  # another thread's state
            await asyncio.sleep(0.05)
    bench.sent.clear()
    await exchange_after_fault(bench)
    assert bench.link.closings == []


class Greedy:
    """An engine whose packet numbers are not given back."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def commit(self, place: int, end: int) -> None:
        """Forgets to."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


async def exchange_after_fault(bench: NativeBench) -> None:
    """As `exchange`, but packets that were under way at the fault may come in between."""
    marker = v4(OWN_V4, OTHER_V4, 500)
    for serial in range(20):
        bench.device.give(v4(OWN_V4, OTHER_V4, 400 + serial))
    bench.device.give(marker)
    await bench.far.until(lambda: bench.sent[-1:] == [marker])
    assert [len(p) for p in bench.sent if len(p) >= 400] == [*range(400, 420), 500]
    bench.arrive([v4(OTHER_V4, OWN_V4, 300)])
    assert await bench.device.delivered(1) == [v4(OTHER_V4, OWN_V4, 300)]


class Failing:
    """An engine that says that it has failed."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def failure(self) -> str:
        return "a defect that a test made"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@in_bench
async def test_the_reference_takes_over_and_gives_back(bench: NativeBench) -> None:
    """As when the path changes: the engine lets go while a new path is proven."""
    connection = bench.tunnel.connection
    offload = offload_of(bench)
    for _ in range(5):
        await exchange(bench)
        state, connection._offloaded = connection._offloaded, None
        offload.follow(None)
        assert not offload.working
        bench.link.received.clear()
        bench.arrive([v4(OTHER_V4, OWN_V4, 90)])
        assert await bench.device.delivered(1) == [v4(OTHER_V4, OWN_V4, 90)]
        assert len(bench.link.received) == 1, "by Python"
        connection._follow_offload()
        assert offload.working
        assert connection._offloaded == state
    await exchange(bench)
    assert quic_of(bench.far_tunnel).packets_lost == 0


@in_bench
async def test_a_device_that_is_deleted_ends_the_engine_and_not_the_tunnel(
    bench: NativeBench,
) -> None:
    await exchange(bench)
    bench.device.kernel.close()
    await until(lambda: bench.datapath.name == "aioquic")
    bench.tunnel.send_capsules(b"still here")
    await bench.far.until(lambda: bench.far.data == b"still here")


def test_without_the_module_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engine_module.CHOICE, "aioquic")
    assert not available()
    monkeypatch.delenv(engine_module.CHOICE)
    monkeypatch.setattr(engine_module, "_module", lambda: None)
    assert not available()
