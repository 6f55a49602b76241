"""The kill switch in the real kernel: what it lets out, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qvpn_core.errors import NetworkSetupFailed
from qvpn_core.net import killswitch
from qvpn_core.net.names import CLIENT_TUN, FWMARK, RULE_PRIORITY, TABLE
from qvpn_core.net.plan import KillSwitch
from tests.world.packets import ICMP6, Packet, dissect

if TYPE_CHECKING:
    from conftest import Namespace

pytestmark = pytest.mark.netns
NEIGHBOUR = {4: "192.0.2.2", 6: "2001:db8:1::2"}
#: Behind the neighbour, which has the addresses on its loopback.
FAR = {4: "203.0.113.9", 6: "2001:db8:9::9"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
EVERYTHING = KillSwitch()
USER = 54321
_libc = ctypes.CDLL(None, use_errno=True)
#: Neighbour discovery and multicast listener reports.
CHATTER = frozenset({130, 131, 132, 133, 134, 135, 136, 143})

PREFIXES6 = ("2001:db9", "fd00", "2600")
IPNetwork = IPv4Network | IPv6Network

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def host(
    namespace: Namespace, neighbour: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Namespace:
    """A host whose default router is its neighbour; what a kill switch stores is the test's."""
    monkeypatch.setattr(killswitch, "STORE", tmp_path / "store" / "kill-switch.json")
    monkeypatch.setattr(killswitch, "MARKERS", tmp_path / "run")
    with neighbour.entered():
        neighbour.ip(f"address add {FAR[4]}/32 dev lo")
        neighbour.ip(f"address add {FAR[6]}/128 dev lo nodad")
    namespace.ip(f"route add default via {NEIGHBOUR[4]}")
    namespace.ip(f"-6 route add default via {NEIGHBOUR[6]}")
    return namespace


class Wire:
    """What arrived at the neighbour's end of the link since `clear`, chatter of IPv6 apart."""

    def __init__(self, neighbour: Namespace) -> None:
        with neighbour.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
            self._socket.bind(("eth0", 3))
        self._socket.setblocking(False)

    def packets(self) -> list[Packet]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, address = self._socket.recvfrom(65535)
                packet = dissect(data)
                if address[2] == 4 or packet is None:  # PACKET_OUTGOING; ARP
                    continue
                if packet.protocol == ICMP6 and packet.data[packet.transport] in CHATTER:
                    continue
                found.append(packet)
        return found

    clear = packets

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(host: Namespace, neighbour: Namespace) -> Iterator[Wire]:
    opened = Wire(neighbour)
    yield opened
    opened.close()


@contextlib.contextmanager
def listening(space: Namespace, address: str, port: int) -> Iterator[socket.socket]:
    family = FAMILY[ip_address(address).version]
    with space.entered():
        server = socket.create_server((address, port), family=family)
    with server:
        server.settimeout(5)
        yield server


def send(address: str, port: int = 9, *, mark: int = 0, source_port: int = 0) -> int:
    """Send a datagram; the errno, 0 when it went."""
    version = ip_address(address.partition("%")[0]).version
    with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sock:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if source_port:
            sock.bind(("", source_port))
        try:
            sock.sendto(b"x", socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])
        except OSError as error:
            return error.errno or -1
    return 0


def connect(address: str, port: int, *, mark: int = 0, seconds: float = 5.0) -> int:
    """Connect by TCP; the errno, 0 when connected."""
    with socket.socket(FAMILY[ip_address(address).version], socket.SOCK_STREAM) as sock:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sock.settimeout(seconds)
        try:
            sock.connect((address, port))
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or -1
    return 0


def connect_as(uid: int, address: str, port: int) -> int:
    """As `connect`, from a socket of another user: whose it is, the file system's user id says."""

    def attempt() -> int:
        _libc.setfsuid(uid)  # of this thread, which ends
        return connect(address, port, seconds=2.0)

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(attempt).result()


# --- what leaves ------------------------------------------------------------------------------


