"""Which way traffic goes: the route policies as the sites see them, and that nothing leaks."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.world import Capture, Namespace, Seen, plan, probes
from tests.world.packets import ICMP6, TCP, UDP
from tests.world.vpn import GATEWAY_PORT, Vpn, VpnClient, until

# Generous, for a machine that is busy with other tests.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

families = pytest.mark.parametrize("family", [4, 6])
LAN = plan.LANS[0]
GATEWAY = {4: plan.GATEWAY4, 6: plan.GATEWAY6}
#: Who a site sees when the client comes beside the tunnel.
DIRECT = {4: plan.ROUTER4, 6: plan.CLIENT6}
ALPHA_NET, BETA_NET = plan.NETS


@dataclass(frozen=True, slots=True)
class Mode:
    """A way to connect, and which sites and whether the gateway's own address use the tunnel."""

    options: tuple[str, ...]
    alpha: bool
    beta: bool
    gateway: bool
    lan: bool


MODES = {
    "all": Mode(("--all",), alpha=True, beta=True, gateway=True, lan=True),
    "only": Mode(("--only", *ALPHA_NET), alpha=True, beta=False, gateway=False, lan=False),
    "only-but": Mode(
        ("--only", *ALPHA_NET, *BETA_NET, "--except", "192.0.2.8/29", "2001:db8:a::/120"),
        alpha=False,
        beta=True,
        gateway=False,
        lan=False,
    ),
    "all-except": Mode(
        ("--all", "--except", *BETA_NET, f"{LAN.net4}.0/24", LAN.prefix6),
        alpha=True,
        beta=False,
        gateway=True,
        lan=False,
    ),
    "only-the-gateway's-network": Mode(
        ("--only", "203.0.113.128/25", "2001:db8:2::/64"),
        alpha=False,
        beta=False,
        gateway=True,
        lan=False,
    ),
}

#: Near and far, in and beside every prefix that a mode names, edges included.
DESTINATIONS = (
    *(address for site in plan.SITES for address in (site.v4, site.v6)),
    *(plan.GATEWAY4, plan.GATEWAY6, plan.DATACENTRE4, plan.DATACENTRE6),
    *(plan.ROUTER4, plan.ROUTER6, plan.ISP4, plan.ISP6),
    *(LAN.router4, LAN.router6, LAN.client4(99), LAN.client6(99), plan.CLIENT4, plan.CLIENT6),
    *("192.0.1.255", "192.0.2.0", "192.0.2.7", "192.0.2.8", "192.0.2.15", "192.0.2.16"),
    *("192.0.2.255", "192.0.3.0", "198.51.99.255", "198.51.101.0", "1.1.1.1", "10.0.0.1"),
    *("2001:db8:a::", "2001:db8:a::ff", "2001:db8:a::100", "2001:db8:a:1::", "2001:db8:9:ffff::1"),
    *("2606:4700::1", "fd00::1", "10.86.0.1", "10.86.0.99"),
    *("127.0.0.1", "127.9.9.9", "::1", "169.254.1.1", "224.0.0.251", "255.255.255.255"),
)


@pytest.fixture
def client(vpn: Vpn) -> Iterator[VpnClient]:
    """The first client, not connected."""
    yield vpn.clients[0]
    vpn.settle()


def way_of_kernel(host: Namespace, destination: str) -> str:
    """What the kernel does with unmarked packets to `destination`, in the words of `explain`."""
    done = host.run(["ip", "-json", "route", "get", destination], check=False)
    if done.returncode:
        assert "No route to host" in done.stderr, done.stderr
        return "refused"
    return "tunnel" if json.loads(done.stdout)[0]["dev"] == "qvpn0" else "direct"


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_route_policy_is_what_sites_see_and_what_is_explained(
    client: VpnClient, mode: Mode
) -> None:
    client.up(*mode.options)
    seen = {
        (site.name, family): probes.source_seen(client.host, site.address(family))
        for site in (plan.ALPHA, plan.BETA)
        for family in (4, 6)
    }
    assert seen == {
        (site.name, family): (GATEWAY if tunnelled else DIRECT)[family]
        for site, tunnelled in ((plan.ALPHA, mode.alpha), (plan.BETA, mode.beta))
        for family in (4, 6)
    }
    # The gateway's address works from inside its own tunnel too.
    for address in GATEWAY.values():
        assert client.way(address) == ("tunnel" if mode.gateway else "direct")
        client.host.run(["ping", "-n", "-c", "1", "-W", "5", address])
    for address in (LAN.router4, LAN.router6):
        assert client.way(address) == ("tunnel" if mode.lan else "direct")
    kernel = {address: way_of_kernel(client.host, address) for address in DESTINATIONS}
    assert {address: client.way(address) for address in DESTINATIONS} == kernel
    # Only now, so that all of the above was with a tunnel that lives.
    assert client.peek()["state"] == "connected"


def test_explain_says_why_in_words(client: VpnClient) -> None:
    client.up("--all", "--except", BETA_NET[0])
    said = {
        destination: client.command("routes", "explain", destination).stdout
        for destination in (plan.ALPHA.v4, plan.BETA.v4, "127.0.0.1")
    }
    assert "uses the tunnel" in said[plan.ALPHA.v4]
    assert f"goes direct: the route policy excludes {BETA_NET[0]}" in said[plan.BETA.v4]
    assert "goes direct" in said["127.0.0.1"]
    client.down()
    assert "no tunnel is up" in client.command("routes", "explain", plan.ALPHA.v4).stdout


def test_an_excluded_neighbour_is_reached_while_everything_else_is_not(client: VpnClient) -> None:
    client.up("--all")
    argv = ["ping", "-n", "-c", "1", "-W", "1", LAN.router4]
    assert client.host.run(argv, check=False).returncode == 1
    client.down()
    client.up("--all", "--except", f"{LAN.net4}.0/24")
    client.host.run(argv)


