"""The tunnel over bad paths: faults, narrow and changing MTUs, NATs that forget, blocked UDP.

Faults are the relay's, on the client's uplink, so the tunnel's own packets meet them. Faults that
the session outlives unchanged share one connected client; the others begin with a new world.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest

from qvpn_core.transport.settings import IDLE_TIMEOUT, KEEPALIVE
from tests.world import Namespace, plan, probes
from tests.world.datagrams import HEADERS, Datagrams, forget_path_mtus
from tests.world.payload import payload_sha256
from tests.world.vpn import (
    INSIDE,
    PATIENCE,
    Vpn,
    VpnClient,
    leaves_nothing,
    until,
)

# Generous, for a machine that is busy with other tests.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

T = TypeVar("T")
families = pytest.mark.parametrize("family", [4, 6])
#: What IPv4, UDP, QUIC and an HTTP Datagram put around a packet in the tunnel, in bytes.
OVERHEAD = 58
#: Path MTU discovery stops this close below the truth.
STEP = 8


# -- faults


@pytest.fixture
def faulty(vpn: Vpn) -> Iterator[Vpn]:
    """A connected client on a path that is good at first."""
    if vpn.clients[0].agent() is None:
        vpn.clients[0].up("--all")
    until(lambda: vpn.clients[0].peek()["mtu"] == 1500 - OVERHEAD, "path MTU discovery ends")
    yield vpn
    vpn.world.relay.clear()


FAULTS: dict[str, dict[str, float]] = {
    "loss": {"loss": 0.05},
    "reordering": {"reorder": 0.05},
    "duplication": {"duplicate": 0.05},
    "corruption": {"corrupt": 0.05},
    "jitter": {"delay": 0.02, "jitter": 0.02},
    "all": {"loss": 0.05, "reorder": 0.05, "duplicate": 0.05, "corrupt": 0.05, "jitter": 0.005},
}
faults = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)


@faults
@families
def test_tcp_arrives_whole_both_ways(faulty: Vpn, fault: dict[str, float], family: int) -> None:
    client, site = faulty.world.client, plan.ALPHA.address(family)
    faulty.world.relay.set(**fault)
    size = 500_001
    down = probes.download(client, site, size)
    assert (down.size, down.sha256) == (size, payload_sha256(size))
    data = os.urandom(size)
    up = probes.upload(client, site, data)
    assert (up.size, up.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert faulty.clients[0].peek()["state"] == "connected"


@faults
def test_udp_loses_no_more_than_the_path_does(faulty: Vpn, fault: dict[str, float]) -> None:
    relay = faulty.world.relay
    relay.set(**fault)
    before = gone(faulty) + expired(faulty)
    # Each datagram in a packet of its own, so that a lost packet is one lost datagram.
    echoes = probes.udp_echo(
        faulty.world.client, plan.ALPHA.v4, count=500, size=1000, interval=0.002, wait=2.0
    )
    # A busy machine may let packets wait too long; then the tunnel drops them, and says so.
    assert 500 - echoes.distinct <= gone(faulty) + expired(faulty) - before
    # Damage and duplicates of the path end at the tunnel: QUIC's tag and packet numbers.
    assert (echoes.damaged, len(echoes.numbers)) == (0, echoes.distinct)


def gone(vpn: Vpn) -> int:
    """How many packets the path has taken in either direction, or made useless."""
    lines = [vpn.world.relay.counters("up"), vpn.world.relay.counters("down")]
    return sum(line.lost + line.corrupted + line.queue_full for line in lines)


def expired(vpn: Vpn) -> int:
    """How many packets waited too long at either end of the tunnel."""
    sessions = vpn.gateway.peek()["sessions"]
    drops = [vpn.clients[0].peek()["drops"], *(session["drops"] for session in sessions)]
    return sum(each.get("queue-expired", 0) for each in drops)


def test_a_slow_link_with_a_small_queue_is_shared_by_a_download_and_a_ping(faulty: Vpn) -> None:
    client = faulty.world.client
    faulty.world.relay.set(rate=10e6, queue=20)
    size = 3_000_000
    loading = beside(lambda: probes.download(client, plan.ALPHA.v4, size))
    ping = client.run(
        ["ping", "-n", "-q", "-c", "20", "-i", "0.05", "-W", "5", plan.ALPHA.v6], check=False
    )
    assert loading.result().sha256 == payload_sha256(size)
    assert ping.returncode == 0  # some of them were answered
    assert faulty.world.relay.counters("down").queue_full > 0


def beside(task: Callable[[], T]) -> Future[T]:
    """Run `task` while the test goes on."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# -- a flood


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_flood_through_a_bottleneck_fills_no_memory_and_passes(
    faulty: Vpn, direction: str
) -> None:
    """Forty times what the path carries; then everything is as before."""
    client, gateway = faulty.clients[0], faulty.gateway
    inside, own = INSIDE[4], client.address(4)
    source, target = {
        "up": ((client.host, own), inside),
        "down": ((gateway.host, inside), own),
    }[direction]
    assert gateway.process is not None
    pids = [client.agent(), gateway.process.pid]
    faulty.world.relay.set(rate=5e6, queue=50)
    before = [memory(pid) for pid in pids]
    highest = before
    with Datagrams(*source) as flood:
        begin = time.monotonic()
        sent = 0
        while (now := time.monotonic()) < begin + 3.0:
            while sent * 1200 * 8 < (now - begin) * 200e6:
                try:
                    flood.send(bytes(1172), (target, 9))
                except OSError:  # the device's queue is full, or nobody listens there
                    pass
                sent += 1
            highest = [max(*pair) for pair in zip(highest, map(memory, pids), strict=True)]
    assert sent * 1200 * 8 > 3 * 20e6, "the flood was well above the bottleneck"
    growth = [after - first for first, after in zip(before, highest, strict=True)]
    assert max(growth) < 30 << 20
    faulty.world.relay.clear()
    until(
        lambda: (
            client.host.run(["ping", "-n", "-c", "1", "-W", "1", inside], check=False).returncode
            == 0
        ),
        "a ping is answered again",
    )
    assert client.peek()["state"] == "connected"
    size = 500_000
    assert probes.download(client.host, plan.ALPHA.v4, size).sha256 == payload_sha256(size)