@versions
def test_everything_is_refused_at_once_and_nothing_leaves(
    host: Namespace, neighbour: Namespace, wire: Wire, version: int
) -> None:
    with listening(neighbour, FAR[version], 80):
        assert connect(FAR[version], 80) == 0
        assert send(FAR[version]) == 0
        wire.clear()
        killswitch.install(EVERYTHING)
        begin = time.monotonic()
        assert connect(FAR[version], 80) == errno.ECONNREFUSED
        assert send(FAR[version]) == errno.EPERM
        assert send(NEIGHBOUR[version]) == errno.EPERM
        # Far below the first retransmission, after a second.
        assert time.monotonic() - begin < 0.9
        ping = subprocess.run(["ping", "-n", "-c1", "-W1", FAR[version]], capture_output=True)
        assert ping.returncode
        assert wire.packets() == []
        killswitch.release()
        assert connect(FAR[version], 80) == 0


@versions
def test_loopback_stays(host: Namespace, version: int) -> None:
    killswitch.install(EVERYTHING)
    own = {4: ("127.0.0.1", "192.0.2.1"), 6: ("::1", "2001:db8:1::1")}[version]
    for address in own:
        with listening(host, address, 8080):
            assert connect(address, 8080) == 0


@versions
def test_only_the_transport_s_sockets_leave(
    host: Namespace, neighbour: Namespace, wire: Wire, version: int
) -> None:
    killswitch.install(EVERYTHING)
    with listening(neighbour, FAR[version], 443):
        assert connect(FAR[version], 443, mark=FWMARK) == 0
    assert send(FAR[version], mark=FWMARK) == 0
    assert send(FAR[version], mark=FWMARK + 1) == errno.EPERM
    wire.clear()
    # ping may set a mark for any user who runs it.
    argv = ["ping", "-n", "-c1", "-W1", "-m", str(FWMARK), FAR[version]]
    assert subprocess.run(argv, capture_output=True).returncode
    assert wire.packets() == []


def test_neighbours_are_found_and_leases_renewed(host: Namespace, wire: Wire) -> None:
    killswitch.install(EVERYTHING)
    host.ip("neigh flush dev eth0")
    assert send(FAR[6], mark=FWMARK) == 0
    deadline = time.monotonic() + 5
    seen: list[Packet] = []
    while not seen and time.monotonic() < deadline:
        seen = wire.packets()
    assert [packet.destination for packet in seen] == [FAR[6]]
    assert send(NEIGHBOUR[4], 67, source_port=68) == 0
    assert send("ff02::1:2%eth0", 547, source_port=546) == 0
    assert send(NEIGHBOUR[4], 67) == errno.EPERM
    assert send(FAR[6], 547, source_port=546) == errno.EPERM


@versions
def test_answers_to_what_comes_in_do_not_leave_either(
    host: Namespace, neighbour: Namespace, wire: Wire, version: int
) -> None:
    own = {4: "192.0.2.1", 6: "2001:db8:1::1"}[version]
    with listening(host, own, 22) as server:
        with neighbour.entered(), socket.create_connection((own, 22), 5) as visitor:
            accepted, _ = server.accept()
            with accepted:
                with host.entered():
                    killswitch.install(EVERYTHING)
                wire.clear()
                with contextlib.suppress(OSError):
                    accepted.sendall(b"secret")
                visitor.sendall(b"hello")  # whose acknowledgement must not come
                argv = ["ping", "-n", "-c1", "-W1", own]
                assert subprocess.run(argv, capture_output=True).returncode
                assert connect(own, 22, seconds=0.3) == errno.ETIMEDOUT  # no answer
                assert connect(own, 23, seconds=0.3) == errno.ETIMEDOUT  # no reset
                assert wire.packets() == []


