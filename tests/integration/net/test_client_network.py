"""A client's network in the real kernel: routed as planned, changed without a gap, then gone."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from qvpn_core.client.explain import explain
from qvpn_core.client.planner import (
    GatewayOffer,
    RoutePolicy,
    SystemState,
    plan_network,
)
from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.net.apply import ClientNetwork, clean_leftovers
from qvpn_core.net.guardian import Guardian
from qvpn_core.net.names import CLIENT_TUN, FWMARK
from qvpn_core.net.plan import IPAddress, Network, NetworkPlan
from qvpn_core.net.records import RemoveRules
from qvpn_core.net.tun import Tun

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns
ROOT = str(Path(__file__).resolve().parents[3])
OWN4, OWN6 = ip_interface("10.86.0.2/32"), ip_interface("fd86::2/128")
V4, V6 = ip_network("0.0.0.0/0"), ip_network("::/0")
GATEWAY = ("192.0.2.2", 443)


def plan_for(policy: RoutePolicy, *routes: Network, mtu: int = 1300) -> NetworkPlan:
    offer = GatewayOffer((OWN4, OWN6), routes or (V4, V6))
    return plan_network(policy, offer, SystemState((GATEWAY,)), mtu)


FULL = plan_for(RoutePolicy())
SPLIT = plan_for(RoutePolicy("only", (ip_network("198.51.100.0/24"),)), mtu=1400)


def way(netlink: IPRoute, destination: IPAddress, mark: int = 0) -> str:
    """Where the kernel sends a packet."""
    try:
        (route,) = netlink.route("get", dst=str(destination), **({"mark": mark} if mark else {}))
    except NetlinkError as error:
        if error.code != errno.EHOSTUNREACH:
            raise
        return "refused"
    if route["type"] == 7:  # RTN_UNREACHABLE, which IPv6 tells instead of failing
        return "refused"
    return "tunnel" if route.get("oif") == socket.if_nametoindex(CLIENT_TUN) else "direct"


def guardian_of(process: int) -> int:
    """The process id of a client's guardian."""
    threads = Path(f"/proc/{process}/task").iterdir()
    children = [child for thread in threads for child in (thread / "children").read_text().split()]
    (child,) = [c for c in children if b"guardian" in Path(f"/proc/{c}/cmdline").read_bytes()]
    return int(child)


def wait_for_end(process: int, act: Callable[[], object]) -> None:
    """Do `act` and wait until the process has ended."""
    handle = os.pidfd_open(process)
    try:
        act()
        assert select.select([handle], [], [], 20)[0], "it is still there"
    finally:
        os.close(handle)


@pytest.fixture
def routed(namespace: Namespace, neighbour: Namespace) -> Namespace:
    """A namespace with a LAN and a default route through it."""
    namespace.ip("route add default via 192.0.2.2")
    namespace.ip("-6 route add default via 2001:db8:1::2")
    return namespace


# --- routed as planned ------------------------------------------------------------------------


def test_unmarked_traffic_uses_the_tunnel_and_the_transport_does_not(routed: Namespace) -> None:
    async def scenario() -> None:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            assert network.plan == FULL

            def look() -> None:
                with IPRoute() as netlink:
                    for text in ("203.0.113.9", "192.0.2.2", "2606:4700::1", "2001:db8:1::2"):
                        assert way(netlink, ip_address(text)) == "tunnel"
                        assert way(netlink, ip_address(text), FWMARK) == "direct"

            await asyncio.to_thread(look)
            await network.remove()
            assert network.plan is None

    asyncio.run(scenario())


