"""What `explain` says of any destination under any policy, against the kernel's own look-up."""

from __future__ import annotations

import errno
import json
import random
import socket
import struct
import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import TYPE_CHECKING

import pytest

from qvpn_core.client.explain import explain
from qvpn_core.client.planner import GatewayOffer, RoutePolicy, SystemState, plan_network
from qvpn_core.net.links import VERSIONS, Kernel
from qvpn_core.net.names import CLIENT_TUN, FWMARK
from qvpn_core.net.plan import IPAddress, Network, NetworkPlan, Route, transition
from qvpn_core.net.survey import survey

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns
OWN = (ip_interface("10.86.0.2/32"), ip_interface("fd86::2/128"))
LAN = ("192.168.7.1/24", "fd07::1/64", "10.20.0.1/16", "172.17.0.1/16")
POLICIES = 150
DESTINATIONS = 40

#: Around these, prefixes nest and touch instead of missing each other.
ANCHORS = {
    4: [int(IPv4Address(text)) for text in ("10.0.0.0", "10.20.3.4", "192.168.7.9", "127.0.0.1",
        "172.17.5.5", "203.0.113.7", "224.0.0.251", "169.254.9.9", "255.255.255.255")],
    6: [int(IPv6Address(text)) for text in ("2001:db8::1", "fd07::9", "fd86::2", "2600::1",
        "fe80::9", "ff02::fb", "::1")],
}  # fmt: skip
BITS = {4: 32, 6: 128}
KIND = {4: IPv4Address, 6: IPv6Address}


class Chance(random.Random):
    """Random policies, offers and destinations."""

    def address(self, version: int) -> IPAddress:
        number = self.choice(ANCHORS[version])
        if self.random() < 0.7:
            number ^= 1 << self.randrange(BITS[version])
        return KIND[version](number)

    def network(self, shortest: int = 0) -> Network:
        address = self.address(self.choice(VERSIONS))
        length = self.randint(shortest, BITS[address.version])
        return ip_network(f"{address}/{length}", strict=False)

    def networks(self, least: int = 0, shortest: int = 0) -> tuple[Network, ...]:
        return tuple(self.network(shortest) for _ in range(self.randint(least, 5)))

    def policy(self) -> RoutePolicy:
        excluded, lan = self.networks(), self.random() < 0.5
        if self.random() < 0.5:
            return RoutePolicy("only", self.networks(least=1), excluded, lan)
        return RoutePolicy("all", (), excluded, lan)

    def offer(self) -> GatewayOffer:
        routes = self.networks(shortest=8)
        routes += tuple(w for w in map(ip_network, ("0.0.0.0/0", "::/0")) if self.random() < 0.5)
        own = OWN if self.random() < 0.6 else (self.choice(OWN),)
        return GatewayOffer(own, routes)