def test_the_lan_s_hosts_are_searched_for_only_where_the_user_says_so(host: Namespace) -> None:
    searches = [
        ("224.0.0.251", 5353), ("ff02::fb%eth0", 5353), ("239.255.255.250", 1900),
        ("ff02::c%eth0", 1900), ("224.0.0.252", 5355), ("ff02::1:3%eth0", 5355),
        ("239.255.255.250", 3702), ("ff02::c%eth0", 3702),
    ]  # fmt: skip
    others = [("224.0.0.251", 53), ("239.1.1.1", 1900), ("ff02::fb%eth0", 53), ("ff05::c", 1900)]
    killswitch.install(EVERYTHING)
    assert {send(*search) for search in searches} == {errno.EPERM}
    killswitch.install(KillSwitch(lan=True))
    assert {send(*search) for search in searches} == {0}
    assert {send(*other) for other in others} == {errno.EPERM}
    assert send("169.254.3.4") in (0, errno.EHOSTUNREACH)
    assert send(NEIGHBOUR[4]) == errno.EPERM  # on the link, but not said to be the LAN


def test_only_what_the_user_named_is_protected(host: Namespace) -> None:
    protected = (ip_network("203.0.113.0/24"), ip_network("2001:db8:9::/48"))
    killswitch.install(KillSwitch(protected, exempt=(ip_network("203.0.113.64/26"),)))
    assert send(FAR[4]) == send(FAR[6]) == errno.EPERM
    assert send("203.0.113.65") == send(NEIGHBOUR[4]) == send(NEIGHBOUR[6]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_the_kernel_refuses_what_the_plan_says_it_blocks(host: Namespace, seed: int) -> None:
    chance = random.Random(seed)

    def network() -> IPNetwork:
        lengths = (0, 8, 13, 16, 24, 32) if chance.random() < 0.5 else (0, 16, 45, 48, 64, 128)
        if 24 in lengths:
            text = f"{chance.choice((10, 100, 203))}.{chance.randrange(4)}.0.0"
        else:
            text = f"{chance.choice(PREFIXES6)}:{chance.randrange(4):x}::"
        return ip_network(f"{text}/{chance.choice(lengths)}", strict=False)

    def destination() -> str:
        if chance.random() < 0.5:
            return f"{chance.choice((10, 11, 100, 203))}.{chance.randrange(6)}.0.1"
        return f"{chance.choice(PREFIXES6)}:{chance.randrange(4):x}::{chance.randrange(3):x}"

    for _ in range(10):
        protected = tuple(network() for _ in range(chance.randrange(5)))
        exempt = tuple(network() for _ in range(chance.randrange(5)))
        plan = KillSwitch(protected or None, exempt, lan=chance.random() < 0.5)
        killswitch.install(plan)
        for _ in range(60):
            address = destination()
            assert (send(address) == errno.EPERM) == plan.blocks(ip_address(address)), address


def test_thousands_of_networks_are_one_quick_transaction(host: Namespace) -> None:
    def networks(first: int) -> tuple[object, ...]:
        return (
            *(ip_network((first << 24 | number << 9, 24)) for number in range(4096)),
            *(ip_network((first << 120 | number << 64, 64)) for number in range(4096)),
        )

    begin = time.monotonic()
    killswitch.install(KillSwitch(networks(0x2A), networks(0x2B)))  # type: ignore[arg-type]
    assert time.monotonic() - begin < 10
    assert send("42.0.0.1") == errno.EPERM
    assert send("43.0.0.1") == 0


def test_forwarded_packets_do_not_leave_either(
    host: Namespace, neighbour: Namespace, wire: Wire
) -> None:
    """A container behind this host: its packets are routed, marked or not."""
    container = type(host)()
    try:
        host.ip(f"link add c0 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{container.fd}")
        host.ip("address add 172.17.0.1/24 dev c0")
        host.ip("address add fd17::1/64 dev c0 nodad")
        host.ip("link set c0 up")
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", name).write_text("1")
        with container.entered():
            Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
            container.ip("address add 172.17.0.2/24 dev eth0")
            container.ip("address add fd17::2/64 dev eth0 nodad")
            container.ip("link set eth0 up")
            container.wait_until_up("eth0")
            container.ip("route add default via 172.17.0.1")
            container.ip("-6 route add default via fd17::1")

        def use(*, mark: int = 0) -> list[int]:
            with container.entered():
                return [
                    result
                    for version in (4, 6)
                    for result in (
                        send(FAR[version], mark=mark),
                        connect(FAR[version], 80, mark=mark, seconds=0.5),
                    )
                ]

        use()
        assert wire.packets()
        containers = (ip_network("172.17.0.0/24"), ip_network("fd17::/64"))
        # The refusal is a packet too: it reaches whom the host may speak to.
        for plan, answer in (
            (EVERYTHING, errno.ETIMEDOUT),
            (KillSwitch(exempt=containers), errno.ECONNREFUSED),
        ):
            killswitch.install(plan)
            wire.clear()
            for mark in (0, FWMARK):
                assert use(mark=mark) == [0, answer] * 2
            assert wire.packets() == []
    finally:
        container.close()


def test_changing_the_rules_opens_nothing_for_a_moment(
    host: Namespace, neighbour: Namespace, wire: Wire
) -> None:
    plans = [
        EVERYTHING, KillSwitch(lan=True), KillSwitch(exempt=(ip_network("10.0.0.0/8"),)),
        KillSwitch((ip_network("203.0.113.0/24"), ip_network("2001:db8:9::/48"))),
    ]  # fmt: skip
    killswitch.install(plans[0])
    wire.clear()
    over = threading.Event()
    sent = 0

    def flood() -> None:
        nonlocal sent
        with host.entered():
            while not over.is_set():
                for version in (4, 6):
                    assert send(FAR[version]) == errno.EPERM
                    sent += 1

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        for number in range(40):
            killswitch.install(plans[number % len(plans)])
    finally:
        over.set()
        flooder.join()
    assert sent > 100
    assert wire.packets() == []


# --- the captive portal -----------------------------------------------------------------------


@versions
def test_one_user_may_sign_in_for_a_time(
    host: Namespace, neighbour: Namespace, version: int
) -> None:
    killswitch.install(EVERYTHING)
    portal = FAR[version]
    with listening(neighbour, portal, 80), listening(neighbour, portal, 25):
        assert connect_as(USER, portal, 80) == errno.ECONNREFUSED
        killswitch.sign_in(USER, 5)
        assert connect_as(USER, portal, 80) == 0
        assert connect_as(USER, portal, 25) == errno.ECONNREFUSED
        assert connect_as(USER + 1, portal, 80) == errno.ECONNREFUSED
        assert connect(portal, 80) == errno.ECONNREFUSED  # root is not this user
        # The machine's resolver asks on behalf of the user.
        assert send(portal, 53) == 0
        killswitch.install(KillSwitch(lan=True))  # a change does not end it
        assert connect_as(USER, portal, 80) == 0
        until_refused(lambda: connect_as(USER, portal, 80))
        assert send(portal, 53) == errno.EPERM


def until_refused(attempt: Callable[[], int]) -> None:
    deadline = time.monotonic() + 30
    while (result := attempt()) != errno.ECONNREFUSED:
        assert result == 0
        assert time.monotonic() < deadline, "the exception does not end"
        time.sleep(0.2)


@versions
@pytest.mark.parametrize("rp_filter", ["1", "2"])
def test_signing_in_works_while_routes_lead_into_a_tunnel_that_is_down(
    host: Namespace, neighbour: Namespace, version: int, rp_filter: str
) -> None:
    host.ip(f"tuntap add {CLIENT_TUN} mode tun")
    host.ip(f"address add 10.86.0.2/32 dev {CLIENT_TUN}")
    host.ip(f"address add fd86::2/128 dev {CLIENT_TUN} nodad")
    host.ip(f"link set {CLIENT_TUN} up")
    for family in ("-4", "-6"):
        host.ip(f"{family} route add default dev {CLIENT_TUN} table {TABLE}")
        host.ip(f"{family} rule add not fwmark {FWMARK} table {TABLE} priority {RULE_PRIORITY}")
    Path("/proc/sys/net/ipv4/conf/eth0/rp_filter").write_text(rp_filter)
    Path("/proc/sys/net/ipv4/conf/all/src_valid_mark").write_text("1")
    killswitch.install(EVERYTHING)
    # The neighbour knows no way to an address inside the tunnel: the source must be translated.
    with listening(neighbour, FAR[version], 443):
        killswitch.sign_in(USER, 60)
        assert connect_as(USER, FAR[version], 443) == 0
        killswitch.release()
        assert connect_as(USER, FAR[version], 443) == errno.ETIMEDOUT  # it is down


def test_system_users_may_sign_in_too(host: Namespace) -> None:
    for uid in (0, 999, 1000):
        killswitch.sign_in(uid, 60)
    killswitch.unlock()
    assert host.sh("nft list ruleset") == ""


# --- its life ---------------------------------------------------------------------------------


def test_it_ends_with_its_session_but_not_with_its_maker(host: Namespace) -> None:
    maker = threading.Thread(target=lambda: inside(host, lambda: killswitch.install(EVERYTHING)))
    maker.start()
    maker.join()
    assert send(FAR[4]) == errno.EPERM
    assert killswitch.holding() == "on"
    for _ in range(2):
        killswitch.release()
        assert send(FAR[4]) == 0
        assert killswitch.holding() is None
        assert host.sh("nft list ruleset") == ""


def inside(space: Namespace, act: Callable[[], None]) -> None:
    with space.entered():
        act()


def test_always_stays_after_its_session_and_comes_back_with_the_boot(host: Namespace) -> None:
    plan = KillSwitch(
        exempt=(ip_network("192.0.2.0/24"), ip_network("fd00::/64")), lan=True, always=True
    )
    killswitch.install(plan)
    assert killswitch.load() == plan
    assert killswitch.STORE.stat().st_mode & 0o777 == 0o600
    killswitch.release()
    assert send(FAR[4]) == errno.EPERM
    assert killswitch.holding() == "always"
    # A reboot: the kernel has forgotten, /run as well.
    host.sh("nft flush ruleset")
    (path,) = killswitch.MARKERS.iterdir()
    path.unlink()
    killswitch.release()
    assert (send(FAR[4]), send(NEIGHBOUR[4])) == (errno.EPERM, 0)
    assert killswitch.holding() == "always"
    for _ in range(2):
        killswitch.unlock()
        assert send(FAR[4]) == 0
        assert killswitch.holding() is None
        assert killswitch.load() is None
        assert host.sh("nft list ruleset") == ""


def test_a_session_of_its_own_wish_comes_before_an_always_and_gives_back_to_it(
    host: Namespace,
) -> None:
    killswitch.install(KillSwitch(always=True))
    killswitch.install(KillSwitch((ip_network("203.0.113.0/24"),)))
    assert (send(FAR[4]), send(NEIGHBOUR[4])) == (errno.EPERM, 0)
    killswitch.release()
    assert send(NEIGHBOUR[4]) == errno.EPERM


@pytest.mark.parametrize("text", ["", "{}", "null", '{"protected":["x"],"exempt":[],"lan":true}'])
def test_a_damaged_store_blocks_everything_until_it_is_unlocked(host: Namespace, text: str) -> None:
    killswitch.STORE.parent.mkdir()
    killswitch.STORE.write_text(text)
    killswitch.release()
    assert send(NEIGHBOUR[4]) == errno.EPERM
    killswitch.unlock()
    assert send(NEIGHBOUR[4]) == 0


def test_a_full_disk_is_an_error_that_releases(host: Namespace) -> None:
    directory = killswitch.STORE.parent
    directory.mkdir()
    host.sh(f"mount -t tmpfs -o size=4k none {directory}")
    try:
        (directory / "full").write_bytes(bytes(4096))
        with pytest.raises(NetworkSetupFailed, match="disk full"):
            killswitch.install(KillSwitch(always=True))
        killswitch.release()
        assert send(FAR[4]) == 0
        assert os.listdir(directory) == ["full"]
    finally:
        host.sh(f"umount {directory}")


def test_rules_that_the_kernel_refuses_leave_those_before(
    host: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    killswitch.install(EVERYTHING)
    monkeypatch.setattr(killswitch, "script", lambda plan: "table inet nonsense {")
    with pytest.raises(NetworkSetupFailed):
        killswitch.install(KillSwitch(always=True))
    assert send(FAR[4]) == errno.EPERM
    assert killswitch.holding() == "on"
    assert killswitch.load() is None