def test_the_kernel_agrees_with_explain(routed: Namespace) -> None:
    dice = random.Random(9484)
    anchors = [int(ip_address(text)) for text in ("10.0.0.0", "192.0.2.0", "203.0.113.0")]
    anchors6 = [int(ip_address(text)) for text in ("2001:db8::", "2606:4700::", "fd00::")]

    def address() -> IPAddress:
        if dice.random() < 0.5:
            return ip_address(dice.choice(anchors) ^ 1 << dice.randrange(32))
        return type(ip_address("::"))(dice.choice(anchors6) ^ 1 << dice.randrange(128))

    def prefix() -> Network:
        start = address()
        if start.version == 4:
            return IPv4Network((int(start), dice.randint(1, 32)), strict=False)
        return IPv6Network((int(start), dice.randint(1, 128)), strict=False)

    def prefixes(most: int) -> tuple[Network, ...]:
        return tuple(prefix() for _ in range(dice.randint(1, most)))

    def policy() -> RoutePolicy:
        mode = dice.choice(("all", "only", "all-except"))
        if mode == "only":
            return RoutePolicy("only", prefixes(5), prefixes(2))
        return RoutePolicy("all") if mode == "all" else RoutePolicy("all-except", (), prefixes(5))

    def plan() -> NetworkPlan:
        own = dice.choice(((OWN4,), (OWN6,), (OWN4, OWN6)))
        routes = dice.choice(((V4,), (V6,), (V4, V6), prefixes(5)))
        return plan_network(policy(), GatewayOffer(own, routes), SystemState((GATEWAY,)), 1300)

    def compare(made: NetworkPlan) -> int:
        edges = [route.prefix[-1] for route in made.routes]
        # What the local table answers before any rule of ours is asked is not ours to explain.
        asked = {
            d
            for d in [*edges, *(address() for _ in range(20))]
            if not d.is_multicast and not d.is_loopback and d.is_global | d.is_private
        }
        with IPRoute() as netlink:
            for destination in asked:
                expected = explain(made, destination)
                assert way(netlink, destination) == expected.way, (expected, made)
        return len(asked)

    async def scenario() -> int:
        compared = 0
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            for _ in range(20):
                made = plan()
                await network.update(made)
                compared += await asyncio.to_thread(compare, made)
            await network.remove()
        return compared

    assert asyncio.run(scenario()) > 300


# --- changed without a gap --------------------------------------------------------------------


def test_an_update_never_lets_go_of_what_both_plans_tunnel(routed: Namespace) -> None:
    narrow = plan_for(RoutePolicy("only", (ip_network("203.0.113.0/24"), V6)), mtu=1400)
    wide = plan_for(RoutePolicy("all-except", excluded=(ip_network("203.0.0.0/17"),)))
    destinations = [ip_address("203.0.113.9"), ip_address("2606:4700::1")]
    assert all(explain(made, d).way == "tunnel" for made in (narrow, FULL) for d in destinations)
    stop = threading.Event()
    seen: list[str] = []

    def watch() -> None:
        with IPRoute() as netlink:
            while not stop.is_set():
                seen.extend(way(netlink, destination) for destination in destinations)

    async def scenario() -> None:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            watcher = asyncio.create_task(asyncio.to_thread(watch))
            for _ in range(10):
                await network.update(narrow)
                assert "mtu 1400" in await asyncio.to_thread(routed.ip, "link show qvpn0")
                await network.update(FULL)
            stop.set()
            await watcher
            await network.update(wide)
            assert "mtu 1300" in await asyncio.to_thread(routed.ip, "link show qvpn0")
            await network.remove()

    try:
        asyncio.run(scenario())
    finally:
        stop.set()
    assert len(seen) > 100
    assert set(seen) == {"tunnel"}


def test_an_update_replaces_addresses_and_drops_a_version(routed: Namespace) -> None:
    offer = GatewayOffer((ip_interface("10.86.0.9"),), (ip_network("10.0.0.0/8"),))
    small = plan_network(RoutePolicy(), offer, SystemState(), 1200)

    async def scenario() -> tuple[str, str]:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            await network.update(small)
            between = routed.ip("-o address show dev qvpn0") + routed.ip("-6 rule")
            await network.update(FULL)
            after = routed.ip("-o address show dev qvpn0") + routed.ip("-6 rule")
            await network.remove()
            return between, after

    between, after = asyncio.run(scenario())
    assert "10.86.0.9/32" in between
    assert "10.86.0.2/32" not in between
    assert "9484" not in between
    assert "fd86::2/128" in after
    assert "9484" in after
    assert "10.86.0.9" not in after


