"""qvpn against an independent implementation of CONNECT-IP (RFC 9484), at either end.

The other end is connect-ip-peer, in Go, on connect-ip-go and quic-go; docs/interop.md says what it
does. qvpn is run as people run it, by its command lines, against the real kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qvpn_core.datapath import engine
from tests.interop.gateway import RESOLVERS, Gateway, command
from tests.interop.network import Network
from tests.interop.program import Peer, Program, StartPeer
from tests.interop.traffic import everything_passes, ping, tcp_exchange
from tests.world.namespaces import Namespace

# The first test may wait for the Go compiler, which takes minutes when its cache is empty.
pytestmark = [pytest.mark.netns, pytest.mark.interop, pytest.mark.timeout(600)]

INSIDE = ("10.97.0.2", "fd97::2")
IP_HEADER = (20, 40)
ICMP_HEADER = 8
needs_engine = pytest.mark.skipif(
    engine.qvpn_datapath is None, reason="the native datapath is not built (make datapath)"
)
families = pytest.mark.parametrize("version", [0, 1], ids=["IPv4", "IPv6"])


# The Go client against qvpn-server


@pytest.fixture
def go_client(network: Network, gateway: Gateway, start_peer: StartPeer) -> Peer:
    client = start_peer(network.client, "client", *gateway.client())
    client.wait_for_event("connected")
    return client


def test_the_gateway_tells_a_go_client_its_addresses_routes_and_name_servers(
    network: Network, gateway: Gateway, start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", *gateway.client())
    connected = client.wait_for_event("connected")
    assert connected["addresses"] == ["10.97.0.2/32", "fd97::2/128"]
    assert connected["routes"] == ["0.0.0.0/0", "::/0"]
    assert client.wait_for_event("dns")["servers"] == RESOLVERS


def test_the_gateway_answers_a_go_client_that_asks_for_addresses(
    network: Network, gateway: Gateway, start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", *gateway.client(), "-request")
    connected = client.wait_for_event("connected")
    assert connected["addresses"] == ["10.97.0.2/32", "fd97::2/128"]
    ping(network.client, network.HOST[0])


@families
def test_packets_pass_between_a_go_client_and_the_gateway(
    network: Network, go_client: Peer, version: int
) -> None:
    everything_passes(network.client, network.host, network.HOST[version])


@needs_engine
def test_the_native_gateway_marks_packets_which_a_go_client_counts(
    network: Network, go_client: Peer
) -> None:
    """RFC 9000 section 13.4: without counts, or with wrong ones, marking would end."""
    tcp_exchange(network.client, network.host, network.HOST[0], 1 << 20)
    network.client.nft(
        "table inet marks { chain input { type filter hook input priority 0;"
        " iifname underlay udp sport 4433 ip ecn ect0 counter; }; }"
    )
    try:
        tcp_exchange(network.client, network.host, network.HOST[0], 1 << 20)
        told = network.client.run(["nft", "list", "table", "inet", "marks"]).stdout
    finally:
        network.client.nft("delete table inet marks")
    counted = re.search(r"bytes (\d+)", told)
    assert counted is not None, told
    assert int(counted[1]) > 1 << 20


@pytest.mark.parametrize("gateway", ["2001:db8:1::1"], indirect=True)
def test_the_gateway_is_reached_over_ipv6(network: Network, go_client: Peer) -> None:
    for version in (0, 1):
        tcp_exchange(network.client, network.host, network.HOST[version], 1 << 20)


@families
def test_a_packet_too_big_for_the_tunnel_is_answered_with_icmp_at_either_end(
    network: Network, gateway: Gateway, start_peer: StartPeer, version: int
) -> None:
    client = start_peer(network.client, "client", *gateway.client(), "-mtu", "1500")
    client.wait_for_event("connected")
    tcp_exchange(network.client, network.host, network.HOST[version], 1 << 20)
    assert client.wait_for_event("packet_too_big")["size"] == 1500
    # The host sent to the gateway's own address, because of NAT, and the gateway told it better.
    route = network.host.ip(f"route get {network.PROXY_INSIDE[version]}")
    learnt = re.search(r" mtu (\d+)", route)
    assert learnt is not None, route
    assert 1280 <= int(learnt[1]) < 1500


@pytest.mark.parametrize("credential", [(), ("-token", "0" * 64)], ids=["none", "wrong"])
def test_a_go_client_without_a_credential_finds_only_a_web_site(
    network: Network, gateway: Gateway, start_peer: StartPeer, credential: tuple[str, ...]
) -> None:
    client = start_peer(network.client, "client", *gateway.trust(), *credential)
    assert client.wait_for_event("refused")["status"] == 404


def test_a_go_client_that_leaves_is_gone_at_once(gateway: Gateway, go_client: Peer) -> None:
    gateway.program.wait_for("laptop connected")
    assert go_client.stop() == 0
    # It closes with application error 0, which is none of HTTP/3's: RFC 9114 section 8 takes it for
    # H3_NO_ERROR.
    assert "failed" not in gateway.program.wait_for("laptop disconnected")


def test_a_tunnel_of_a_go_client_may_end_before_its_connection(
    network: Network, gateway: Gateway, start_peer: StartPeer
) -> None:
    client = start_peer(network.client, "client", *gateway.client(), "-linger", "1m")
    client.wait_for_event("connected")
    client.process.terminate()
    # FIN and STOP_SENDING arrive together: our own FIN can no longer be sent.
    gateway.program.wait_for("laptop disconnected")
    assert client.process.poll() is None
    status = subprocess.run(
        [command("qvpn-server"), "status", "--state", str(gateway.state), "--json"],
        check=True,
        capture_output=True,
    )
    assert json.loads(status.stdout)["sessions"] == []


def test_a_go_client_sees_the_gateway_stop(gateway: Gateway, go_client: Peer) -> None:
    assert gateway.program.stop() == 0
    assert go_client.wait_for_event("exit")["error"].startswith("the tunnel ended")


def test_a_revoked_go_client_is_cut_off(gateway: Gateway, go_client: Peer) -> None:
    subprocess.run(
        [command("qvpn-server"), "revoke", "--state", str(gateway.state), "laptop"],
        check=True,
        capture_output=True,
    )
    assert go_client.wait_for_event("exit")["error"].startswith("the tunnel ended")


# qvpn against the Go proxy


@dataclass(frozen=True)
class Client:
    """The qvpn command in the client's namespace, with a home of its own."""

    namespace: Namespace
    home: Path

    @property
    def env(self) -> dict[str, str]:
        kinds = ("CONFIG", "STATE", "RUNTIME")
        return {f"QVPN_{kind}_DIR": str(self.home / kind.lower()) for kind in kinds}

    def run(self, *arguments: str) -> str:
        """Run a command to its end and return its output."""
        argv = ["env", *(f"{name}={value}" for name, value in self.env.items())]
        return self.namespace.run([*argv, command("qvpn"), *arguments]).stdout

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run("status", "--json"))
        return document