def test_the_lan_is_kept_where_the_user_says_so_and_told_where_it_is_lost(
    client: VpnClient,
) -> None:
    done = client.command("up", "home", "--all")
    lost = (
        f"{LAN.net4}.0/24 on eth0 is out of reach: to keep it, leave the LAN out of the tunnel "
        "(--except lan)"
    )
    assert lost in done.stderr
    assert client.status()["warnings"] == [lost]
    client.down()
    done = client.command("up", "home", "--all", "--except", "lan", "--kill-switch", "on")
    assert done.stderr == ""
    client.host.run(["ping", "-n", "-c", "1", "-W", "2", LAN.router4])
    assert client.way(LAN.client4(99)) == "direct"
    # The next one, where the machine is moved to.
    assert client.way("10.9.8.7") == "tunnel"
    client.host.ip("addr add 10.9.8.1/24 dev eth0")
    try:
        until(lambda: client.way("10.9.8.7") == "direct", "the new LAN is left out")
        ruleset = client.host.run(["nft", "list", "table", "inet", "qvpn_kill_switch"]).stdout
        assert "10.9.8.0/24" in ruleset
    finally:
        client.host.ip("addr del 10.9.8.1/24 dev eth0")
    until(lambda: client.way("10.9.8.7") == "tunnel", "a LAN that was left is in the tunnel")


@families
def test_a_kill_switch_for_some_networks_leaves_the_others_alone(
    vpn: Vpn, client: VpnClient, family: int
) -> None:
    host, alpha, beta = client.host, plan.ALPHA.address(family), plan.BETA.address(family)
    client.add_profile(vpn.gateway.token(f"for-a-while-{family}"), f"while-{family}")
    client.up("--only", *ALPHA_NET, "--kill-switch", "on", name=f"while-{family}")
    vpn.gateway.command("revoke", f"for-a-while-{family}")
    client.wait_for("blocked")
    assert probes.source_seen(host, beta) == DIRECT[family]
    with pytest.raises(ConnectionRefusedError):
        probes.source_seen(host, alpha)
    assert (client.way(alpha), client.way(beta)) == ("refused", "direct")
    client.down()
    assert probes.source_seen(host, alpha) == DIRECT[family]


# -- nothing beside the tunnel


def leak(seen: Seen) -> bool:
    """Whether the client sent this, neither to the gateway nor to keep the link alive."""
    packet = seen.packet
    if seen.outgoing:  # of the router, to the client
        return False
    if packet.protocol in (UDP, TCP) and packet.destination_port == GATEWAY_PORT:
        return (packet.source, packet.destination) != (plan.CLIENT4, plan.GATEWAY4)
    if packet.destination_port == plan.DNS_PORT and PORTAL_CHECK in packet.data:
        return False  # asked when no gateway answers
    # Neighbour discovery and multicast listener reports (RFC 4861, RFC 3810).
    return not (packet.protocol == ICMP6 and packet.data[packet.transport] in LINK_CHATTER)


PORTAL_CHECK = b"\x11connectivitycheck\x07gstatic\x03com\x00"
LINK_CHATTER = frozenset({130, 131, 132, 133, 134, 135, 136, 143})


@contextlib.contextmanager
def nothing_leaks(vpn: Vpn) -> Iterator[None]:
    """What is done inside leaves the client only as QUIC or TLS to the gateway."""
    with Capture(vpn.world.router, "lan0", leak) as capture:
        yield
    assert capture.seen == []


def use(host: Namespace) -> None:
    """Everything that programs do, answered or not, one short try each."""
    tasks: list[Callable[[], object]] = [
        task
        for family in (4, 6)
        for task in (
            lambda family=family: probes.http_get(host, plan.ALPHA.address(family), "/ip", 1.0),
            lambda family=family: probes.udp_echo(host, plan.BETA.address(family), wait=0.3),
            lambda family=family: host.run(
                ["ping", "-n", "-c", "1", "-W", "0.3", plan.BETA.address(family)], check=False
            ),
            lambda family=family: host.run(
                ["dig", "+tries=1", "+time=1", f"@{plan.PROVIDER_DNS.address(family)}", "a.test"],
                check=False,
            ),
        )
    ]
    for task in tasks:
        with contextlib.suppress(OSError):
            task()
    host.run(["ping", "-n", "-c", "1", "-W", "0.3", LAN.router4], check=False)


def test_while_everything_is_tunnelled_only_quic_leaves(vpn: Vpn, client: VpnClient) -> None:
    client.up("--all")
    with nothing_leaks(vpn):
        use(client.host)
        assert probes.source_seen(client.host, plan.ALPHA.v6) == plan.GATEWAY6


@families
def test_a_connection_from_before_does_not_go_on_beside_the_tunnel(
    vpn: Vpn, client: VpnClient, family: int
) -> None:
    target = (plan.ALPHA.address(family), plan.ECHO_PORT)
    with client.host.call(socket.create_connection, target, 5) as connection:
        connection.sendall(b"before\n")
        assert connection.recv(100) == b"before\n"
        client.up("--all")
        with nothing_leaks(vpn):
            connection.sendall(b"secret\n")
            # The tunnel carries no foreign source address either, so the connection just stalls.
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(100)
    assert client.status()["drops"]["bad-source"] > 0


def test_while_the_gateway_is_away_nothing_leaves_but_attempts_to_reach_it(
    vpn: Vpn, client: VpnClient
) -> None:
    client.up("--all")
    with nothing_leaks(vpn):
        vpn.gateway.stop()
        client.wait_for("reconnecting")
        use(client.host)
        vpn.gateway.start()
        client.wait_for("connected")
        assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4
