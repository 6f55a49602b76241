"""What the kernel tells about the way to a peer, and that it tells it in time, to anybody."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address

import pytest

from qvpn_core.net import watch
from qvpn_core.net.names import FWMARK
from qvpn_core.net.watch import NetworkWatch, Way, find_way
from tests.world import Namespace
from tests.world.vpn import until

pytestmark = pytest.mark.netns

PEER4, PEER6 = "203.0.113.130", "2001:db8:2::2"


@pytest.fixture
def host(namespaces_work: None) -> Iterator[Namespace]:
    """A machine with two links, a0 and a1, to another; the first has both default routes."""
    with Namespace("host") as host, Namespace("other") as other:
        host.ip(
            f"link add a0 type veth peer name b0 netns {other.name}",
            f"link add a1 type veth peer name b1 netns {other.name}",
            "link set a0 up", "link set a1 up",
            "addr add 192.0.2.1/24 dev a0", "addr add 2001:db8:a::1/64 dev a0 nodad",
            "addr add 198.51.100.1/24 dev a1", "addr add 2001:db8:b::1/64 dev a1 nodad",
        )  # fmt: skip
        other.ip("link set b0 up", "link set b1 up")
        for link in ("a0", "a1"):
            until(lambda link=link: "state UP" in host.ip(f"link show {link}"), "a carrier")
        host.ip("route add default via 192.0.2.254", "route add ::/0 via 2001:db8:a::fe")
        host.other = other  # type: ignore[attr-defined]
        yield host


def way(host: Namespace, peer: str) -> Way | None:
    return host.call(find_way, peer)


@pytest.mark.parametrize(
    ("peer", "source", "gateway"),
    [(PEER4, "192.0.2.1", "192.0.2.254"), (PEER6, "2001:db8:a::1", "2001:db8:a::fe")],
)
def test_interface_source_and_next_hop(
    host: Namespace, peer: str, source: str, gateway: str
) -> None:
    found = way(host, peer)
    assert found is not None
    assert found.interface == host.call(socket.if_nametoindex, "a0")
    assert (found.source, found.gateway) == (ip_address(source), ip_address(gateway))


def test_it_is_the_way_of_marked_packets(host: Namespace) -> None:
    before = way(host, PEER4)
    host.ip("route add default via 198.51.100.254 table 77", "rule add fwmark 0x2094 lookup 77")
    assert FWMARK == 0x2094
    marked, unmarked = way(host, PEER4), host.call(find_way, PEER4, 0)
    assert unmarked == before
    assert marked is not None
    assert marked.gateway == ip_address("198.51.100.254")


CHANGES: dict[str, tuple[str, ...]] = {
    "another address": ("addr del 192.0.2.1/24 dev a0", "addr add 192.0.2.9/24 dev a0",
                        "route replace default via 192.0.2.254"),
    "another router": ("route replace default via 192.0.2.253",),
    "another link": ("route add default via 198.51.100.254 metric 1", "link set a0 down"),
    "no route": ("route del default",),
    "no link": ("link set a0 down",),
    "a rule": ("route add unreachable default table 78", "rule add pref 5 lookup 78"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_way_is_news_and_changes_the_answer(
    host: Namespace, change: str
) -> None:
    before = way(host, PEER4)
    news = listen(host, lambda: host.ip(*CHANGES[change]))
    assert news
    assert set(news) == {0.0}, "nobody slept"
    after = way(host, PEER4)
    assert after != before
    assert (after is None) == change.startswith(("no", "a rule"))


@pytest.mark.parametrize("peer", [PEER4, PEER6])
def test_an_address_of_the_link_only_leads_nowhere(host: Namespace, peer: str) -> None:
    """What is left without a lease or an advertised prefix, with a default route still there."""
    if peer == PEER4:
        host.ip("addr flush dev a0 scope global", "addr add 169.254.7.7/16 dev a0 scope link",
                "route add default dev a0")  # fmt: skip
    else:
        host.run(["ip", "-6", "addr", "flush", "dev", "a0", "scope", "global"])
        host.run(["ip", "-6", "addr", "flush", "dev", "a1", "scope", "global"])
        host.ip("route replace ::/0 via fe80::fe dev a0")
    assert way(host, peer) is None
    own = "169.254.9.9" if peer == PEER4 else "fe80::9"
    assert way(host, own) is not None


def test_a_cable_that_is_pulled_is_no_way_and_comes_back_as_another(host: Namespace) -> None:
    """The network behind it may be another one with equal addresses."""
    before = way(host, PEER4)
    other: Namespace = host.other  # type: ignore[attr-defined]
    assert listen(host, lambda: other.set_link("b0", up=False))
    assert way(host, PEER4) is None
    assert listen(host, lambda: other.set_link("b0", up=True))
    after = way(host, PEER4)
    assert before is not None
    assert after is not None
    assert after != before
    assert (after.source, after.gateway) == (before.source, before.gateway)


def test_a_storm_of_routes_is_little_news_and_an_overrun_is_some(host: Namespace) -> None:
    routes = [f"route add 10.{n >> 8}.{n & 255}.0/24 via 192.0.2.254" for n in range(20_000)]
    news = listen(host, lambda: host.ip(*routes))
    assert 1 <= len(news) < 400


def test_an_ordinary_user_may_ask_and_listen(host: Namespace) -> None:
    def inside() -> bool:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setresuid(65534, 65534, 65534)
                found = find_way(PEER4)
                watch._subscribe().close()
                status = 0 if found is not None and found.gateway is not None else 2
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1] == 0

    assert host.call(inside)


def test_the_kernel_agrees_with_ip_route_get(host: Namespace) -> None:
    host.ip("route add 203.0.113.128/25 via 198.51.100.254")
    shown = subprocess.run(
        host.command(["ip", "route", "get", PEER4, "mark", str(FWMARK)]),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = way(host, PEER4)
    assert found is not None
    assert f"via {found.gateway} dev a1 src {found.source}" in shown


def listen(host: Namespace, action: Callable[[], object]) -> list[float]:
    """The news of a watch inside, from before `action` until the first after it."""
    told: list[float] = []

    async def main() -> None:
        first = asyncio.Event()

        def on_news(slept: float) -> None:
            told.append(slept)
            first.set()

        following = NetworkWatch(on_news)
        following.start()
        await asyncio.to_thread(action)
        await asyncio.wait_for(first.wait(), 10)
        await asyncio.sleep(2 * watch.COALESCE)  # what belongs to the same change
        following.close()

    host.call(asyncio.run, main())
    return told
