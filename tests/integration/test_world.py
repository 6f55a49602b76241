"""The test world keeps its promises: what tests build on must itself be true."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.world import (
    Capture,
    Namespace,
    Seen,
    World,
    WorldError,
    leftovers,
    own,
    plan,
    probes,
    snapshot,
    unavailable,
)
from tests.world.packets import UDP
from tests.world.payload import payload_sha256
from tests.world.vpn import until

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
families = pytest.mark.parametrize("family", [4, 6])


def site(which: plan.Site, family: int) -> str:
    return which.v4 if family == 4 else which.v6


@pytest.fixture
def namespace(namespaces_work: None) -> Iterator[Namespace]:
    with Namespace("alone") as namespace:
        yield namespace


# -- who reaches whom

INTERNET = [address for each in plan.SITES for address in (each.v4, each.v6)]
GATEWAY = [plan.GATEWAY4, plan.GATEWAY6]
ROUTER = [plan.ROUTER4, plan.ROUTER6]


@pytest.mark.parametrize(
    ("origin", "targets"),
    [
        ("client", [*INTERNET, *GATEWAY, *ROUTER, plan.LANS[0].router4, plan.LANS[0].router6]),
        ("client2", [*INTERNET, *GATEWAY, *ROUTER]),
        ("router", [*INTERNET, *GATEWAY, plan.CLIENT4, plan.CLIENT6]),
        ("gateway", [*INTERNET, *ROUTER]),
        ("internet", [*GATEWAY, *ROUTER]),
    ],
)
def test_everyone_reaches_whom_they_should(
    shared_world: World, origin: str, targets: list[str]
) -> None:
    host: Namespace = getattr(shared_world, origin)
    for target in targets:
        host.run(["ping", "-n", "-c", "1", "-W", "5", target])


@pytest.mark.parametrize("target", [plan.CLIENT4, plan.CLIENT6])
def test_the_internet_does_not_reach_the_client_unasked(shared_world: World, target: str) -> None:
    argv = ["ping", "-n", "-c", "1", "-W", "0.3", target]
    assert shared_world.gateway.run(argv, check=False).returncode


@pytest.mark.parametrize("which", [plan.ALPHA, plan.BETA])
def test_the_internet_sees_the_nat_for_ipv4_and_the_client_itself_for_ipv6(
    shared_world: World, which: plan.Site
) -> None:
    seen = {
        host.label: (probes.source_seen(host, which.v4), probes.source_seen(host, which.v6))
        for host in (shared_world.client, shared_world.client2, shared_world.gateway)
    }
    assert seen == {
        "client": (plan.ROUTER4, plan.CLIENT6),
        "client2": (plan.ROUTER4, plan.LANS[1].client6()),
        "gateway": (plan.GATEWAY4, plan.GATEWAY6),
    }


# -- services


@families
@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_a_download_is_the_payload(shared_world: World, family: int, size: int) -> None:
    got = probes.download(shared_world.client, site(plan.ALPHA, family), size)
    assert (got.size, got.sha256) == (size, payload_sha256(size))


@families
def test_an_upload_arrives_whole(shared_world: World, family: int) -> None:
    data = os.urandom(300_000)
    got = probes.upload(shared_world.client, site(plan.BETA, family), data)
    assert got.size == len(data)
    assert got.sha256 == hashlib.sha256(data).hexdigest()


def test_an_unknown_path_is_an_error(shared_world: World) -> None:
    with pytest.raises(OSError, match="404"):
        probes.http_get(shared_world.client, plan.ALPHA.v4, "/nothing")


@families
@pytest.mark.parametrize("size", [8, 1400, 9000])
def test_udp_echo_returns_datagrams_of_any_size(
    shared_world: World, family: int, size: int
) -> None:
    echoes = probes.udp_echo(shared_world.client, site(plan.ALPHA, family), count=5, size=size)
    assert (sorted(echoes.numbers), echoes.damaged) == ([0, 1, 2, 3, 4], 0)


@families
def test_tcp_echo_returns_a_stream(shared_world: World, family: int) -> None:
    target = (site(plan.BETA, family), plan.ECHO_PORT)
    connection = shared_world.client.call(socket.create_connection, target, 5)
    with connection, connection.makefile("rb") as stream:
        connection.sendall(b"over and out\n")
        assert stream.readline() == b"over and out\n"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (["www.alpha.test", "A"], plan.ALPHA.v4),
        (["www.alpha.test", "AAAA"], plan.ALPHA.v6),
        (["gateway.test", "A"], plan.GATEWAY4),
        (["+tcp", "www.beta.test", "A"], plan.BETA.v4),
        (["whoami.test", "A"], plan.ROUTER4),
        (["@" + plan.COMPANY_DNS.v6, "whoami.test", "AAAA"], plan.CLIENT6),
        (["nowhere.test", "A"], ""),
    ],
)
def test_programs_in_the_client_resolve_names(
    shared_world: World, question: list[str], answer: str
) -> None:
    assert shared_world.client.run(["dig", "+short", *question]).stdout.strip() == answer


def test_the_resolver_says_who_asked_what_and_where(shared_world: World) -> None:
    name = "leak-7261.test"
    shared_world.client.run(["dig", "+short", "@" + plan.COMPANY_DNS.v4, name, "AAAA"])
    asked = [entry for entry in probes.dns_queries(shared_world.internet) if entry[1] == name]
    assert asked == [(plan.ROUTER4, name, 28, "udp", plan.COMPANY_DNS.v4)]


# -- the relay


def test_a_perfect_relay_carries_over_100_mbit_per_second(world: World) -> None:
    def fast() -> bool:
        got = probes.download(world.client, plan.ALPHA.v4, 10_000_000)
        assert got.sha256 == payload_sha256(10_000_000)
        return got.mbit_per_second > 100

    until(fast, "100 Mbit/s, once the machine has time for it")
    counters = world.relay.counters("down")
    assert counters.left == counters.entered
    assert counters.left_bytes > 10_000_000


@families
def test_delay_adds_to_the_round_trip_in_either_direction(world: World, family: int) -> None:
    target = site(plan.ALPHA, family)
    world.relay.set("up", delay=0.03)
    assert 30 <= probes.ping_ms(world.client, target, 20) < 50
    world.relay.set("down", delay=0.05)
    assert 80 <= probes.ping_ms(world.client, target, 20) < 110
    world.relay.clear()
    assert probes.ping_ms(world.client, target, 20) < 20


def test_jitter_spreads_round_trips_without_reordering(world: World) -> None:
    world.relay.set("down", jitter=0.04)
    echoes = probes.udp_echo(world.client, plan.ALPHA.v4, count=50, interval=0.005)
    assert max(echoes.times) - min(echoes.times) > 0.015
    assert echoes.overtaken == 0


def test_loss_is_the_share_it_says(world: World) -> None:
    world.relay.set("up", loss=0.2)
    echoes = probes.udp_echo(world.client, plan.ALPHA.v4, count=500, interval=0.0005, wait=2.0)
    assert 350 < echoes.distinct < 450
    assert world.relay.counters("up").lost >= 500 - echoes.distinct
    assert world.relay.counters("down").lost == 0


def test_reordering_lets_later_packets_arrive_first(world: World) -> None:
    world.relay.set("up", reorder=0.1)
    echoes = probes.udp_echo(world.client, plan.ALPHA.v6, count=200, interval=0.001)
    assert echoes.distinct == 200
    assert echoes.overtaken > 3


def test_duplicates_arrive_twice(world: World) -> None:
    world.relay.set("down", duplicate=0.3)
    echoes = probes.udp_echo(world.client, plan.ALPHA.v4, count=200, interval=0.0005)
    assert echoes.distinct == 200
    assert len(echoes.numbers) - echoes.distinct > 20


@families
def test_corruption_reaches_the_application(world: World, family: int) -> None:
    world.relay.set("up", corrupt=0.3)
    target = site(plan.ALPHA, family)
    echoes = probes.udp_echo(world.client, target, count=200, interval=0.0005, wait=2.0)
    assert 30 < echoes.damaged < 100
    assert echoes.damaged + echoes.distinct == 200


def test_a_rate_limits_throughput(world: World) -> None:
    world.relay.set("down", rate=20e6, queue=50)
    got = probes.download(world.client, plan.ALPHA.v4, 2_000_000)
    assert got.sha256 == payload_sha256(2_000_000)
    assert 2 < got.mbit_per_second < 21


def test_a_short_queue_drops_a_burst(world: World) -> None:
    world.relay.set("up", rate=1e6, queue=5)
    echoes = probes.udp_echo(world.client, plan.ALPHA.v4, count=50, size=1000, wait=0.3)
    assert 1 <= echoes.distinct < 20
    assert world.relay.counters("up").queue_full >= 50 - echoes.distinct


@families
def test_a_black_hole_swallows_large_packets_only(world: World, family: int) -> None:
    world.relay.set("up", mtu=1300)
    target = site(plan.ALPHA, family)
    assert probes.udp_echo(world.client, target, size=1200).distinct == 1
    assert probes.udp_echo(world.client, target, size=1400, wait=0.2).distinct == 0
    assert world.relay.counters("up").too_big == 1


@families
def test_a_router_that_answers_teaches_the_sender_its_mtu(world: World, family: int) -> None:
    world.relay.set("up", mtu=1300, mtu_icmp=True)
    kind, level, option = (
        (socket.AF_INET, socket.IPPROTO_IP, 14)  # IP_MTU
        if family == 4
        else (socket.AF_INET6, socket.IPPROTO_IPV6, 24)  # IPV6_MTU
    )
    with world.client.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.connect((site(plan.ALPHA, family), plan.ECHO_PORT))
        assert sock.getsockopt(level, option) == 1500
        sock.send(bytes(1400))
        refused = select.poll()
        refused.register(sock, select.POLLERR)
        assert refused.poll(5000)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        assert sock.getsockopt(level, option) == 1300


def test_tcp_stalls_in_a_black_hole_and_survives_an_honest_router(world: World) -> None:
    world.relay.set("down", mtu=1300)
    with pytest.raises(TimeoutError):
        probes.download(world.client, plan.ALPHA.v4, 100_000, timeout=0.5)
    world.relay.set("down", mtu_icmp=True)
    assert probes.download(world.client, plan.ALPHA.v4, 100_000).size == 100_000


@families
def test_blocked_udp_leaves_tcp_and_ping_alone(world: World, family: int) -> None:
    target = site(plan.ALPHA, family)
    world.relay.set(block_udp=True)
    assert probes.udp_echo(world.client, target, wait=0.2).distinct == 0
    assert probes.source_seen(world.client, target)
    assert probes.ping_ms(world.client, target, 20) < 20
    world.relay.set(block_udp=443)
    assert probes.udp_echo(world.client, target).distinct == 1


def test_a_fault_that_does_not_exist_is_refused(world: World) -> None:
    with pytest.raises(TypeError):
        world.relay.set(lossy=0.1)
    with pytest.raises(ValueError, match="probability"):
        world.relay.set(loss=2)
    assert probes.source_seen(world.client, plan.ALPHA.v4) == plan.ROUTER4


# -- interruptions


def test_a_flushed_nat_forgets_the_way_back_and_chooses_a_new_port(world: World) -> None:
    here = world.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    there = world.internet.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with here, there:
        here.settimeout(5)
        there.settimeout(5)
        there.bind((plan.ALPHA.v4, 9000))
        here.sendto(b"hello", (plan.ALPHA.v4, 9000))
        before = there.recvfrom(100)[1]
        there.sendto(b"first", before)
        assert here.recv(100) == b"first"

        world.router.flush_nat()
        there.sendto(b"too late", before)
        here.settimeout(0.2)
        with pytest.raises(TimeoutError):
            here.recv(100)

        here.settimeout(5)
        here.sendto(b"again", (plan.ALPHA.v4, 9000))
        after = there.recvfrom(100)[1]
        assert after[0] == before[0] == plan.ROUTER4
        assert after[1] != before[1]
        there.sendto(b"welcome", after)
        assert here.recv(100) == b"welcome"


def test_a_moved_client_has_another_address(world: World) -> None:
    world.move_client(9)
    assert probes.source_seen(world.client, plan.ALPHA.v6) == plan.LANS[0].client6(9)
    assert probes.source_seen(world.client, plan.ALPHA.v4) == plan.ROUTER4
    assert plan.LANS[0].client4(9) in world.client.ip("addr show dev eth0")
    assert plan.CLIENT4 not in world.client.ip("addr show dev eth0")


def test_a_client_whose_link_went_down_can_be_mended(world: World) -> None:
    before = snapshot(world.client)
    world.client.set_link("eth0", up=False)
    with pytest.raises(OSError, match="unreachable"):
        probes.source_seen(world.client, plan.ALPHA.v4)
    world.move_client(2)
    assert probes.source_seen(world.client, plan.ALPHA.v4) == plan.ROUTER4
    assert snapshot(world.client) == before


def test_an_unplugged_client_loses_its_carrier_and_recovers_as_it_was(world: World) -> None:
    world.unplug_client()
    assert "NO-CARRIER" in world.client.ip("link show dev eth0")
    assert probes.udp_echo(world.client, plan.ALPHA.v4, wait=0.2).distinct == 0
    world.plug_client()
    assert probes.source_seen(world.client, plan.ALPHA.v4) == plan.ROUTER4
    assert probes.source_seen(world.client, plan.ALPHA.v6) == plan.CLIENT6


# -- observation


@families
def test_a_capture_counts_what_matches_in_both_directions(shared_world: World, family: int) -> None:
    target = site(plan.BETA, family)

    def to_or_from(seen: Seen) -> bool:
        addresses = (seen.packet.source, seen.packet.destination)
        return target in addresses and seen.packet.protocol == UDP

    with Capture(shared_world.client, "eth0", to_or_from) as capture:
        probes.udp_echo(shared_world.client, target, count=20)
        probes.udp_echo(shared_world.client, site(plan.ALPHA, family), count=20)
        probes.source_seen(shared_world.client, target)
    assert capture.count == len(capture.seen) == 40
    out = [seen.packet for seen in capture.seen if seen.outgoing]
    assert [packet.destination_port for packet in out] == [plan.ECHO_PORT] * 20
    assert {packet.source for packet in out} == {plan.CLIENT4 if family == 4 else plan.CLIENT6}


def test_a_mistake_in_a_capture_is_not_silence(shared_world: World) -> None:
    def broken(seen: Seen) -> bool:
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"), Capture(shared_world.client, "eth0", broken):
        probes.udp_echo(shared_world.client, plan.ALPHA.v4)


def test_a_snapshot_does_not_change_with_traffic(shared_world: World) -> None:
    before = {host.name: snapshot(host) for host in shared_world.namespaces}
    probes.download(shared_world.client, plan.ALPHA.v6, 100_000)
    probes.udp_echo(shared_world.client, plan.ALPHA.v4, size=9000)
    assert {host.name: snapshot(host) for host in shared_world.namespaces} == before


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("ip address add 192.0.2.9/32 dev lo", "ip address del 192.0.2.9/32 dev lo"),
        ("ip link set lo mtu 9000", "ip link set lo mtu 65536"),
        ("ip link add name extra type bridge", "ip link del extra"),
        ("ip rule add fwmark 7 lookup 77", "ip rule del fwmark 7"),
        ("ip -6 rule add fwmark 7 lookup 77", "ip -6 rule del fwmark 7"),
        ("ip route add 192.0.2.0/24 dev lo table 77", "ip route flush table 77"),
        ("ip -6 route add 2001:db8::/32 dev lo table 77", "ip -6 route flush table 77"),
        ("nft add table inet extra", "nft delete table inet extra"),
        ("sysctl -qw net.ipv4.ip_forward=1", "sysctl -qw net.ipv4.ip_forward=0"),
        (
            "sysctl -qw net.ipv6.conf.lo.disable_ipv6=1",
            "sysctl -qw net.ipv6.conf.lo.disable_ipv6=0",
        ),
    ],
)
def test_a_snapshot_shows_every_change_and_its_undoing(
    namespace: Namespace, change: str, undo: str
) -> None:
    before = snapshot(namespace)
    namespace.run(change.split())
    assert snapshot(namespace) != before
    namespace.run(undo.split())
    assert snapshot(namespace) == before


def test_a_snapshot_shows_the_resolvers(namespace: Namespace) -> None:
    namespace.set_resolvers(["192.0.2.53"])
    before = snapshot(namespace)
    namespace.run(["sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf"])
    assert "192.0.2.1" in snapshot(namespace)
    namespace.set_resolvers(["192.0.2.53"])
    assert snapshot(namespace) == before


# -- namespaces


def test_a_function_runs_inside_and_its_sockets_stay_there(namespace: Namespace) -> None:
    listener = namespace.call(socket.create_server, ("127.0.0.1", 8080))
    with listener:
        client = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        with client:
            client.connect(("127.0.0.1", 8080))
        with socket.socket() as outside, pytest.raises(ConnectionRefusedError):
            outside.connect(("127.0.0.1", 8080))


def test_what_a_function_raises_inside_is_raised_here(namespace: Namespace) -> None:
    with pytest.raises(ZeroDivisionError):
        namespace.call(divmod, 1, 0)


def test_a_program_that_fails_says_why(namespace: Namespace) -> None:
    with pytest.raises(WorldError, match="nosuch"):
        namespace.run(["ip", "link", "show", "nosuch"])
    assert namespace.run(["false"], check=False).returncode == 1


def test_programs_end_with_their_namespace(namespaces_work: None) -> None:
    with Namespace("short") as namespace:
        willing = namespace.popen(["sleep", "100"])
        argv = ["sh", "-c", "trap '' TERM; echo deaf; sleep 100; sleep 100"]
        deaf = namespace.popen(argv, stdout=subprocess.PIPE)
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == b"deaf\n"
    assert willing.returncode == -signal.SIGTERM
    assert deaf.returncode == -signal.SIGKILL


def test_nothing_is_left_after_an_error(namespaces_work: None) -> None:
    before = own()
    world = World()
    names = [namespace.name for namespace in world.namespaces]
    with pytest.raises(LookupError), world:  # noqa: PT012
        assert set(names) <= set(own())
        raise LookupError
    assert own() == before
    assert not any(Path("/etc/netns", name).exists() for name in names)


SCRIPT = """
import sys, time
from tests.world import World
with World() as world:
    world.client.popen(["setsid", "sleep", "1000"])
    print(*(namespace.name for namespace in world.namespaces), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], set[str]]]:
    """A process that has a world of its own, and the names of its namespaces."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        names = set(process.stdout.readline().split())
        assert len(names) == 4
        try:
            yield process, names
        finally:
            process.kill()


def existing(names: set[str]) -> set[str]:
    return {name for name in names if Path("/run/netns", name).exists()}


def test_sigterm_leaves_nothing(namespaces_work: None) -> None:
    with another_process() as (process, names):
        assert existing(names) == names
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    assert not existing(names)


def test_what_sigkill_leaves_is_removed_by_the_next_world(namespaces_work: None) -> None:
    with another_process() as (process, names):
        process.kill()
        process.wait(20)
    assert existing(names) <= set(leftovers())
    with another_process() as (process, others):
        assert not existing(names)
        assert existing(others) == others
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
    assert not existing(others)


def test_without_root_there_is_one_clear_line(namespaces_work: None) -> None:
    os.seteuid(65534)
    try:
        reason = unavailable()
        with pytest.raises(WorldError, match="need root: run as root"), World():
            pass
    finally:
        os.seteuid(0)
    assert reason is not None
    assert "\n" not in reason
