"""The gateway's firewall and forwarding in the real kernel.

A device is played by writing its packets into the gateway's TUN, the internet by a neighbour.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.net import nft
from qvpn_core.net.firewall import NatPool, install_gateway, remove_gateway
from qvpn_core.net.forwarding import Forwarding
from qvpn_core.net.links import bring_up
from qvpn_core.net.names import GATEWAY_TUN
from qvpn_core.net.tun import Tun

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns

POOLS = ip_network("10.86.0.0/24"), ip_network("fd86::/64")
DEVICE = {4: "10.86.0.2", 6: "fd86::2"}
OTHER_DEVICE = {4: "10.86.0.3", 6: "fd86::3"}
UPLINK = {4: "192.0.2.1", 6: "2001:db8:1::1"}
INTERNET = {4: "192.0.2.2", 6: "2001:db8:1::2"}
PORT = 5353
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def udp(source: str, destination: str, payload: bytes) -> bytes:
    """A UDP packet from and to PORT."""
    here, there = ip_address(source).packed, ip_address(destination).packed
    size = 8 + len(payload)
    body = struct.pack("!HHHH", PORT, PORT, size, 0) + payload
    body = body[:6] + checksum(here + there + struct.pack("!II", size, 17) + body) + body[8:]
    if len(here) == 4:
        head = struct.pack("!BBHIBBH", 0x45, 0, 20 + size, 0, 64, 17, 0) + here + there
        return head[:10] + checksum(head) + head[12:] + body
    return struct.pack("!IHBB", 6 << 28, size, 17, 64) + here + there + body


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def next_packet(tun: Tun, version: int) -> bytes:
    """The next packet of this version that the kernel sends to devices, without multicast."""
    while select.select([tun], [], [], 5)[0]:
        (packet,) = tun.read_batch(1)
        if packet[0] >> 4 == version and packet[24] != 0xFF:
            return packet
    raise AssertionError("nothing came")


@pytest.fixture
def gateway(namespace: Namespace, neighbour: Namespace, tmp_path: Path) -> Iterator[Tun]:
    """The TUN of a forwarding gateway whose uplink is `eth0`."""
    with Tun.open(GATEWAY_TUN, 1400) as tun:
        asyncio.run(bring_up(tun.index, [ip_interface("10.86.0.1/24"), ip_interface("fd86::1/64")]))
        asyncio.run(Forwarding(tmp_path / "forwarding.json").enable())
        yield tun


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def internet(neighbour: Namespace, gateway: Tun, version: int) -> Iterator[socket.socket]:
    with neighbour.entered():
        server = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
        neighbour.ip(f"-{version} route add {POOLS[version == 6]} via {UPLINK[version]}")
    with server:
        server.bind((INTERNET[version], PORT))
        server.settimeout(5)
        yield server


def install(*, isolate: bool = False, masquerade: bool = True) -> None:
    pools = [NatPool(pool, masquerade) for pool in POOLS]
    asyncio.run(install_gateway(GATEWAY_TUN, pools, isolate=isolate))


def test_devices_go_out_behind_the_gateways_address(
    gateway: Tun, internet: socket.socket, version: int
) -> None:
    install()
    gateway.write_batch([udp(DEVICE[version], INTERNET[version], b"hello")])
    payload, peer = internet.recvfrom(100)
    assert (payload, peer[0]) == (b"hello", UPLINK[version])
    internet.sendto(b"reply", peer)
    reply = next_packet(gateway, version)
    assert reply.endswith(b"reply")
    assert ip_address(DEVICE[version]).packed in reply


def test_a_routed_pool_keeps_its_addresses_both_ways(
    gateway: Tun, internet: socket.socket, version: int
) -> None:
    install(masquerade=False)
    gateway.write_batch([udp(DEVICE[version], INTERNET[version], b"hello")])
    assert internet.recvfrom(100)[1][0] == DEVICE[version]
    internet.sendto(b"unasked", (OTHER_DEVICE[version], PORT))
    assert next_packet(gateway, version).endswith(b"unasked")


def test_nobody_outside_opens_connections_to_masqueraded_devices(
    gateway: Tun, internet: socket.socket, version: int
) -> None:
    install()
    internet.sendto(b"unasked", (OTHER_DEVICE[version], PORT))
    gateway.write_batch([udp(DEVICE[version], INTERNET[version], b"hello")])
    internet.sendto(b"reply", internet.recvfrom(100)[1])
    assert next_packet(gateway, version).endswith(b"reply")


@pytest.mark.usefixtures("neighbour")
def test_devices_reach_each_other_only_without_isolation(gateway: Tun, version: int) -> None:
    packet = udp(DEVICE[version], OTHER_DEVICE[version], b"hello")
    install(isolate=False)
    gateway.write_batch([packet])
    assert next_packet(gateway, version).endswith(b"hello")
    install(isolate=True)
    gateway.write_batch([packet])
    refusal = next_packet(gateway, version)
    kind = refusal[20:22] if version == 4 else refusal[40:42]
    # Destination unreachable, administratively prohibited: RFC 1812 5.2.7.1, RFC 4443 3.1.
    assert kind == (b"\x03\x0d" if version == 4 else b"\x01\x01")


def test_the_firewall_is_installed_twice_and_removed_twice(namespace: Namespace) -> None:
    nft.run("table inet other { chain c { type filter hook input priority 0; accept; }; }")
    before = namespace.snapshot()
    install(isolate=True)
    once = namespace.snapshot()
    install(isolate=True)
    assert namespace.snapshot() == once != before
    asyncio.run(remove_gateway())
    asyncio.run(remove_gateway())
    assert namespace.snapshot() == before


def test_what_nft_refuses_is_an_error_and_changes_nothing(namespace: Namespace) -> None:
    before = namespace.snapshot()
    with pytest.raises(NetworkSetupFailed, match="nft refused"):
        nft.run("table inet half { }\nnonsense\n")
    assert namespace.snapshot() == before


# --- forwarding -------------------------------------------------------------------------------


def settings() -> dict[str, str]:
    names = ["ipv4/ip_forward", "ipv4/conf/all/accept_redirects", "ipv4/conf/eth0/forwarding"]
    names += ["ipv6/conf/all/forwarding", "ipv6/conf/eth0/accept_ra", "ipv6/conf/lo/forwarding"]
    names += ["ipv6/conf/eth0/forwarding", "ipv6/conf/default/forwarding"]
    names += ["ipv4/conf/all/send_redirects"]
    return {name: Path("/proc/sys/net", name).read_text().strip() for name in names}


def put(name: str, value: str) -> None:
    Path("/proc/sys/net", name).write_text(value)


@pytest.mark.usefixtures("namespace", "neighbour")
@pytest.mark.parametrize("redirects", ["0", "1"])
@pytest.mark.parametrize("one_forwards", [False, True])
def test_forwarding_goes_on_and_back(tmp_path: Path, redirects: str, one_forwards: bool) -> None:
    put("ipv4/conf/all/accept_redirects", redirects)
    if one_forwards:
        put("ipv4/conf/eth0/forwarding", "1")
        put("ipv6/conf/lo/forwarding", "1")
    before = settings()
    forwarding = Forwarding(tmp_path / "state.json")
    asyncio.run(forwarding.enable())
    during = settings()
    assert during["ipv4/ip_forward"] == during["ipv6/conf/all/forwarding"] == "1"
    assert during["ipv6/conf/eth0/accept_ra"] == "2"
    asyncio.run(forwarding.restore())
    assert settings() == before
    asyncio.run(forwarding.restore())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("namespace", "neighbour")
def test_the_successor_of_a_killed_gateway_restores_what_was_before_it(tmp_path: Path) -> None:
    before = settings()
    asyncio.run(Forwarding(tmp_path / "state.json").enable())
    successor = Forwarding(tmp_path / "state.json")
    asyncio.run(successor.enable())
    assert settings()["ipv4/ip_forward"] == "1"
    asyncio.run(successor.restore())
    assert settings() == before


@pytest.mark.usefixtures("namespace", "neighbour")
def test_what_forwards_already_is_left_alone(tmp_path: Path) -> None:
    put("ipv4/ip_forward", "1")
    put("ipv6/conf/all/forwarding", "1")
    put("ipv4/conf/all/send_redirects", "0")
    before = settings()
    forwarding = Forwarding(tmp_path / "state.json")
    asyncio.run(forwarding.enable())
    assert list(tmp_path.iterdir()) == []
    asyncio.run(forwarding.restore())
    assert settings() == before


@pytest.mark.usefixtures("namespace", "neighbour")
def test_a_state_file_of_an_earlier_boot_means_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    asyncio.run(Forwarding(state).enable())
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    state.write_text(state.read_text().replace(boot, "another"))
    during = settings()
    asyncio.run(Forwarding(state).restore())
    assert settings() == during
    assert not state.exists()


@pytest.mark.usefixtures("namespace", "neighbour")
def test_nothing_changes_when_it_cannot_be_remembered(tmp_path: Path) -> None:
    before = settings()
    with pytest.raises(NetworkSetupFailed, match="cannot write"):
        asyncio.run(Forwarding(tmp_path / "missing" / "state.json").enable())
    assert settings() == before


@pytest.mark.usefixtures("namespace", "neighbour")
def test_a_broken_state_file_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text('{"boot": 1}')
    with pytest.raises(NetworkSetupFailed, match=r"state\.json"):
        asyncio.run(Forwarding(state).enable())


@pytest.mark.usefixtures("namespace")
def test_a_state_file_cannot_name_any_other_setting(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    for name in (
        "kernel/core_pattern",
        "net/ipv4/conf/../ip_forward",
        "net/ipv4/conf/a/b/forwarding",
    ):
        setting = {"type": "setting", "name": name, "previous": "0", "ours": "1"}
        state.write_text(json.dumps({"boot": "x", "switched": [setting]}))
        with pytest.raises(NetworkSetupFailed, match="not a setting that qvpn touches"):
            asyncio.run(Forwarding(state).restore())
