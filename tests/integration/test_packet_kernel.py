"""Our ICMP errors and hop limits before the real kernel: it must believe them.

A socket sends into a TUN in a network namespace of the test's own thread; the test answers from the
other end of the TUN as a gateway would, and the kernel reports the error to the socket.
"""

from __future__ import annotations

import ctypes
import errno
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from qvpn_core.net.tun import Tun
from qvpn_core.packet import (
    Unreachable,
    decrement_hop_limit,
    packet_too_big,
    parse,
    time_exceeded,
    unreachable,
)

pytestmark = pytest.mark.netns

CLONE_NEWNET = 0x40000000  # linux/sched.h
IP_RECVERR, IPV6_RECVERR = 11, 25  # linux/in.h, linux/in6.h
IP_MTU, IPV6_MTU = 14, 24
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, PMTUDISC_DO = 10, 23, 2

FAMILIES = {
    socket.AF_INET: ("192.0.2.1", socket.inet_pton(socket.AF_INET, "10.8.0.1")),
    socket.AF_INET6: ("2001:db8::1", socket.inet_pton(socket.AF_INET6, "fd00::1")),
}


@contextmanager
def tun_world() -> Iterator[Tun]:
    """A fresh network namespace for this thread, with a TUN and default routes into it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with Tun.open("tun0", 1500) as tun:
        commands = (
            "link set lo up",
            "link set tun0 up",
            "addr add 10.8.0.2/24 dev tun0",
            "addr add fd00::2/64 dev tun0 nodad",
            "route add default dev tun0",
            "-6 route add default dev tun0",
        )
        for command in commands:
            subprocess.run(["ip", *command.split()], check=True, timeout=10)
        yield tun


def read_from(tun: Tun, protocol: int) -> bytes:
    """The next packet of `protocol`; the kernel also sends router solicitations and the like."""
    while select.select([tun], [], [], 5)[0]:
        for packet in tun.read_batch(1):
            if parse(packet).protocol == protocol:
                return packet
    raise TimeoutError(f"no packet of protocol {protocol}")


def udp_socket(family: int) -> socket.socket:
    """A UDP socket connected through the TUN that hears of every ICMP error."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
    sock.connect((FAMILIES[socket.AddressFamily(family)][0], 4433))
    return sock


def reported_error(sock: socket.socket, tun: Tun, answer: bytes) -> int:
    """The errno that the kernel hands to the socket for an ICMP error from the TUN.

    What a busy kernel has no room for in its backlog is lost, so it is told more than once.
    """
    sock.settimeout(1)
    for _ in range(10):
        assert tun.write_batch([answer]) == 1
        with pytest.raises(OSError) as raised:  # noqa: PT011
            sock.recv(1)
        if not isinstance(raised.value, TimeoutError):
            break
    assert raised.value.errno is not None
    return raised.value.errno


def in_namespace(scenario: Callable[[], None]) -> None:
    """Runs `scenario` in a thread of its own: unsharing must not move the test process."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(scenario).result(timeout=30)


# net/ipv4/icmp.c icmp_err_convert, net/ipv6/icmp.c tab_unreach.
KERNEL_ERRORS = [
    (socket.AF_INET, Unreachable.NO_ROUTE, errno.ENETUNREACH),
    (socket.AF_INET, Unreachable.HOST, errno.EHOSTUNREACH),
    (socket.AF_INET, Unreachable.PROHIBITED, errno.EHOSTUNREACH),
    (socket.AF_INET6, Unreachable.NO_ROUTE, errno.ENETUNREACH),
    (socket.AF_INET6, Unreachable.HOST, errno.EHOSTUNREACH),
    (socket.AF_INET6, Unreachable.PROHIBITED, errno.EACCES),
    (socket.AF_INET6, Unreachable.BAD_SOURCE, errno.EACCES),
]


def test_unreachable_reaches_the_socket_with_its_reason() -> None:
    def scenario() -> None:
        with tun_world() as tun:
            for family, reason, expected in KERNEL_ERRORS:
                with udp_socket(family) as sock:
                    sock.send(b"hello")
                    packet = read_from(tun, socket.IPPROTO_UDP)
                    answer = unreachable(packet, reason, FAMILIES[family][1])
                    assert answer is not None
                    assert reported_error(sock, tun, answer) == expected, (family, reason)

    in_namespace(scenario)


@pytest.mark.parametrize("family", FAMILIES)
def test_time_exceeded_reaches_the_socket(family: socket.AddressFamily) -> None:
    def scenario() -> None:
        with tun_world() as tun, udp_socket(family) as sock:
            sock.send(b"hello")
            answer = time_exceeded(read_from(tun, socket.IPPROTO_UDP), FAMILIES[family][1])
            assert answer is not None
            assert reported_error(sock, tun, answer) == errno.EHOSTUNREACH

    in_namespace(scenario)


@pytest.mark.parametrize("family", FAMILIES)
def test_packet_too_big_lowers_the_path_mtu(family: socket.AddressFamily) -> None:
    level, option = (
        (socket.IPPROTO_IP, IP_MTU) if family == socket.AF_INET else (socket.IPPROTO_IPV6, IPV6_MTU)
    )

    def scenario() -> None:
        with tun_world() as tun, udp_socket(family) as sock:
            assert sock.getsockopt(level, option) == 1500
            sock.send(bytes(1400))
            packet = read_from(tun, socket.IPPROTO_UDP)
            answer = packet_too_big(packet, 1330, FAMILIES[family][1])
            assert answer is not None
            assert reported_error(sock, tun, answer) == errno.EMSGSIZE
            assert sock.getsockopt(level, option) == 1330

    in_namespace(scenario)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packet_with_a_lower_hop_limit_is_accepted(family: socket.AddressFamily) -> None:
    """A packet comes back to the kernel as if its sender were the other end, one hop further."""

    def scenario() -> None:
        with tun_world() as tun, udp_socket(family) as sock:
            sock.send(b"hello")
            packet = read_from(tun, socket.IPPROTO_UDP)
            lower = decrement_hop_limit(_turned_around(packet))
            assert lower is not None
            assert tun.write_batch([lower]) == 1
            assert sock.recv(100) == b"hello"

    in_namespace(scenario)


def _turned_around(packet: bytes) -> bytes:
    """Source and destination exchanged, addresses and ports: no checksum changes by that."""
    at, size = (12, 4) if packet[0] >> 4 == 4 else (8, 16)
    middle, ports = at + size, parse(packet).header_length
    return b"".join(
        (
            packet[:at],
            packet[middle : middle + size],
            packet[at:middle],
            packet[middle + size : ports],
            packet[ports + 2 : ports + 4],
            packet[ports : ports + 2],
            packet[ports + 4 :],
        )
    )
