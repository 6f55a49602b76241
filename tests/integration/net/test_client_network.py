"""A client's network in the real kernel: routed as planned, changed without a gap, repaired."""

from __future__ import annotations

import errno
import random
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from qvpn_core.client.explain import explain
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.errors import NetworkSetupFailed, TunUnavailable
from qvpn_core.net import undo
from qvpn_core.net.apply import ClientNetwork
from qvpn_core.net.names import CLIENT_TUN, FWMARK
from qvpn_core.net.plan import IPAddress, Network, NetworkPlan
from qvpn_core.net.records import NetworkRecord
from tests.world.vpn import until

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns
OWN4, OWN6 = ip_interface("10.86.0.2/32"), ip_interface("fd86::2/128")
V4, V6 = ip_network("0.0.0.0/0"), ip_network("::/0")
GATEWAY = ("192.0.2.2", 443)


def plan_for(policy: RoutePolicy, *routes: Network, mtu: int = 1300) -> NetworkPlan:
    offer = GatewayOffer((OWN4, OWN6), routes or (V4, V6))
    return plan_network(policy, offer, SystemState((GATEWAY,)), mtu)


FULL = plan_for(RoutePolicy())
SPLIT = plan_for(RoutePolicy("only", (ip_network("198.51.100.0/24"),)), mtu=1400)


@contextmanager
def tunnel() -> Iterator[ClientNetwork]:
    """A device of ours, open for the length of the block, and then undone from its records."""
    held: list[Sequence[NetworkRecord]] = []
    network = ClientNetwork(held.append)
    with network.open_tun(1300):
        try:
            yield network
        finally:
            assert undo.run(held[-1]) == []


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


@pytest.fixture
def routed(namespace: Namespace, neighbour: Namespace) -> Namespace:
    """A namespace with a LAN and a default route through it."""
    namespace.ip("route add default via 192.0.2.2")
    namespace.ip("-6 route add default via 2001:db8:1::2")
    return namespace


# --- routed as planned ------------------------------------------------------------------------


def test_unmarked_traffic_uses_the_tunnel_and_the_transport_does_not(routed: Namespace) -> None:
    with tunnel() as network, IPRoute() as netlink:
        network.apply(FULL)
        assert network.plan == FULL
        for text in ("203.0.113.9", "192.0.2.2", "2606:4700::1", "2001:db8:1::2"):
            assert way(netlink, ip_address(text)) == "tunnel"
            assert way(netlink, ip_address(text), FWMARK) == "direct"


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

    compared = 0
    with tunnel() as network:
        network.apply(FULL)
        for _ in range(20):
            made = plan()
            network.apply(made)
            compared += compare(made)
    assert compared > 300


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

    watcher = threading.Thread(target=watch)
    with tunnel() as network:
        network.apply(FULL)
        watcher.start()
        try:
            for _ in range(10):
                network.apply(narrow)
                assert "mtu 1400" in routed.ip("link show qvpn0")
                network.apply(FULL)
        finally:
            stop.set()
            watcher.join()
        network.apply(wide)
        assert "mtu 1300" in routed.ip("link show qvpn0")
    assert len(seen) > 100
    assert set(seen) == {"tunnel"}


def test_an_update_replaces_addresses_and_drops_a_version(routed: Namespace) -> None:
    offer = GatewayOffer((ip_interface("10.86.0.9"),), (ip_network("10.0.0.0/8"),))
    small = plan_network(RoutePolicy(), offer, SystemState(), 1200)

    def look() -> str:
        return routed.ip("-o address show dev qvpn0") + routed.ip("-6 rule")

    with tunnel() as network:
        network.apply(FULL)
        network.apply(small)
        between = look()
        network.apply(FULL)
        after = look()
    assert "10.86.0.9/32" in between
    assert "10.86.0.2/32" not in between
    assert "9484" not in between
    assert "fd86::2/128" in after
    assert "9484" in after
    assert "10.86.0.9" not in after


# --- gone afterwards --------------------------------------------------------------------------