# --- gone afterwards --------------------------------------------------------------------------


def test_remove_leaves_the_machine_as_it_was(routed: Namespace) -> None:
    before = routed.snapshot()

    async def scenario() -> None:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            await network.update(SPLIT)
            await network.remove()
            await network.remove()

    asyncio.run(scenario())
    assert routed.snapshot() == before


def test_a_setting_that_was_on_stays_on(namespace: Namespace) -> None:
    setting = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")

    async def scenario() -> str:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(SPLIT)
            during = await asyncio.to_thread(setting.read_text)
            await network.remove()
        return during

    assert asyncio.run(scenario()) == "1\n"
    assert setting.read_text() == "0\n"
    setting.write_text("1")
    assert asyncio.run(scenario()) == "1\n"
    assert setting.read_text() == "1\n"


def test_a_failure_half_way_is_undone(routed: Namespace) -> None:
    before = routed.snapshot()

    async def scenario() -> None:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            impossible = plan_for(RoutePolicy(), mtu=70000)
            with pytest.raises(NetworkSetupFailed, match="70000"):
                await ClientNetwork(tun).apply(impossible)

    asyncio.run(scenario())
    assert routed.snapshot() == before


@pytest.mark.parametrize("after", [0.0, 0.05, 0.1, 0.15])
def test_cancelled_at_any_moment_it_leaves_nothing(routed: Namespace, after: float) -> None:
    before = routed.snapshot()

    async def scenario() -> None:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            applying = asyncio.create_task(network.apply(FULL))
            await asyncio.wait([applying], timeout=after)
            applying.cancel()
            await asyncio.wait([applying])
            if not applying.cancelled():
                await network.remove()
            assert network.plan is None

    asyncio.run(scenario())
    assert routed.snapshot() == before


CLIENT = f"""
import asyncio, sys
from ipaddress import ip_interface, ip_network
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.net.apply import ClientNetwork
from qvpn_core.net.tun import Tun
async def main():
    offer = GatewayOffer(
        (ip_interface("10.86.0.2"), ip_interface("fd86::2")),
        (ip_network("0.0.0.0/0"), ip_network("::/0")),
    )
    state = SystemState((("192.0.2.2", 443),))
    with Tun.open("{CLIENT_TUN}", 1300) as tun:
        network = ClientNetwork(tun)
        await network.apply(plan_network(RoutePolicy(), offer, state, 1300))
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await network.remove()
        print("down", flush=True)
asyncio.run(main())
"""


@dataclass
class Client:
    """A client process with its network up."""

    process: subprocess.Popen[str]
    guardian: int
    before: str


@pytest.fixture
def client(routed: Namespace) -> Iterator[Client]:
    before = routed.snapshot()
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield Client(process, guardian_of(process.pid), before)
        finally:
            process.kill()


def test_sigkill_leaves_no_device_route_rule_or_table(routed: Namespace, client: Client) -> None:
    assert routed.snapshot() != client.before
    wait_for_end(client.guardian, client.process.kill)
    assert routed.snapshot() == client.before


def test_killed_together_with_its_guardian_it_leaves_the_network_usable(
    routed: Namespace, client: Client
) -> None:
    wait_for_end(client.guardian, lambda: os.kill(client.guardian, signal.SIGKILL))
    wait_for_end(client.process.pid, client.process.kill)
    assert "9484" in routed.ip("rule")
    assert "dev eth0" in routed.ip("route get 203.0.113.9")
    asyncio.run(clean_leftovers())
    # All but the setting, which is harmless alone and unknown to the next client.
    after = routed.snapshot().replace("src_valid_mark=1", "src_valid_mark=0")
    assert after == client.before


def test_without_its_guardian_a_client_cleans_up_itself(routed: Namespace, client: Client) -> None:
    wait_for_end(client.guardian, lambda: os.kill(client.guardian, signal.SIGKILL))
    assert client.process.communicate("", timeout=20)[0] == "down\n"
    assert routed.snapshot() == client.before


