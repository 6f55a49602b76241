"""CONNECT-UDP (RFC 9298) with an independent client: masque-go, in Go, against qvpn-server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.gateway import Gateway
from tests.interop.network import Network
from tests.interop.program import Peer

# The first test may wait for the Go compiler, which takes minutes when its cache is empty.
pytestmark = [pytest.mark.netns, pytest.mark.interop, pytest.mark.timeout(600)]


@pytest.fixture
def echo(network: Network) -> Iterator[int]:
    """UDP echo on both addresses of the host; the port."""
    sock = network.host.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", 0))

    def serve() -> None:
        while True:
            data, peer = sock.recvfrom(65535)
            if data == b"stop":
                return
            sock.sendto(data, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    port = sock.getsockname()[1]
    try:
        yield port
    finally:
        with network.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"stop", ("::1", port))
        thread.join()
        sock.close()


@pytest.fixture
def ask(network: Network, gateway: Gateway, udp_program: Path) -> Iterator[Callable[..., Peer]]:
    """Run the client with these targets and options."""
    with ExitStack() as cleanup:

        def run(*targets: str, token: str | None = None, **options: int) -> Peer:
            words = ["-url", gateway.url, "-pin", gateway.pin, "-targets", ",".join(targets)]
            words += ["-token", gateway.token if token is None else token]
            for name, value in options.items():
                words += [f"-{name}", str(value)]
            peer = Peer(network.client, udp_program, *words)
            cleanup.callback(peer.close)
            return peer

        yield run


@pytest.mark.parametrize("size", [8, 1200])
def test_datagrams_come_back_over_several_flows_of_one_connection(
    network: Network, ask: Callable[..., Peer], echo: int, size: int
) -> None:
    targets = [f"{network.HOST[0]}:{echo}", f"[{network.HOST[1]}]:{echo}"]
    peer = ask(*targets, count=50, size=size)
    opened = [peer.wait_for_event("open") for _ in targets]
    assert {event["next_hop"] for event in opened} == set(targets)
    assert {event["capsule_protocol"] for event in opened} == {"?1"}
    assert [peer.wait_for_event("echoed")["count"] for _ in targets] == [50, 50]
    assert peer.wait() == 0


def test_what_is_not_allowed_is_refused_with_its_reason(
    network: Network, ask: Callable[..., Peer], echo: int
) -> None:
    peer = ask("127.0.0.1:53")
    refused = peer.wait_for_event("refused")
    assert refused["status"] == 403
    assert refused["proxy_status"] == "qvpn; error=destination_ip_prohibited"
    peer.wait()


def test_a_stranger_finds_only_a_web_site(
    network: Network, ask: Callable[..., Peer], echo: int
) -> None:
    refused = ask(f"{network.HOST[0]}:{echo}", token="0" * 64).wait_for_event("refused")
    assert (refused["status"], refused["proxy_status"]) == (404, "")
