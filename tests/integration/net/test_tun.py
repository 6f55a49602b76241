"""TUN devices in the real kernel."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
HEADER = 10  # linux/virtio_net.h, struct virtio_net_hdr
TUNSETOFFLOAD, USO = 0x400454D0, 0x60  # linux/if_tun.h
UDP_SEGMENT = 103  # linux/udp.h
#: An empty UDP packet to a device that is `up`.
EMPTY = bytes.fromhex("4500001c00000000401100000a0100020a010001") + bytes(8)


@pytest.fixture(params=["pytun", "plain"])
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open a device."""
    if request.param == "plain":
        monkeypatch.setattr(tun_module, "pytun", None)
    elif tun_module.pytun is None:
        pytest.skip("python-pytun has no wheel here")
    return str(request.param)


def up(tun: Tun, host: int = 1) -> None:
    addresses = [ip_interface(f"10.1.0.{host}/24"), ip_interface(f"fd01::{host}/64")]
    asyncio.run(bring_up(tun.index, addresses))


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
        first, rest = tun.read_batch(4), tun.read_batch(100)
        assert len(first) == 4
        assert len([packet for packet in first + rest if packet[0] >> 4 == 4]) == 10


@pytest.mark.usefixtures("namespace")
def test_a_refused_packet_does_not_take_the_others_along() -> None:
    with Tun.open("qvpn0", 1400) as tun:
        up(tun)
        assert tun.write_batch([EMPTY, b"", b"\x00", EMPTY]) == 2


# --- the header and the offloads that it makes possible -------------------------------------------


@pytest.mark.usefixtures("opener", "namespace")
def test_on_the_descriptor_every_packet_follows_a_header() -> None:
    with Tun.open("qvpn0", 1400) as tun, socket.socket(type=socket.SOCK_DGRAM) as udp:
        up(tun)
        udp.bind(("10.1.0.1", 9))
        udp.sendto(b"out", ("10.1.0.2", 9))
        packet = os.read(tun.fileno(), 2000)
        while packet[HEADER] >> 4 == 6:  # the kernel's own words on a new link
            packet = os.read(tun.fileno(), 2000)
        assert packet[:HEADER] == bytes(HEADER)
        assert (packet[HEADER], packet[-3:]) == (0x45, b"out")

        back = packet[:22] + packet[26:30] + packet[22:26] + packet[30:]
        assert os.write(tun.fileno(), back) == len(packet)
        udp.settimeout(5)
        assert udp.recv(100) == b"out"


def carry_tcp(
    tuns: tuple[Tun, Tun], neighbour: Namespace, step: Callable[[Tun, Tun], None], size: int
) -> None:
    """A TCP connection of `size` bytes over two devices that `step` joins: from one to other."""
    near, far = tuns
    with neighbour.entered():
        server = socket.create_server(("10.1.0.2", 9))
    client = socket.socket()

    def receive() -> int:
        with server, server.accept()[0] as connection:
            connection.settimeout(20)
            return sum(len(data) for data in iter(lambda: connection.recv(1 << 20), b""))

    def send() -> None:
        with client:
            client.settimeout(20)
            client.connect(("10.1.0.2", 9))
            client.sendall(bytes(size))

    server.settimeout(20)
    with ThreadPoolExecutor(2) as threads:
        received, sent = threads.submit(receive), threads.submit(send)
        while not (received.done() and sent.done()):
            select.select([near, far], [], [], 0.05)
            step(near, far)
            step(far, near)
    sent.result()
    assert received.result() == size


def join_raw(sizes: list[int]) -> Callable[[Tun, Tun], None]:
    """Packets with their headers, as whatever reads the descriptor joins two devices."""

    def step(source: Tun, target: Tun) -> None:
        with suppress(BlockingIOError):
            for _ in range(64):
                packet = os.read(source.fileno(), HEADER + 65536)
                sizes.append(len(packet) - HEADER)
                os.write(target.fileno(), packet)

    return step


def join_bare(sizes: list[int]) -> Callable[[Tun, Tun], None]:
    """Packets as the reference datapath joins two devices."""

    def step(source: Tun, target: Tun) -> None:
        packets = source.read_batch(64)
        sizes.extend(map(len, packets))
        target.write_batch(packets)

    return step


@pytest.fixture
def two_tuns(namespace: Namespace, neighbour: Namespace) -> Iterator[tuple[Tun, Tun]]:
    """A device here and one in the neighbour's namespace, in one subnet."""
    with Tun.open("qvpn0", 1400) as near:
        up(near)
        with neighbour.entered():
            far = Tun.open("qvpn0", 1400)
            with far:
                up(far, host=2)
                with namespace.entered():
                    yield near, far


def test_offloads_bring_large_packets_and_their_end_ends_them(
    neighbour: Namespace, two_tuns: tuple[Tun, Tun]
) -> None:
    """Off at the beginning; on, TCP comes in super-packets, which a device takes as they are."""
    size = 4 << 20
    join_with: dict[bool, Callable[[list[int]], Callable[[Tun, Tun], None]]]
    join_with = {False: join_bare, True: join_raw}
    for on in (False, True, False):
        assert all(tun.set_offload(on) for tun in two_tuns)
        for tun in two_tuns:
            tun.read_batch(100)  # the last words of the connection before
        before = [tun.unfinished for tun in two_tuns]
        sizes: list[int] = []
        carry_tcp(two_tuns, neighbour, join_with[on](sizes), size)
        if on:
            assert max(sizes) > 20_000
            assert len(sizes) < size / 1400
        else:
            assert max(sizes) == 1400
        assert [tun.unfinished for tun in two_tuns] == before


@pytest.mark.usefixtures("namespace")
def test_what_waited_for_an_offload_when_they_ended_is_dropped_and_counted() -> None:
    with Tun.open("qvpn0", 1400) as tun, socket.socket(type=socket.SOCK_DGRAM) as udp:
        up(tun)
        udp.bind(("10.1.0.1", 9))
        assert tun.set_offload(True)
        udp.sendto(b"no checksum yet", ("10.1.0.2", 9))
        udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        udp.sendto(bytes(20_000), ("10.1.0.2", 9))  # 20 packets in one
        assert tun.set_offload(False)
        udp.sendto(bytes(2_000), ("10.1.0.2", 9))
        packets = [packet for packet in tun.read_batch(100) if packet[0] >> 4 == 4]
        assert [len(packet) for packet in packets] == [1028, 1028]
        # A kernel without UDP offloads has cut the second one, and left the checksums.
        assert tun.unfinished in (2, 21)


@pytest.mark.parametrize(
    ("refused", "left"), [(0, 0x6F), (USO, 0x0F), (~0, None)], ids=["current", "old", "none"]
)
@pytest.mark.usefixtures("namespace")
def test_offloads_are_what_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, refused: int, left: int | None
) -> None:
    """A kernel before 6.2 has none for UDP, and refuses the others along with them."""
    taken: list[int] = []

    def ioctl(fd: int, request: int, argument: int) -> int:
        assert request == TUNSETOFFLOAD
        if argument & refused:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        taken.append(argument)
        return 0

    with Tun.open("qvpn0", 1400) as tun:
        monkeypatch.setattr(fcntl, "ioctl", ioctl)
        assert tun.set_offload(True) == (left is not None)
        assert tun.set_offload(False)
        assert taken == [*([] if left is None else [left]), 0]


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
        start = time.process_time()
        assert tun.write_batch([EMPTY] * 2000) == 2000
        assert (time.process_time() - start) / 2000 < 100e-6
