"""How sessions begin and end: nothing stays behind, and each end learns at once of the other's.

Every test ends with both namespaces as they were before the first command.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from qvpn_core.client.profiles import parse_gateway
from qvpn_core.masque.uri_template import DEFAULT_TEMPLATE, expand
from qvpn_core.net.links import Kernel
from qvpn_core.net.plan import Route
from qvpn_core.net.tun import Tun
from qvpn_core.transport.interface import HttpTunnel, Request
from qvpn_core.transport.reach import connect
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import RecordingHandler
from tests.world import Namespace, plan, probes, snapshot
from tests.world.vpn import (
    AT_ONCE,
    PATIENCE,
    Credentials,
    Vpn,
    VpnClient,
    leaves_nothing,
    no_defects,
    own_memory,
    until,
)

pytestmark = pytest.mark.netns


@pytest.fixture
def client(vpn: Vpn) -> Iterator[VpnClient]:
    """The first client, disconnected; afterwards its namespace must be as it was."""
    yield vpn.clients[0]
    vpn.settle()
    assert snapshot(vpn.world.client) == vpn.before[vpn.world.client]
    vpn.check_logs()


def sessions(vpn: Vpn) -> list[str]:
    """The devices that the gateway has a session with."""
    return [session["device"] for session in vpn.gateway.peek()["sessions"]]


# -- a session ends


def test_down_leaves_the_client_as_it_was_and_the_gateway_knows_at_once(
    vpn: Vpn, client: VpnClient
) -> None:
    with leaves_nothing(client.host):
        client.up()
        assert snapshot(client.host) != vpn.before[client.host]
        assert sessions(vpn) == ["first"]
        client.down()
    until(lambda: sessions(vpn) == [], "the gateway forgets the session", AT_ONCE)
    assert client.status()["state"] == "disconnected"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_client_in_the_foreground_in_order(
    vpn: Vpn, client: VpnClient, number: signal.Signals
) -> None:
    with leaves_nothing(client.host):
        process = client.begin("--foreground", PYTHONDEVMODE="1")
        client.wait_for("connected")
        process.send_signal(number)
        _, log = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    until(lambda: sessions(vpn) == [], "the gateway forgets the session", AT_ONCE)
    no_defects(log)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_agent_in_the_background_in_order(
    vpn: Vpn, client: VpnClient, number: signal.Signals
) -> None:
    with leaves_nothing(client.host, within=PATIENCE):
        client.up()
        kill(client, number)
    until(lambda: sessions(vpn) == [], "the gateway forgets the session", AT_ONCE)


def test_a_killed_client_leaves_nothing(client: VpnClient) -> None:
    with leaves_nothing(client.host, within=AT_ONCE):
        client.up()
        kill(client, signal.SIGKILL)
    assert client.status()["state"] == "disconnected"


def test_after_a_kill_the_next_session_takes_the_place_of_the_dead_one(
    vpn: Vpn, client: VpnClient
) -> None:
    client.up()
    addresses = client.status()["addresses"]
    kill(client, signal.SIGKILL)
    client.up()
    assert client.status()["addresses"] == addresses
    assert sessions(vpn) == ["first"]
    assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4


def test_a_device_that_somebody_deletes_ends_the_session_with_words(client: VpnClient) -> None:
    with leaves_nothing(client.host, within=AT_ONCE):
        client.up()
        client.host.ip("link del qvpn0")
        status = client.wait_for("failed")
    assert status["reason"] == "tun-unavailable"
    assert "qvpn0" in status["error"]


# -- the gateway ends


def test_the_end_of_the_gateway_is_seen_at_once_and_down_still_works(
    vpn: Vpn, client: VpnClient
) -> None:
    with leaves_nothing(client.host):
        client.up()
        assert vpn.gateway.stop() == 0
        wait_until(client, "reconnecting", AT_ONCE)
        assert "reconnecting: the peer closed the connection" in client.log
        assert client.host.ip("rule").count("9484:") == 1, "what is tunnelled must not leak now"
        client.down()


def test_a_killed_gateway_does_not_hold_up_down(vpn: Vpn, client: VpnClient) -> None:
    with leaves_nothing(client.host):
        client.up()
        vpn.gateway.stop(signal.SIGKILL)
        client.down()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_waits_for_its_gateway_can_be_ended(
    vpn: Vpn, client: VpnClient, number: signal.Signals
) -> None:
    with leaves_nothing(client.host, within=AT_ONCE):
        client.up()
        vpn.gateway.stop()
        wait_until(client, "reconnecting", AT_ONCE)
        kill(client, number)


def test_a_restarted_gateway_gets_its_client_back_with_its_addresses_and_connections(
    vpn: Vpn, client: VpnClient
) -> None:
    client.up()
    addresses = client.status()["addresses"]
    target = (plan.ALPHA.v4, plan.ECHO_PORT)
    connection = client.host.call(socket.create_connection, target, PATIENCE)
    with connection, connection.makefile("rb") as stream:
        # What the internet sends or repeats while the gateway is away meets a machine without NAT,
        # which resets the connection: so acknowledge at once, and know that it has arrived.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        connection.sendall(b"before\n")
        assert stream.readline() == b"before\n"
        probes.ping_ms(client.host, plan.ALPHA.v4)
        vpn.gateway.stop()
        wait_until(client, "reconnecting", AT_ONCE)
        vpn.gateway.start()
        status = wait_until(client, "connected", PATIENCE)
        assert status["addresses"] == addresses
        connection.sendall(b"after\n")
        assert stream.readline() == b"after\n"
    client.down()


# -- the gateway's own traces


def test_a_stopped_gateway_leaves_its_machine_as_it_was(vpn: Vpn, client: VpnClient) -> None:
    client.up()
    assert snapshot(vpn.world.gateway) != vpn.before[vpn.world.gateway]
    vpn.gateway.stop()
    assert snapshot(vpn.world.gateway) == vpn.before[vpn.world.gateway]


def test_the_next_start_of_a_killed_gateway_cleans_up_and_its_stop_restores(vpn: Vpn) -> None:
    host, before = vpn.world.gateway, vpn.before[vpn.world.gateway]
    running = snapshot(host)
    vpn.gateway.stop(signal.SIGKILL)
    assert "qvpn_gateway" in snapshot(host), "a kill leaves something to clean up"
    vpn.gateway.start()
    assert without_indexes(snapshot(host)) == without_indexes(running)
    vpn.gateway.stop()
    assert snapshot(host) == before
    vpn.settle()


def test_forwarding_that_was_on_before_stays_on(vpn: Vpn) -> None:
    host = vpn.world.gateway
    vpn.gateway.stop()
    host.sysctl("ipv4/ip_forward", 1)
    before = snapshot(host)
    vpn.gateway.start()
    vpn.gateway.stop()
    assert snapshot(host) == before
    host.sysctl("ipv4/ip_forward", 0)
    assert snapshot(host) == vpn.before[host]
    vpn.settle()


# -- while connecting


def device_exists(host: Namespace) -> bool:
    return bool(host.call(lambda: any(name == "qvpn0" for _, name in socket.if_nameindex())))


def firewall_stands(host: Namespace) -> bool:
    return "qvpn_client" in host.run(["nft", "list", "tables"]).stdout


def rules_stand(host: Namespace) -> bool:
    return "9484" in host.ip("rule")


@pytest.mark.parametrize("stage", [device_exists, firewall_stands, rules_stand])
def test_a_kill_at_any_stage_of_setting_up_leaves_nothing(
    client: VpnClient, stage: Callable[[Namespace], bool]
) -> None:
    with leaves_nothing(client.host, within=AT_ONCE):
        process = client.begin("--foreground")
        until(lambda: stage(client.host), stage.__name__)
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.5, 0.8])
def test_a_kill_at_any_moment_leaves_nothing(client: VpnClient, delay: float) -> None:
    with leaves_nothing(client.host, within=AT_ONCE):
        process = client.begin("--foreground")
        time.sleep(delay)  # a moment is what is tested
        process.kill()
        process.wait(PATIENCE)


def test_our_routes_are_flushed_also_while_their_device_goes_with_some(
    namespaces_work: None,
) -> None:
    """After a kill, the helper and the kernel clean up in the same moment."""
    prefixes = [ip_network(f"10.{number}.0.0/16") for number in range(40)]
    throws = [Route(prefix, "throw", "excluded") for prefix in prefixes[::2]]
    tunnels = [Route(prefix, "tunnel", "advertised") for prefix in prefixes[1::2]]

    def left() -> str:
        tun = Tun.open("qvpn0", 1400)
        with Kernel() as kernel:
            kernel.set_up(tun.index)
            for route in throws + tunnels:
                kernel.put_route(tun.index, route)
            closing = threading.Thread(target=tun.close)
            closing.start()
            kernel.flush_routes(4)
            closing.join()
        routes = ["ip", "route", "show", "table", "9484"]
        return subprocess.run(routes, capture_output=True, text=True).stdout

    with Namespace("flush") as host:
        assert [host.call(left) for _ in range(10)] == [""] * 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_connecting_ends_the_background_agent_too(
    vpn: Vpn, client: VpnClient, number: signal.Signals
) -> None:
    vpn.world.relay.set(block_udp=True)
    with leaves_nothing(client.host):
        process = client.begin("--transport", "quic")
        wait_until(client, "connecting", PATIENCE)
        process.send_signal(number)
        _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert words == "qvpn: interrupted\n"


def test_down_while_connecting(vpn: Vpn, client: VpnClient) -> None:
    vpn.world.relay.set(block_udp=True)
    with leaves_nothing(client.host):
        process = client.begin("--transport", "quic")  # which TCP does not let connect meanwhile
        wait_until(client, "connecting", PATIENCE)
        client.down()
        _, words = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert words == "qvpn: it was ended before it was connected\n"


def test_of_two_ups_at_once_one_wins_and_the_other_says_so(vpn: Vpn, client: VpnClient) -> None:
    with leaves_nothing(client.host):
        both = [client.begin(), client.begin()]
        words = [process.communicate(timeout=PATIENCE)[1] for process in both]
        ends = {process.returncode: said for process, said in zip(both, words, strict=True)}
        assert sorted(ends) == [0, 2]
        complaint = ends[2]
        assert "end it first: qvpn down" in complaint
        assert client.status()["state"] == "connected"
        assert sessions(vpn) == ["first"]
        client.down()


# -- many sessions


async def come_and_go(vpn: Vpn, devices: list[Credentials], times: int) -> None:
    """Sessions of all devices together, begun and ended, again and again."""
    for _ in range(times):
        tunnels = [await open_session(device) for device in devices]
        assert sorted(sessions(vpn)) == sorted(device.name for device in devices)
        for tunnel in tunnels:
            tunnel.close()
        await until_async(lambda: vpn.gateway.peek()["connections"] == 0)


def test_sessions_that_come_and_go_leave_nothing_in_the_gateway(
    vpn: Vpn, client: VpnClient
) -> None:
    vpn.gateway.stop()  # with what it may still remember of killed clients
    vpn.gateway.start()
    assert vpn.gateway.process is not None
    pid = vpn.gateway.process.pid
    devices = vpn.gateway.tokens("coming", "going")
    client.host.call(asyncio.run, come_and_go(vpn, devices, 45))  # what loads once; arenas fill
    memory, descriptors = own_memory(pid), open_files(pid)
    client.host.call(asyncio.run, come_and_go(vpn, devices, 25))
    until(lambda: open_files(pid) <= descriptors, "no descriptor stays")
    assert own_memory(pid) - memory < 2_000_000


def test_sessions_leave_no_task_unawaited_and_no_resource_open(vpn: Vpn, client: VpnClient) -> None:
    vpn.gateway.stop()
    vpn.gateway.start(PYTHONDEVMODE="1")
    devices = vpn.gateway.tokens("this", "that")
    client.host.call(asyncio.run, come_and_go(vpn, devices, 3))
    process = client.begin("--foreground", PYTHONDEVMODE="1")
    client.wait_for("connected")
    assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4
    assert vpn.gateway.stop() == 0
    wait_until(client, "reconnecting", AT_ONCE)
    client.down()
    no_defects(process.communicate(timeout=PATIENCE)[1])
    no_defects(vpn.gateway.log.read_text())


def test_the_gateway_rests_in_50_mb_of_its_own_and_holds_a_session_in_300_kb(
    vpn: Vpn, client: VpnClient
) -> None:
    vpn.gateway.stop()
    vpn.gateway.start()
    assert vpn.gateway.process is not None
    pid = vpn.gateway.process.pid
    assert own_memory(pid) < 50_000_000
    devices = vpn.gateway.tokens(*(f"idle{number}" for number in range(45)))

    async def measure() -> float:
        tunnels = [await open_session(device) for device in devices[:5]]  # loads what loads once
        before = own_memory(pid)
        tunnels += [await open_session(device) for device in devices[5:]]
        assert len(sessions(vpn)) == len(devices)
        grown = own_memory(pid) - before
        for tunnel in tunnels:
            tunnel.close()
        return grown / (len(devices) - 5)

    assert client.host.call(asyncio.run, measure()) < 300_000
    until(lambda: vpn.gateway.peek()["connections"] == 0, "all connections are gone")


async def open_session(device: Credentials) -> HttpTunnel:
    """A tunnel without a TUN, from the namespace that this runs in, once it has its addresses."""
    host, port = parse_gateway(device.gateway)
    handler = RecordingHandler()
    tunnel = await connect(
        host,
        port,
        trust=Trust(pins=(device.pin,)),
        request=Request(
            method="CONNECT",
            scheme="https",
            authority=device.gateway,
            path=expand(DEFAULT_TEMPLATE),
            protocol="connect-ip",
            headers=(("authorization", f"Bearer {device.token}"),),
        ),
        handler=handler,
    )
    await handler.until(lambda: handler.data)
    return tunnel


async def until_async(condition: Callable[[], object]) -> None:
    """As `until`, while the loop goes on."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - another process's state has no event
            await asyncio.sleep(0.01)


def kill(client: VpnClient, number: signal.Signals) -> None:
    """Send a signal to the client's agent and wait until the process is gone."""
    pid = client.agent()
    assert pid is not None
    descriptor = os.pidfd_open(pid)
    signal.pidfd_send_signal(descriptor, number)
    assert select.select([descriptor], [], [], PATIENCE)[0]
    os.close(descriptor)


def wait_until(client: VpnClient, state: str, timeout: float) -> dict[str, Any]:
    """Like `VpnClient.wait_for`, without the half second that a command takes."""
    until(lambda: client.peek().get("state") == state, f"the client is {state}", timeout)
    return client.peek()


def without_indexes(text: str) -> str:
    """A snapshot without the numbers that a device made again has anew."""
    return "\n".join(line.partition(": ")[2] or line for line in text.splitlines())


def open_files(pid: int) -> int:
    """How many descriptors a process keeps: the fewest of some looks, for some live a moment."""
    return min(len(list(Path("/proc", str(pid), "fd").iterdir())) for _ in range(20))