@pytest.fixture
def go_proxy(network: Network, start_peer: StartPeer) -> Peer:
    return start_peer(
        network.proxy,
        "proxy",
        *("-listen", "192.0.2.1:0", "-token", "secret", "-dns", ",".join(RESOLVERS)),
    )


@pytest.fixture
def client(network: Network, go_proxy: Peer, home: Path) -> Client:
    """A client that has a profile for the Go proxy."""
    proxy = go_proxy.wait_for_event("listening")
    client = Client(network.client, home)
    trust = ("--pin", proxy["pin"], "--token", "secret")
    client.run("profile", "add", "go", "--gateway", proxy["authority"], *trust)
    return client


@pytest.fixture
def qvpn_up(client: Client, start: Callable[..., Program]) -> Program:
    """`qvpn up` with the tunnel established."""
    argv = [command("qvpn"), "up", "go", "--foreground"]
    program = start(client.namespace, argv, env=client.env)
    program.wait_for("connected")
    return program


def test_the_client_takes_what_a_go_proxy_assigns(client: Client, qvpn_up: Program) -> None:
    status = client.status()
    assert status["state"] == "connected"
    assert status["transport"] == "quic"
    assert status["addresses"] == ["10.97.0.2/32", "fd97::2/128"]
    assert status["routes"] == ["0.0.0.0/0", "::/0"]
    assert status["dns"] == RESOLVERS
    assert status["mtu"] >= 1280


@families
def test_packets_pass_between_the_client_and_a_go_proxy(
    network: Network, qvpn_up: Program, version: int
) -> None:
    everything_passes(network.client, network.host, network.HOST[version])
    everything_passes(network.host, network.client, INSIDE[version])


@families
def test_the_largest_packet_that_the_client_takes_gets_through_a_go_proxy(
    network: Network, client: Client, qvpn_up: Program, version: int
) -> None:
    data = client.status()["mtu"] - IP_HEADER[version] - ICMP_HEADER
    ping(network.client, network.HOST[version], data, fragment=False)


def test_a_go_proxy_sees_the_client_leave_in_order(
    client: Client, qvpn_up: Program, go_proxy: Peer
) -> None:
    go_proxy.wait_for_event("accepted")
    client.run("down")
    assert qvpn_up.wait() == 0
    # The end of the stream or of the connection, whichever it looks at first.
    assert go_proxy.wait_for_event("closed")["reason"] in ("EOF", "H3_NO_ERROR")


def test_the_client_sees_a_go_proxy_stop(qvpn_up: Program, go_proxy: Peer) -> None:
    assert go_proxy.stop() == 0
    qvpn_up.wait_for("reconnecting")


def test_the_client_says_in_one_line_that_a_go_proxy_does_not_accept_it(
    client: Client, go_proxy: Peer, start: Callable[..., Program]
) -> None:
    profile = client.home / "config" / "profiles" / "go.toml"
    profile.write_text(profile.read_text().replace('"secret"', '"guess"'))
    argv = [command("qvpn"), "up", "go", "--foreground"]
    qvpn = start(client.namespace, argv, env=client.env)
    assert go_proxy.wait_for_event("refused")["status"] == 401
    qvpn.wait_for("qvpn: ")
    assert qvpn.wait() != 0