def test_undoing_the_records_leaves_the_machine_as_it_was(routed: Namespace) -> None:
    before = routed.snapshot()
    with tunnel() as network:
        network.apply(FULL)
        network.apply(SPLIT)
    assert routed.snapshot() == before


def test_a_setting_that_was_on_stays_on(namespace: Namespace) -> None:
    setting = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")

    def during() -> str:
        with tunnel() as network:
            network.apply(SPLIT)
            return setting.read_text()

    assert during() == "1\n"
    assert setting.read_text() == "0\n"
    setting.write_text("1")
    assert during() == "1\n"
    assert setting.read_text() == "1\n"


def test_a_failure_half_way_is_undone(routed: Namespace) -> None:
    before = routed.snapshot()
    with tunnel() as network:
        with pytest.raises(NetworkSetupFailed, match="70000"):
            network.apply(plan_for(RoutePolicy(), mtu=70000))
    assert routed.snapshot() == before


def test_what_an_earlier_one_left_is_removed_before_the_device_is_made(routed: Namespace) -> None:
    before = routed.snapshot()
    first = ClientNetwork(lambda _: None)
    forgotten = first.open_tun(1300)
    first.apply(FULL)
    with tunnel() as network:
        network.apply(SPLIT)
        assert "default" not in routed.ip("route show table 9484")
    forgotten.close()
    after = routed.snapshot().replace("src_valid_mark=1", "src_valid_mark=0")
    assert after == before, "all but the setting, of which only the first one's records know"


# --- somebody interferes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "ip rule del priority 9484",
        "ip -6 rule del priority 9484",
        "ip route flush table 9484",
        "ip -6 route flush table 9484",
        "ip route replace blackhole 0.0.0.0/0 table 9484",
        "ip address flush dev qvpn0",
        "ip link set qvpn0 down",
        "nft flush ruleset",
        "nft delete table arp qvpn_client",
    ],
)
def test_what_somebody_removed_or_changed_is_put_back(routed: Namespace, command: str) -> None:
    def state() -> str:
        # The order of routes of one length is that in which they came.
        return "\n".join(sorted(routed.snapshot().splitlines()))

    with tunnel() as network:
        network.apply(FULL)
        # The kernel makes the local route of an IPv6 address in its own time.
        until(lambda: "local fd86::2 dev qvpn0" in routed.snapshot(), "the address is local")
        wanted = state()
        assert network.repair() == 0
        routed.sh(command)
        assert state() != wanted
        assert network.repair() > 0
        until(lambda: state() == wanted, "everything is put back")
        assert network.repair() == 0


def test_a_device_that_somebody_replaced_is_not_touched(routed: Namespace) -> None:
    with tunnel() as network:
        network.apply(FULL)
        routed.ip("link del qvpn0")
        routed.ip("link add qvpn0 type veth peer name other")
        before = routed.snapshot()
        assert network.repair() == 0
        with pytest.raises(TunUnavailable, match="somebody removed"):
            network.apply(SPLIT)
        assert routed.snapshot() == before
    assert "qvpn0" in routed.ip("link"), "only a TUN of that name can be ours"


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

    with (
        far,
        socket.socket(type=socket.SOCK_DGRAM) as near,
        tunnel() as network,
    ):
        near.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
        network.apply(FULL)
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
    assert heard == (without is None)


def test_a_neighbour_cannot_reach_the_address_in_the_tunnel(
    routed: Namespace, neighbour: Namespace
) -> None:
    with neighbour.entered():
        neighbour.ip("route add 10.86.0.2 via 192.0.2.1")
        outside = socket.socket(type=socket.SOCK_DGRAM)

    with outside, tunnel() as network:
        network.apply(SPLIT)
        with socket.socket(type=socket.SOCK_DGRAM) as inside:
            inside.settimeout(5)
            inside.bind(("10.86.0.2", 7777))
            outside.sendto(b"probe", ("10.86.0.2", 7777))
            # In order behind the probe on the same link, so it tells when that was dealt with.
            routed.sh("ping -c 1 -W 5 192.0.2.2")
            inside.sendto(b"own", ("10.86.0.2", 7777))
            assert inside.recv(100) == b"own"
