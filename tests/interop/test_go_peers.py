"""The Go client against the Go proxy: the third-party peer works by itself.

When a test of qvpn against this peer fails and these pass, the fault is not in the peer, in the
network between the namespaces or in the way that traffic is measured.
"""

from __future__ import annotations

import pytest

from tests.interop.network import Network
from tests.interop.program import Peer, StartPeer
from tests.interop.traffic import everything_passes, ping, tcp_exchange

# The first test waits for the compiler, which takes minutes when its cache is empty.
pytestmark = [pytest.mark.netns, pytest.mark.interop, pytest.mark.timeout(600)]

CLIENT_INSIDE = ("10.97.0.2", "fd97::2")
TUNNEL_MTU = 1280
families = pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])


@pytest.fixture
def proxy(network: Network, start_peer: StartPeer) -> Peer:
    return start_peer(
        network.proxy,
        "proxy",
        *("-listen", "192.0.2.1:0", "-token", "secret", "-dns", "198.51.100.53,2001:db8:2::53"),
    )


@pytest.fixture
def trust(proxy: Peer) -> tuple[str, ...]:
    """The flags with which a client finds the proxy and believes it."""
    listening = proxy.wait_for_event("listening")
    return ("-url", f"https://{listening['authority']}", "-pin", listening["pin"])


@pytest.fixture
def client(network: Network, trust: tuple[str, ...], start_peer: StartPeer) -> Peer:
    client = start_peer(network.client, "client", *trust, "-token", "secret")
    client.wait_for_event("connected")
    return client


def test_a_client_is_told_its_addresses_routes_and_name_servers(
    network: Network, trust: tuple[str, ...], start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", *trust, "-token", "secret")
    connected = client.wait_for_event("connected")
    assert connected["addresses"] == ["10.97.0.2/32", "fd97::2/128"]
    assert connected["routes"] == ["0.0.0.0/0", "::/0"]
    assert client.wait_for_event("dns")["servers"] == ["198.51.100.53", "2001:db8:2::53"]


def test_a_client_that_asks_for_addresses_gets_the_same_ones(
    network: Network, proxy: Peer, trust: tuple[str, ...], start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", *trust, "-token", "secret", "-request")
    assert client.wait_for_event("connected")["addresses"] == ["10.97.0.2/32", "fd97::2/128"]
    assert proxy.wait_for_event("address_request")["prefixes"] == ["0.0.0.0/32", "::/128"]


@families
def test_packets_of_every_kind_pass_both_ways(network: Network, client: Peer, version: int) -> None:
    everything_passes(network.client, network.host, network.HOST[version])
    everything_passes(network.host, network.client, CLIENT_INSIDE[version])


@families
def test_a_packet_that_fills_the_tunnel_passes_whole(
    network: Network, client: Peer, version: int
) -> None:
    headers = (20, 40)[version] + 8
    ping(network.client, network.HOST[version], TUNNEL_MTU - headers, fragment=False)


@families
def test_a_packet_too_big_for_the_tunnel_is_answered_with_icmp(
    network: Network, trust: tuple[str, ...], start_peer: StartPeer, version: int
) -> None:
    client = start_peer(network.client, "client", *trust, "-token", "secret", "-mtu", "1500")
    client.wait_for_event("connected")
    there = network.HOST[version]
    tcp_exchange(network.client, network.host, there, 1 << 20)
    assert client.wait_for_event("packet_too_big")["size"] == 1500
    route = network.client.ip(f"route get {there}")
    assert f"mtu {TUNNEL_MTU}" in route


def test_a_wrong_token_is_refused(
    network: Network, proxy: Peer, trust: tuple[str, ...], start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", *trust, "-token", "guess")
    assert client.wait_for_event("refused")["status"] == 401
    assert client.wait() == 1
    assert proxy.wait_for_event("refused")["status"] == 401


def test_a_wrong_key_is_not_talked_to(
    network: Network, trust: tuple[str, ...], start_peer: StartPeer
) -> None:
    other_pin = "sha256/" + "A" * 43 + "="
    client = start_peer(network.client, "client", *trust[:2], "-pin", other_pin)
    assert "not the pinned one" in client.wait_for_event("exit")["error"]


def test_another_path_is_not_the_proxy(
    network: Network, trust: tuple[str, ...], start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", "-url", trust[1] + "/elsewhere/", *trust[2:])
    assert client.wait_for_event("refused")["status"] == 404


def test_a_client_told_to_stop_ends_the_tunnel_in_order(client: Peer, proxy: Peer) -> None:
    proxy.wait_for_event("accepted")
    assert client.stop() == 0
    proxy.wait_for_event("closed")


def test_a_tunnel_does_not_outlive_its_proxy(client: Peer, proxy: Peer) -> None:
    assert proxy.stop() == 0
    assert client.wait_for_event("exit")["error"].startswith("the tunnel ended")