def memory(pid: int | None) -> int:
    """The resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# -- NAT and blocked UDP


def test_a_nat_that_forgets_is_mended_by_the_next_packet(faulty: Vpn) -> None:
    client = faulty.clients[0]
    target = (plan.ALPHA.v4, plan.ECHO_PORT)
    with client.host.call(socket.create_connection, target, 10) as connection:
        stream = connection.makefile("rb")
        for line in (b"one\n", b"two\n", b"three\n"):
            before = peer(faulty)
            faulty.world.router.flush_nat()
            connection.sendall(line)
            assert stream.readline() == line
            until(lambda before=before: peer(faulty) != before, "the gateway follows")
    assert client.peek()["state"] == "connected"


def test_a_nat_that_forgets_is_mended_within_a_keepalive_when_only_the_gateway_talks(
    faulty: Vpn,
) -> None:
    client, gateway = faulty.clients[0], faulty.world.gateway
    before = client.peek()
    faulty.world.router.flush_nat()
    ping = ["ping", "-n", "-c", "1", "-W", "0.5", client.address(4)]
    until(
        lambda: gateway.run(ping, check=False).returncode == 0,
        "the gateway reaches the client",
        KEEPALIVE + 10.0,
    )
    assert client.peek()["since"] == before["since"], "it is still the same session"


def peer(vpn: Vpn) -> str:
    """Where the gateway sends to."""
    session = vpn.gateway.session("first")
    assert session is not None
    address: str = session["peer"]
    return address


def test_udp_blocked_for_five_seconds_is_a_pause(faulty: Vpn) -> None:
    client = faulty.clients[0]
    before = client.peek()
    target = (plan.ALPHA.v6, plan.ECHO_PORT)
    with client.host.call(socket.create_connection, target, 10) as connection:
        faulty.world.relay.set(block_udp=True)
        connection.sendall(b"still there?\n")
        time.sleep(5.0)  # what is tested
        faulty.world.relay.clear()
        connection.settimeout(PATIENCE)
        assert connection.recv(100) == b"still there?\n"
    after = client.peek()
    assert (after["state"], after["since"]) == ("connected", before["since"])


def test_everything_lost_for_longer_than_the_idle_timeout_reconnects_and_connections_live_on(
    faulty: Vpn,
) -> None:
    client = faulty.clients[0]
    before = client.peek()
    target = (plan.ALPHA.v4, plan.ECHO_PORT)
    with client.host.call(socket.create_connection, target, 10) as connection:
        faulty.world.relay.set(loss=1.0)
        until(
            lambda: client.peek()["state"] == "reconnecting",
            "the loss is noticed",
            IDLE_TIMEOUT + KEEPALIVE + 5.0,
        )
        assert "no answer from the gateway" in client.peek()["error"]
        faulty.world.relay.clear()
        until(lambda: client.peek()["state"] == "connected", "connected again", 2 * PATIENCE)
        assert client.peek()["addresses"] == before["addresses"]
        connection.settimeout(PATIENCE)
        connection.sendall(b"still there\n")
        assert connection.recv(100) == b"still there\n"


# -- path MTU


@pytest.fixture
def apart(vpn: Vpn) -> Iterator[Vpn]:
    """Nobody is connected; the test may do with the session and the path what it likes."""
    vpn.settle()
    forget_path_mtus(vpn.world.internet)
    yield vpn
    vpn.settle()


@pytest.fixture
def narrow_world(namespaces_work: None, tmp_path: Path) -> Iterator[Vpn]:
    """A world of its own, with an uplink that is narrow itself, not by a fault."""
    with Vpn(tmp_path, mtu=1400) as vpn:
        yield vpn


def tunnel_mtu(path: int) -> range:
    """What the tunnel may find on a path with that MTU."""
    most = path - OVERHEAD
    return range(max(1280, most - STEP), most + 1)


def device_mtu(host: Namespace) -> int:
    link = host.run(["ip", "-json", "link", "show", "qvpn0"]).stdout
    return int(json.loads(link)[0]["mtu"])


def gateway_mtu(vpn: Vpn) -> int:
    """The largest packet that the gateway sends to the client."""
    session = vpn.gateway.session("first")
    assert session is not None
    return int(session["mtu"])


def uses_the_path(vpn: Vpn, path: int) -> None:
    """Both ends find out what the path carries, and use all of it."""
    expected = tunnel_mtu(path)
    client = vpn.clients[0]
    client.up("--all")
    until(lambda: client.peek()["mtu"] in expected, f"the client finds {expected}")
    until(lambda: gateway_mtu(vpn) in expected, f"the gateway finds {expected}")
    until(lambda: device_mtu(client.host) == client.status()["mtu"], "the device follows")
    for site in (plan.ALPHA.v4, plan.ALPHA.v6):
        got = probes.download(client.host, site, 500_000)
        assert got.sha256 == payload_sha256(500_000)
    largest = str(min(client.peek()["mtu"], gateway_mtu(vpn)) - HEADERS[4])
    client.host.run(["ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", largest, plan.ALPHA.v4])


def test_the_tunnel_mtu_follows_a_narrow_uplink(narrow_world: Vpn) -> None:
    uses_the_path(narrow_world, 1400)


@pytest.mark.parametrize(("path", "icmp"), [(1380, False), (1280 + OVERHEAD, True)])
def test_the_tunnel_mtu_follows_a_narrow_path(apart: Vpn, path: int, icmp: bool) -> None:
    """Whether routers on it say so or swallow what is too large."""
    apart.world.relay.set(mtu=path, mtu_icmp=icmp)
    uses_the_path(apart, path)


def refused_as_too_narrow(client: VpnClient) -> None:
    """Connecting fails in one line and leaves nothing."""
    with leaves_nothing(client.host):
        words = ("up", "home", "--transport", "quic")
        done = client.command(*words, check=False, timeout=3 * PATIENCE)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "cannot carry packets of 1280 bytes inside the tunnel" in done.stderr
        status = client.status()
        assert (status["state"], status["reason"]) == ("failed", "path-mtu")
    client.command("down")


@pytest.mark.parametrize(("path", "icmp"), [(1300, True), (1280 + OVERHEAD - 1, False)])
def test_a_path_too_narrow_for_ipv6_is_refused(apart: Vpn, path: int, icmp: bool) -> None:
    apart.world.relay.set(mtu=path, mtu_icmp=icmp)
    refused_as_too_narrow(apart.clients[0])


def test_a_path_too_narrow_for_quic_is_wide_enough_for_tls(apart: Vpn) -> None:
    apart.world.relay.set(mtu=1300, mtu_icmp=True)
    client = apart.clients[0]
    client.up()
    assert client.peek()["transport"] == "tls"
    assert probes.download(client.host, plan.ALPHA.v6, 100_000).size == 100_000
    client.down()


def test_a_gateway_whose_own_uplink_is_too_narrow_is_refused_in_the_same_words(apart: Vpn) -> None:
    """It knows at once, and so before the client does."""
    host = apart.world.gateway
    host.ip("link set eth0 mtu 1300")
    try:
        refused_as_too_narrow(apart.clients[0])
    finally:
        host.ip("link set eth0 mtu 1500")


#: Slow enough that a transfer of TRANSFER bytes is under way when the path changes.
RATE = 20e6
TRANSFER = 6_000_000
SHRUNK = 1400


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_path_that_becomes_a_black_hole_for_full_packets_is_noticed_and_used_narrower(
    apart: Vpn, direction: str
) -> None:
    """No ICMP message tells: RFC 8899 section 4.3."""
    client = apart.clients[0]
    client.up("--all")
    until(lambda: client.peek()["mtu"] == 1500 - OVERHEAD, "path MTU discovery ends")
    until(lambda: gateway_mtu(apart) == 1500 - OVERHEAD, "path MTU discovery ends")
    since = client.peek()["since"]
    apart.world.relay.set(rate=RATE, queue=200)
    data = os.urandom(TRANSFER)
    transfers: dict[str, Callable[[], probes.Transfer]] = {
        "up": lambda: probes.upload(client.host, plan.ALPHA.v4, data),
        "down": lambda: probes.download(client.host, plan.ALPHA.v4, TRANSFER),
    }
    moved = {"up": "tx_bytes", "down": "rx_bytes"}[direction]
    running = beside(transfers[direction])
    until(lambda: client.peek()[moved] > TRANSFER / 6, "the transfer is under way")
    apart.world.relay.set(direction, mtu=SHRUNK)
    assert not running.done()
    if direction == "up":
        until(lambda: client.peek()["mtu"] in tunnel_mtu(SHRUNK), "the client notices")
        until(lambda: device_mtu(client.host) in tunnel_mtu(SHRUNK), "the device follows")
    else:
        until(lambda: gateway_mtu(apart) in tunnel_mtu(SHRUNK), "the gateway notices")
    expected = {"up": hashlib.sha256(data).hexdigest(), "down": payload_sha256(TRANSFER)}
    assert running.result(timeout=60).sha256 == expected[direction]
    assert (client.peek()["state"], client.peek()["since"]) == ("connected", since)


def test_the_path_may_be_ipv6(namespaces_work: None, tmp_path: Path) -> None:
    with Vpn(tmp_path, address=plan.GATEWAY6) as vpn:
        client = vpn.clients[0]
        client.up("--all")
        expected = 1500 - OVERHEAD - 20
        until(lambda: client.peek()["mtu"] == expected, "path MTU discovery ends")
        assert device_mtu(client.host) == expected
        assert client.peek()["gateway"] == f"[{plan.GATEWAY6}]"
        assert peer(vpn).startswith(f"[{plan.CLIENT6}]:")
        assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4
        assert probes.source_seen(client.host, plan.ALPHA.v6) == plan.GATEWAY6
        for site in (plan.ALPHA.v4, plan.ALPHA.v6):
            got = probes.download(client.host, site, 1_000_000)
            assert got.sha256 == payload_sha256(1_000_000)
