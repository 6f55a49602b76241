"""Several devices at one gateway: addresses that stay theirs, and walls between them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.world import Capture, Namespace, plan, probes
from tests.world.datagrams import Datagrams
from tests.world.payload import payload_sha256
from tests.world.vpn import INSIDE, POOL4, POOL6, Vpn, VpnClient, until

# Generous, for a machine that is busy with other tests.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def pair(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpn]:
    """Both clients connected, everything in the tunnel."""
    pools = ("--pool4", POOL4, "--pool6", POOL6)
    with Vpn(tmp_path_factory.mktemp("pair"), *pools, relay=False) as vpn:
        for client in vpn.clients:
            client.up("--all")
        yield vpn


def addresses(client: VpnClient) -> tuple[str, str]:
    return client.address(4), client.address(6)


@contextlib.contextmanager
def nothing_arrives(client: VpnClient, source: str, fence: str) -> Iterator[None]:
    """Nothing from `source` comes out of the client's tunnel, up to an answer from `fence`."""
    with Capture(client.host, "qvpn0", lambda seen: seen.packet.source == source) as capture:
        yield
        client.host.run(["ping", "-n", "-c", "1", "-W", "5", fence])
    assert capture.count == 0


# -- at once


def test_devices_share_the_gateway_with_leases_of_their_own(pair: Vpn) -> None:
    first, second = pair.clients
    assert not set(addresses(first)) & set(addresses(second))
    for client in pair.clients:
        session = pair.gateway.session(client.directory.name)
        assert session is not None
        assert tuple(session["addresses"]) == addresses(client)
        assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4
        assert probes.source_seen(client.host, plan.ALPHA.v6) == plan.GATEWAY6


def test_devices_download_and_upload_at_once_each_its_own(pair: Vpn) -> None:
    first, second = (client.host for client in pair.clients)
    size = 5_000_000
    data = bytes(range(250)) * (size // 250)

    def down(host: Namespace, site: str) -> Callable[[], str]:
        return lambda: probes.download(host, site, size).sha256

    def up(host: Namespace, site: str) -> Callable[[], int]:
        return lambda: probes.upload(host, site, data).size

    with ThreadPoolExecutor() as pool:
        downloads = [
            pool.submit(task) for task in (down(first, plan.ALPHA.v4), down(second, plan.ALPHA.v6))
        ]
        uploads = [
            pool.submit(task) for task in (up(first, plan.BETA.v6), up(second, plan.BETA.v4))
        ]
    assert [task.result() for task in downloads] == [payload_sha256(size)] * 2
    assert [task.result() for task in uploads] == [size] * 2


# -- walls


@families
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_device_that_knocks_at_another_is_told_that_this_is_prohibited(
    pair: Vpn, family: int, order: tuple[int, int]
) -> None:
    knocking, asked = (pair.clients[index] for index in order)
    own, other = knocking.address(family), asked.address(family)
    with nothing_arrives(asked, own, INSIDE[family]), Datagrams(knocking.host, own) as door:
        door.send(b"let me in", (other, 9))
        told = door.error()
    prohibited = (3, 13) if family == 4 else (1, 1)
    assert (told.origin, told.type, told.code, told.reporter) == (
        "icmp",
        *prohibited,
        INSIDE[family],
    )


@families
def test_no_connection_and_no_ping_gets_from_device_to_device(pair: Vpn, family: int) -> None:
    first, second = pair.clients
    own, other = first.address(family), second.address(family)
    with nothing_arrives(second, own, INSIDE[family]):
        ping = first.host.run(["ping", "-n", "-c", "1", "-W", "5", other], check=False)
        assert ping.returncode == 1
        assert f"From {INSIDE[family]}" in ping.stdout
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            probes.http_get(first.host, other, "/ip")


@families
def test_an_address_of_the_pool_that_nobody_holds_is_as_prohibited(pair: Vpn, family: int) -> None:
    """Who is connected is nobody's business."""
    client = pair.clients[0]
    unknown = INSIDE[family] + "77"
    with Datagrams(client.host, client.address(family)) as door:
        door.send(b"anybody?", (unknown, 9))
        told = door.error()
    assert (told.type, told.code) == ((3, 13) if family == 4 else (1, 1))


# -- leases


def test_devices_keep_their_addresses_whoever_connects_first(vpn: Vpn) -> None:
    first, second = vpn.clients
    first.up()
    second.up()
    leases = [addresses(client) for client in vpn.clients]
    for client in vpn.clients:
        client.down()
    second.up()
    first.up()
    assert [addresses(client) for client in vpn.clients] == leases
    vpn.settle()


def test_devices_come_back_to_a_restarted_gateway_with_the_same_addresses(vpn: Vpn) -> None:
    for client in vpn.clients:
        client.up()
    leases = [addresses(client) for client in vpn.clients]
    vpn.gateway.stop()
    for client in vpn.clients:
        client.wait_for("reconnecting")
    vpn.gateway.start()
    for client in vpn.clients:
        until(lambda client=client: client.peek()["state"] == "connected", "connected again")
    assert [addresses(client) for client in vpn.clients] == leases
    assert probes.source_seen(vpn.clients[1].host, plan.BETA.v6) == plan.GATEWAY6
    vpn.settle()


# -- a gateway that was configured otherwise


@pytest.fixture(scope="module")
def open_house(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpn]:
    """A gateway that lets devices meet and has no IPv6; both clients are connected."""
    options = ("--no-isolation", "--pool4", POOL4, "--pool6", "none", "--dns", plan.COMPANY_DNS.v4)
    with Vpn(tmp_path_factory.mktemp("open"), *options, relay=False) as vpn:
        for client in vpn.clients:
            client.up("--all")
        yield vpn


def test_without_isolation_devices_reach_each_other(open_house: Vpn) -> None:
    first, second = open_house.clients
    own, other = first.address(4), second.address(4)
    with Datagrams(first.host, own) as here, Datagrams(second.host, other) as there:
        here.send(b"hello", there.address)
        arrived = there.receive()
        assert (arrived.data, arrived.sender) == (b"hello", here.address)
        there.send(b"hello yourself", arrived.sender)
        assert here.receive().data == b"hello yourself"


def test_without_ipv6_at_the_gateway_none_leaves_beside_the_tunnel(open_house: Vpn) -> None:
    client = open_house.clients[0]
    assert client.way(plan.ALPHA.v6) == "refused"
    with Capture(
        open_house.world.router, "lan0", lambda seen: seen.packet.destination == plan.ALPHA.v6
    ) as capture:
        with pytest.raises(OSError, match="No route to host"):
            probes.http_get(client.host, plan.ALPHA.v6, "/ip")
        assert probes.source_seen(client.host, plan.ALPHA.v4) == plan.GATEWAY4
    assert capture.count == 0