def test_cleaning_leaves_a_living_client_alone(routed: Namespace, client: Client) -> None:
    during = routed.snapshot()
    asyncio.run(clean_leftovers())
    assert routed.snapshot() == during


@pytest.mark.usefixtures("client")
def test_a_second_client_is_told_and_harms_nothing(routed: Namespace) -> None:
    during = routed.snapshot()

    async def scenario() -> None:
        with Tun.open("qvpn1", 1300) as tun:
            with pytest.raises(NetworkSetupFailed, match="another qvpn tunnel"):
                await ClientNetwork(tun).apply(FULL)

    asyncio.run(scenario())
    assert routed.snapshot() == during


def test_the_next_client_waits_for_the_guardian_of_a_killed_one(
    routed: Namespace, client: Client
) -> None:
    async def scenario() -> str:
        client.process.kill()
        client.process.wait()
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            rules = routed.ip("rule")
            await network.remove()
        return rules

    assert "9484" in asyncio.run(scenario())
    assert routed.snapshot() == client.before


@pytest.mark.usefixtures("namespace")
def test_the_guardian_is_deaf_to_signals_and_holds_no_descriptor_of_ours() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    guardian = Guardian.start()
    child = guardian_of(os.getpid())
    try:
        os.close(write)
        assert os.read(read, 1) == b""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child, number)
        guardian.hold([RemoveRules()])
        assert os.getsid(child) == child
        outputs = {os.readlink(f"/proc/{child}/fd/{fd}") for fd in (1, 2)}
        assert outputs == {"/dev/null"}
    finally:
        os.close(read)
        guardian.release()


# --- under reverse-path filters ---------------------------------------------------------------


@pytest.mark.parametrize("without", [None, "inet qvpn_client", "arp qvpn_client"])
def test_the_gateway_is_heard_under_a_strict_reverse_path_filter(
    routed: Namespace, neighbour: Namespace, without: str | None
) -> None:
    """The reply needs an ARP exchange first, which the same filter would drop. Without either
    of our tables the reply is lost: that is what they are for."""
    for name in ("all", "eth0"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("1")
    with neighbour.entered():
        far = socket.socket(type=socket.SOCK_DGRAM)
        far.bind(GATEWAY)

    async def scenario() -> bool:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(FULL)
            if without is not None:
                routed.sh(f"nft delete table {without}")
            near.sendto(b"request", GATEWAY)
            far.settimeout(5)
            _, peer = far.recvfrom(100)
            with neighbour.entered():
                neighbour.ip("neighbour flush dev eth0")
            far.sendto(b"reply", peer)
            near.settimeout(5 if without is None else 0.5)
            try:
                heard = near.recv(100) == b"reply"
            except TimeoutError:
                heard = False
            await network.remove()
            return heard

    with far, socket.socket(type=socket.SOCK_DGRAM) as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        assert asyncio.run(scenario()) == (without is None)


def test_a_neighbour_cannot_reach_the_address_in_the_tunnel(
    routed: Namespace, neighbour: Namespace
) -> None:
    with neighbour.entered():
        neighbour.ip("route add 10.86.0.2 via 192.0.2.1")
        outside = socket.socket(type=socket.SOCK_DGRAM)

    async def scenario() -> bytes:
        with Tun.open(CLIENT_TUN, 1300) as tun:
            network = ClientNetwork(tun)
            await network.apply(SPLIT)
            with socket.socket(type=socket.SOCK_DGRAM) as inside:
                inside.settimeout(5)
                inside.bind(("10.86.0.2", 7777))
                outside.sendto(b"probe", ("10.86.0.2", 7777))
                # In order behind the probe on the same link, so it tells when that was dealt with.
                routed.sh("ping -c 1 -W 5 192.0.2.2")
                inside.sendto(b"own", ("10.86.0.2", 7777))
                heard = inside.recv(100)
            await network.remove()
            return heard

    with outside:
        assert asyncio.run(scenario()) == b"own"