class Fib:
    """RTM_GETROUTE (linux/rtnetlink.h): thousands of look-ups without a process for each."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(5)
        self._tun = socket.if_nametoindex(CLIENT_TUN)

    def close(self) -> None:
        self._socket.close()

    def way(self, destination: IPAddress, mark: int = 0) -> str:
        """Where the kernel sends a packet: tunnel, direct or refused."""
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        packed = destination.packed
        body = struct.pack("=BBBBBBBBI", family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
        body += struct.pack("=HH", 4 + len(packed), 1) + packed  # RTA_DST
        body += struct.pack("=HHI", 8, 16, mark)  # RTA_MARK
        self._socket.send(struct.pack("=IHHII", 16 + len(body), 26, 1, 0, 0) + body)
        reply = self._socket.recv(8192)
        length, kind = struct.unpack_from("=IH", reply)
        if kind == 2:  # NLMSG_ERROR
            code = -struct.unpack_from("=i", reply, 16)[0]
            assert code == errno.EHOSTUNREACH, (destination, errno.errorcode[code])
            return "refused"
        if reply[16 + 7] == 7:  # RTN_UNREACHABLE, which IPv6 tells instead of failing
            return "refused"
        at = 28
        while at < length:
            size, attribute = struct.unpack_from("=HH", reply, at)
            if attribute == 4:  # RTA_OIF
                index = struct.unpack_from("=I", reply, at + 4)[0]
                return "tunnel" if index == self._tun else "direct"
            at += (size + 3) & ~3
        raise AssertionError(f"{destination} goes nowhere")


def way_of_ip(destination: IPAddress) -> str:
    """The same by ip(8), which a person would ask."""
    done = subprocess.run(
        ["ip", "-json", "route", "get", str(destination)], capture_output=True, text=True
    )
    if done.returncode:
        assert "No route to host" in done.stderr, done.stderr
        return "refused"
    return "tunnel" if json.loads(done.stdout)[0].get("dev") == CLIENT_TUN else "direct"


@pytest.fixture
def host(namespace: Namespace) -> Namespace:
    """A machine with a LAN on a bridge, default routes, and a TUN."""
    for line in (
        "link add eth0 type bridge",
        "link set eth0 up",
        f"tuntap add {CLIENT_TUN} mode tun",
    ):
        namespace.ip(line)
    for address in LAN:
        namespace.ip(f"address add {address} dev eth0" + (" nodad" if ":" in address else ""))
    namespace.ip(f"link set {CLIENT_TUN} up")
    namespace.ip("route add default via 192.168.7.254")
    namespace.ip("-6 route add default via fd07::ffff")
    return namespace


def apply(kernel: Kernel, index: int, old: tuple[Route, ...], plan: NetworkPlan) -> None:
    for wanted, route in transition(old, plan.routes):
        if wanted:
            kernel.put_route(index, route)
        else:
            kernel.delete_route(route.prefix)


@pytest.mark.parametrize("seed", range(2))
def test_thousands_of_destinations_go_where_explain_says(host: Namespace, seed: int) -> None:
    chance = Chance(seed)
    found = survey()
    # Whoever talks to himself never meets our table.
    own = {ip_interface(address).ip for address in LAN} | {address.ip for address in OWN}
    index = socket.if_nametoindex(CLIENT_TUN)
    routes: tuple[Route, ...] = ()
    seen: dict[str, int] = {}
    fib = Fib()
    with Kernel() as kernel:
        for address in OWN:
            kernel.add_address(index, address)
        for version in VERSIONS:
            kernel.add_rule(version)
        for _ in range(POLICIES):
            state = SystemState((), found.attached, found.rules_before)
            plan = plan_network(chance.policy(), chance.offer(), state, 1300)
            apply(kernel, index, routes, plan)
            routes = plan.routes
            for _ in range(DESTINATIONS):
                destination = chance.address(chance.choice(VERSIONS))
                if destination in own:
                    continue
                said = explain(plan, destination)
                assert fib.way(destination) == said.way, (said.words, plan.routes)
                assert fib.way(destination, FWMARK) == "direct"
                if sum(seen.values()) % 400 == 0:
                    assert way_of_ip(destination) == said.way
                seen[said.way] = seen.get(said.way, 0) + 1
    fib.close()
    assert sum(seen.values()) > POLICIES * DESTINATIONS * 0.8
    assert min(seen.get(way, 0) for way in ("tunnel", "direct", "refused")) > 100, seen


@pytest.mark.parametrize(("family", "router"), [("-4", "192.168.7.99"), ("-6", "fd07::99")])
def test_a_route_without_a_device_finds_its_router_in_the_lan(
    host: Namespace, family: str, router: str
) -> None:
    """Also while everything is in the tunnel: the kernel asks the routing rules for the router."""
    everything = GatewayOffer(OWN, (ip_network("0.0.0.0/0"), ip_network("::/0")))
    plan = plan_network(RoutePolicy(), everything, SystemState(), 1300)
    index = socket.if_nametoindex(CLIENT_TUN)
    with Kernel() as kernel:
        apply(kernel, index, (), plan)
        for version in VERSIONS:
            kernel.add_rule(version)
        host.ip(f"{family} route replace default via {router}")
        assert f"via {router} dev eth0" in host.ip(f"{family} route show default")
        fib = Fib()
        far = ip_address("203.0.113.9" if family == "-4" else "2600::9")
        assert (fib.way(far), fib.way(far, FWMARK)) == ("tunnel", "direct")
        fib.close()
