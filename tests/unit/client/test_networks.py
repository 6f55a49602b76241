"""What a client remembers of networks, and that nothing it finds on the disk can harm it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvpn_core.client import networks
from qvpn_core.client.networks import MAX_NETWORKS, Networks, default_router

ROUTE = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    "eth0\t0032A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    "eth0\t00000000\t0132A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
)
ARP = (
    "IP address       HW type     Flags       HW address            Mask     Device\n"
    "192.168.50.1     0x1         0x2         {mac}     *        eth0\n"
)
ROUTE6 = (
    f"{'0' * 32} 00 {'0' * 32} 00 fe800000000000000000000000000001 00000400 00000001 00000000 "
    "00000003 wlan0\n"
)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up /proc/net, and a state directory of its own."""
    monkeypatch.setenv("QVPN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(networks, "_PROC", tmp_path)
    (tmp_path / "route").write_text(ROUTE)
    (tmp_path / "arp").write_text(ARP.format(mac="02:00:00:00:00:01"))
    return tmp_path


def test_the_router_is_known_by_its_interface_and_addresses(proc: Path) -> None:
    assert default_router() == "eth0 192.168.50.1 02:00:00:00:00:01"
    (proc / "route").write_text("")
    (proc / "ipv6_route").write_text(ROUTE6)
    assert default_router() == "wlan0 fe800000000000000000000000000001"
    (proc / "ipv6_route").unlink()
    assert default_router() == ""


def test_each_network_and_gateway_is_remembered_for_itself(proc: Path) -> None:
    home = Networks("gw.example")
    assert not home.udp_was_blocked()
    home.note("tls")
    assert home.udp_was_blocked()
    assert not Networks("other.example").udp_was_blocked()
    (proc / "arp").write_text(ARP.format(mac="02:00:00:00:00:02"))
    assert not home.udp_was_blocked()
    home.note("quic")
    (proc / "arp").write_text(ARP.format(mac="02:00:00:00:00:01"))
    assert home.udp_was_blocked()
    home.note("quic")
    assert not home.udp_was_blocked()


def test_the_file_is_small_private_and_says_nothing(proc: Path) -> None:
    for number in range(MAX_NETWORKS + 20):
        (proc / "arp").write_text(ARP.format(mac=f"02:00:00:00:00:{number:02x}"))
        Networks("gw.example").note("tls")
    file = proc / "state" / "networks.json"
    known = json.loads(file.read_text())
    assert len(known) == MAX_NETWORKS
    assert Networks("gw.example").udp_was_blocked(), "the newest is kept"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "example" not in file.read_text()
    assert "192.168" not in file.read_text()


@pytest.mark.parametrize("junk", [b"", b"[]", b"{", b'{"a": 1}', b"\xff" * 100, b"{" * 100_000])
def test_a_damaged_file_is_forgotten(proc: Path, junk: bytes) -> None:
    (proc / "state").mkdir()
    (proc / "state" / "networks.json").write_bytes(junk)
    memory = Networks("gw.example")
    assert not memory.udp_was_blocked()
    memory.note("tls")
    assert memory.udp_was_blocked()


def test_what_was_learnt_long_ago_or_in_the_future_does_not_count(
    proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Networks("gw.example")
    memory.note("tls")
    now = networks.time.time()
    for other in (now + networks.GOOD_FOR + 60, now - networks.GOOD_FOR - 60):
        monkeypatch.setattr(networks.time, "time", lambda other=other: other)
        assert not memory.udp_was_blocked()


def test_a_disk_that_refuses_is_no_error(proc: Path) -> None:
    (proc / "state").write_text("a file where the directory should be")
    memory = Networks("gw.example")
    memory.note("tls")
    assert not memory.udp_was_blocked()
