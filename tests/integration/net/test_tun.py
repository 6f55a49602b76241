"""TUN devices in the real kernel."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import subprocess
import sys
import time
from ipaddress import ip_interface
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qvpn_core.errors import NetworkSetupFailed, TunUnavailable
from qvpn_core.net import tun as tun_module
from qvpn_core.net.links import bring_up
from qvpn_core.net.tun import Tun

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns
ROOT = str(Path(__file__).resolve().parents[3])


@pytest.fixture(params=["pytun", "plain"])
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open a device."""
    if request.param == "plain":
        monkeypatch.setattr(tun_module, "pytun", None)
    elif tun_module.pytun is None:
        pytest.skip("python-pytun has no wheel here")
    return str(request.param)


def up(tun: Tun) -> None:
    asyncio.run(bring_up(tun.index, [ip_interface("10.1.0.1/24"), ip_interface("fd01::1/64")]))


def read(tun: Tun, limit: int) -> list[bytes]:
    """What is waiting, once something is."""
    assert select.select([tun], [], [], 5)[0]
    return tun.read_batch(limit)


@pytest.mark.usefixtures("opener")
def test_a_device_lives_as_long_as_its_descriptor(namespace: Namespace) -> None:
    before = namespace.snapshot()
    with Tun.open("qvpn0", 1300) as tun:
        assert tun.name == "qvpn0"
        assert tun.index == socket.if_nametoindex("qvpn0")
        assert "mtu 1300" in namespace.ip("link show qvpn0")
        assert not os.get_inheritable(tun.fileno())
        assert tun.read_batch(8) == []
    tun.close()
    assert namespace.snapshot() == before


@pytest.mark.usefixtures("opener", "namespace")
def test_the_kernel_names_a_device_without_a_name() -> None:
    with Tun.open(None, 1400) as first, Tun.open(None, 1400) as second:
        assert first.name != second.name
        assert second.index == socket.if_nametoindex(second.name)


@pytest.mark.usefixtures("opener", "namespace")
def test_packets_come_and_go_in_batches() -> None:
    with Tun.open("qvpn0", 1400) as tun, socket.socket(type=socket.SOCK_DGRAM) as udp:
        up(tun)
        udp.bind(("10.1.0.1", 9))
        for number in range(10):
            udp.sendto(bytes([number]) * 1372, ("10.1.0.2", 9))
        packets = [packet for packet in read(tun, 100) if packet[0] >> 4 == 4]
        assert [packet[28] for packet in packets] == list(range(10))
        assert {len(packet) for packet in packets} == {1400}

        # Back with the addresses exchanged, the sums stay right.
        back = [p[:12] + p[16:20] + p[12:16] + p[20:] for p in packets]
        assert tun.write_batch(back) == 10
        udp.settimeout(5)
        assert [udp.recv(2000)[0] for _ in back] == list(range(10))

        for number in range(10):
            udp.sendto(bytes([number]), ("10.1.0.2", 9))
        assert len(tun.read_batch(4)) == 4
        assert len(tun.read_batch(100)) == 6


@pytest.mark.usefixtures("namespace")
def test_a_refused_packet_does_not_take_the_others_along() -> None:
    with Tun.open("qvpn0", 1400) as tun:
        up(tun)
        good = bytes.fromhex("4500001c00000000401100000a0100020a010001") + bytes(8)
        assert tun.write_batch([good, b"", b"\x00", good]) == 2


@pytest.mark.usefixtures("opener", "namespace")
def test_one_name_has_one_owner() -> None:
    with Tun.open("qvpn0", 1400), pytest.raises(TunUnavailable, match="in use"):
        Tun.open("qvpn0", 1400)


@pytest.mark.usefixtures("opener", "namespace")
def test_an_impossible_mtu_is_refused_and_leaves_no_device() -> None:
    with pytest.raises(NetworkSetupFailed, match="MTU of qvpn0 to 70000"):
        Tun.open("qvpn0", 70000)
    with pytest.raises(OSError, match="no interface"):
        socket.if_nametoindex("qvpn0")


def test_a_device_deleted_under_us_says_so(namespace: Namespace) -> None:
    with Tun.open("qvpn0", 1400) as tun:
        namespace.ip("link delete qvpn0")
        with pytest.raises(TunUnavailable, match="is gone"):
            tun.read_batch(1)


OPEN = """
from qvpn_core.net.tun import Tun
try:
    Tun.open("qvpn0", 1400)
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_missing_driver_is_named(namespace: Namespace) -> None:
    script = 'mount -t tmpfs none /dev/net && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, OPEN],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.stdout.startswith("TunUnavailable")
    assert "modprobe tun" in done.stdout


def test_without_root_it_says_who_may(namespace: Namespace) -> None:
    drop = "import os; from qvpn_core.net.tun import Tun; os.setuid(65534)"
    done = subprocess.run(
        [sys.executable, "-c", drop + OPEN],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    assert done.stdout.startswith("PermissionMissing"), done.stderr
    assert "sudo" in done.stdout


@pytest.mark.usefixtures("namespace")
def test_a_packet_costs_microseconds() -> None:
    """A bound twenty times above what was measured, against an accidental slow path."""
    with Tun.open("qvpn0", 1400) as tun:
        up(tun)
        packet = bytes.fromhex("4500001c00000000401100000a0100020a010001") + bytes(8)
        start = time.process_time()
        assert tun.write_batch([packet] * 2000) == 2000
        assert (time.process_time() - start) / 2000 < 100e-6
