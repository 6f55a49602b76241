"""The resolvers that distributions have, run for real in a machine of their own.

systemd-resolved, NetworkManager, Debian's resolvconf and openresolv, unpacked from their Debian
packages, on a private system bus.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from qvpn_core.errors import DnsSetupFailed
from qvpn_core.net import dns
from qvpn_core.net.dns import Detection, DnsPlan, DnsRecord
from qvpn_core.net.dns.bus import BUDGET
from qvpn_core.net.dns.keeper import MAX_REPAIRS, DnsKeeper
from qvpn_core.net.dns.records import GlobalDns, GlobalDomain, RestoreGlobalDns
from tests.world.machine import Machine, unpack, until
from tests.world.namespaces import Namespace

pytestmark = pytest.mark.netns

FULL = DnsPlan((ip_address("192.0.2.53"), ip_address("2001:db8::53")), (".",), ("corp.example",))
SPLIT = DnsPlan((ip_address("192.0.2.53"),), ("corp.example", "lab.example"), ("corp.example",))
INTERN = "/var/lib/NetworkManager/NetworkManager-intern.conf"
STUB = "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"

MAIN = "dns=default\nrc-manager=file\n"

Unpacker = Callable[..., Path]


@pytest.fixture(scope="module")
def unpacked(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Unpacker:
    """Unpacks packages, once each, or skips the test with the reason."""
    known: dict[tuple[str, ...], Path | str] = {}

    def get(*packages: str) -> Path:
        if packages not in known:
            directory = tmp_path_factory.mktemp(packages[0])
            known[packages] = unpack(directory, *packages) or directory
        found = known[packages]
        if isinstance(found, str):
            pytest.skip(found)
        return found

    return get


class Host:
    """A machine with a tunnel's device, `qvpn0`, and a card, `eth0`; the tests' shorthand."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.sh = machine.sh
        for name in ("qvpn0", "eth0"):
            machine.sh(f"ip link add {name} type veth peer name {name}-peer;"
                       f"ip link set {name} up; ip link set {name}-peer up")  # fmt: skip
        machine.sh("ip addr add 192.0.2.1/24 dev qvpn0")
        self.index = int(machine.sh("cat /sys/class/net/qvpn0/ifindex"))
        self.journal: tuple[DnsRecord, ...] = ()

    def hold(self, records: tuple[DnsRecord, ...]) -> None:
        """A journal for a keeper."""
        self.journal = records

    def keeper(self) -> DnsKeeper:
        return DnsKeeper("qvpn0", self.index, self.hold)

    def detect(self) -> Detection:
        return self.machine.call(dns.detect)

    def apply(self, found: Detection, plan: DnsPlan) -> tuple[DnsRecord, ...]:
        """What undoes it comes back as another process would read it."""
        records = self.machine.call(dns.prepare, found, "qvpn0", self.index)
        self.machine.call(dns.apply, found, "qvpn0", self.index, plan)
        return msgspec.json.decode(msgspec.json.encode(records), type=tuple[DnsRecord, ...])

    def check(self, found: Detection, plan: DnsPlan) -> bool:
        return self.machine.call(dns.check, found, "qvpn0", self.index, plan)

    def restore(self, records: tuple[DnsRecord, ...]) -> None:
        for record in reversed(records):
            self.machine.call(dns.restore, record)

    def resolv_conf(self) -> str:
        return self.sh("cat /etc/resolv.conf 2>/dev/null || true")


@pytest.fixture
def host(request: pytest.FixtureRequest, unpacked: Unpacker, tmp_path: Path) -> Iterator[Host]:
    """A host with the packages of the test's class."""
    packages = unpacked(*request.cls.packages)
    with Namespace("dns") as network, Machine(network, tmp_path, packages) as machine:
        yield Host(machine)


def start_networkmanager(host: Host, main: str) -> subprocess.Popen[Any]:
    """With `main` in its configuration, and a connection for eth0 that brings name servers."""
    profile = (
        "[connection]\nid=eth0\ntype=ethernet\ninterface-name=eth0\n[ipv4]\nmethod=manual\n"
        "address1=198.51.100.2/24\ndns=198.51.100.53;198.51.100.54;\ndns-search=lan;\n"
        "[ipv6]\nmethod=disabled\n"
    )
    main = f"[main]\nplugins=keyfile\nauth-polkit=false\n{main}"
    host.sh(
        "cd /etc/NetworkManager; mkdir -p system-connections;"
        f"printf %s '{main}' > NetworkManager.conf;"
        f"(umask 077; printf %s '{profile}' > system-connections/eth0.nmconnection)"
    )
    return host.machine.start_networkmanager()


class TestSystemdResolved:
    """systemd-resolved in charge: its stub is what programs ask."""

    packages = ("systemd-resolved",)

    @pytest.fixture
    def service(self, host: Host) -> subprocess.Popen[Any]:
        host.machine.start_bus()
        service = host.machine.start_resolved()
        host.sh(STUB)
        host.sh("resolvectl dns eth0 198.51.100.53; resolvectl domain eth0 lan")
        return service

    def state(self, host: Host) -> str:
        return host.sh(
            "resolvectl status --no-pager; readlink /etc/resolv.conf; ls -l /etc/resolv.conf;"
            "cat /run/systemd/resolve/*.conf; cd /run/systemd/resolve; head netif/* 2>/dev/null"
        )

    def test_all_names_are_for_the_tunnel(self, host: Host, service: subprocess.Popen[Any]) -> None:
        before = self.state(host)
        found = host.detect()
        assert found == Detection("systemd-resolved", "/etc/resolv.conf leads to systemd-resolved")
        records = host.apply(found, FULL)
        status = host.sh("resolvectl status --no-pager qvpn0")
        for words in ("DNS Servers: 192.0.2.53 2001:db8::53", "~.", "corp.example",
                      "+DefaultRoute", "-LLMNR", "-mDNS"):  # fmt: skip
            assert words in status
        assert host.check(found, FULL)
        assert not host.check(found, SPLIT)
        host.restore(records)
        assert self.state(host) == before
        host.restore(records)

    def test_some_names_are_for_the_tunnel_and_the_plan_may_change(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        before = self.state(host)
        found = host.detect()
        for plan in (SPLIT, FULL, SPLIT):
            records = host.apply(found, plan)
            assert host.check(found, plan)
        status = host.sh("resolvectl status --no-pager qvpn0")
        assert "~lab.example corp.example" in status
        assert "-DefaultRoute" in status
        host.restore(records)
        assert self.state(host) == before

    def test_nothing_is_left_when_the_device_goes_and_the_records_are_run_in_vain(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        records = host.apply(host.detect(), FULL)
        host.sh("ip link del qvpn0")
        listed = "cat /run/systemd/resolve/resolv.conf"
        until(lambda: "192.0.2.53" not in host.sh(listed), "resolved has heard of it")
        host.restore(records)
        # Another device may have the index by now.
        host.sh(
            f"ip link add vpn7 index {host.index} type veth peer name vpn8;"
            "ip link set vpn7 up; ip link set vpn8 up; resolvectl dns vpn7 203.0.113.5"
        )
        host.restore(records)
        assert "203.0.113.5" in host.sh("resolvectl dns vpn7")

    def test_it_may_restart_and_stop_and_come_back(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        keeper = host.keeper()
        host.machine.call(keeper.set, SPLIT)
        host.machine.stop(service)
        report = host.machine.call(keeper.look, 1.0)
        assert (report.backend, keeper.pending) == ("systemd-resolved", True)
        assert "does not run" in (report.error or "")
        service = host.machine.start_resolved()
        report = host.machine.call(keeper.look, 2.0)
        assert (report.error, keeper.pending) == (None, False)
        # Also when it has forgotten everything meanwhile.
        host.machine.stop(service)
        host.sh("rm -rf /run/systemd/resolve/*")
        host.machine.start_resolved()
        assert host.machine.call(keeper.look, 3.0).error is None
        assert host.check(host.detect(), SPLIT)

    def test_who_resets_the_link_is_put_right_until_it_is_a_fight(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        keeper = host.keeper()
        host.machine.call(keeper.set, FULL)
        for second in range(MAX_REPAIRS):
            host.sh("resolvectl revert qvpn0")
            assert host.machine.call(keeper.look, float(second)).error is None
            assert "192.0.2.53" in host.sh("resolvectl dns qvpn0")
        host.sh("resolvectl dns qvpn0 203.0.113.5")
        assert "another program" in (host.machine.call(keeper.look, 9.0).error or "")
        assert "203.0.113.5" in host.sh("resolvectl dns qvpn0")

    def test_the_user_may_take_the_file_away_from_it_meanwhile(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        keeper = host.keeper()
        host.machine.call(keeper.set, FULL)
        host.sh("rm /etc/resolv.conf; echo nameserver 198.51.100.9 > /etc/resolv.conf")
        assert host.machine.call(keeper.look, 1.0).backend == "file"
        assert "192.0.2.53" in host.resolv_conf()
        assert [type(record).__name__ for record in host.journal] == [
            "RevertLink",
            "RestoreResolvConf",
        ]
        assert host.machine.call(keeper.remove) == ()
        assert host.resolv_conf() == "nameserver 198.51.100.9\n"
        assert "192.0.2.53" not in host.sh("resolvectl dns qvpn0")

    def test_one_that_hangs_costs_a_limited_time(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        found = host.detect()
        pid = int(host.sh("pidof systemd-resolved"))
        service.send_signal(signal.SIGSTOP)
        assert pid
        try:
            begin = time.monotonic()
            with pytest.raises(DnsSetupFailed, match="does not answer in time"):
                host.apply(found, FULL)
            assert time.monotonic() - begin < 2 * BUDGET + 5
        finally:
            service.send_signal(signal.SIGCONT)

    def test_a_file_that_leads_to_it_while_it_does_not_run_is_an_error(self, host: Host) -> None:
        host.sh(STUB)
        with pytest.raises(DnsSetupFailed, match="no system bus"):
            host.detect()
        host.machine.start_bus()
        with pytest.raises(DnsSetupFailed, match="does not run") as caught:
            host.detect()
        assert "systemctl start" in caught.value.hint
        assert host.sh("readlink /etc/resolv.conf") == "../run/systemd/resolve/stub-resolv.conf\n"

    def test_one_that_serves_another_network_is_not_told_about_this_one(self, host: Host) -> None:
        host.machine.start_bus()
        host.sh(STUB)
        argv = ("unshare", "--net", "/usr/lib/systemd/systemd-resolved")
        host.machine._start("org.freedesktop.resolve1", *argv)
        with pytest.raises(DnsSetupFailed, match="another network namespace"):
            host.detect()

    def test_a_list_of_its_servers_is_replaced_unless_the_c_library_asks_it(
        self, host: Host, service: subprocess.Popen[Any]
    ) -> None:
        host.sh("ln -sf /run/systemd/resolve/resolv.conf /etc/resolv.conf")
        before = host.sh("ls -li /etc/resolv.conf")
        found = host.detect()
        assert found.backend == "file"
        records = host.apply(found, FULL)
        assert "192.0.2.53" not in host.sh("cat /run/systemd/resolve/resolv.conf")
        host.restore(records)
        assert host.sh("ls -li /etc/resolv.conf") == before
        host.sh("echo 'hosts: files resolve [!UNAVAIL=return] dns' > /etc/nsswitch.conf")
        assert host.detect().backend == "systemd-resolved"


class TestNetworkManager:
    """NetworkManager in charge of the file itself."""

    packages = (
        "network-manager", "libnm0", "libndp0", "libteamdctl0", "libjansson4", "libmm-glib0",
        "libbluetooth3", "libcurl3-gnutls", "libnewt0.52",
    )  # fmt: skip

    def start(self, host: Host, main: str = MAIN) -> subprocess.Popen[Any]:
        """Returns when the connection's name servers are in the file."""
        host.machine.start_bus()
        service = start_networkmanager(host, main)
        if "none" not in main:
            until(lambda: "198.51.100.54" in host.resolv_conf(), "the connection's name servers")
        return service

    @pytest.mark.parametrize("manager", ["file", "symlink"])
    def test_its_global_name_servers_are_ours_for_a_while(self, host: Host, manager: str) -> None:
        if manager == "symlink":
            host.sh("ln -sf /run/NetworkManager/resolv.conf /etc/resolv.conf")
        self.start(host, f"dns=default\nrc-manager={manager}\n")
        before = host.resolv_conf(), host.sh("readlink /etc/resolv.conf || true")
        stored = host.sh(f"cat {INTERN} || true")
        found = host.detect()
        assert found.backend == "NetworkManager"
        records = host.apply(found, FULL)
        text = host.resolv_conf()
        assert "search corp.example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n" in text
        assert "198.51.100" not in text
        assert host.check(found, FULL)
        host.restore(records)
        until(lambda: host.resolv_conf() == before[0], "the file as before")
        assert host.sh("readlink /etc/resolv.conf || true") == before[1]
        assert host.sh(f"cat {INTERN}") == stored
        host.restore(records)
        assert host.resolv_conf() == before[0]

    def test_it_may_restart_and_is_put_back_when_it_does_not_run(self, host: Host) -> None:
        service = self.start(host)
        before = host.resolv_conf()
        keeper = host.keeper()
        host.machine.call(keeper.set, FULL)
        host.machine.stop(service)
        service = host.machine.start_networkmanager()
        until(lambda: host.machine.call(keeper.look, 1.0).error is None, "settled again")
        assert "192.0.2.53" in host.resolv_conf()
        host.machine.stop(service)
        assert host.machine.call(keeper.remove) == ()
        assert "qvpn" not in host.sh(f"cat {INTERN}")
        host.machine.start_networkmanager()
        until(lambda: host.resolv_conf() == before, "the file as before")

    def test_what_outlives_the_records_is_found_running_or_not(self, host: Host) -> None:
        service = self.start(host)
        before = host.resolv_conf()
        host.apply(host.detect(), FULL)
        leftovers = host.machine.call(dns.leftovers)
        assert leftovers == (RestoreGlobalDns(GlobalDns()),)
        host.machine.stop(service, signal.SIGKILL)  # as at boot, before it starts
        assert host.machine.call(dns.leftovers) == leftovers
        host.restore(leftovers)
        assert host.machine.call(dns.leftovers) == ()
        assert host.sh(f"stat -c %a {INTERN}") in ("600\n", "644\n")
        host.machine.start_networkmanager()
        until(lambda: host.resolv_conf() == before, "the file as before")

    def test_what_another_program_has_set_comes_back(self, host: Host) -> None:
        self.start(host)
        found = host.detect()
        theirs = GlobalDns(("theirs.example",), (), (GlobalDomain("*", ("203.0.113.5",)),))
        host.apply(found, FULL)
        host.restore((RestoreGlobalDns(theirs),))
        until(lambda: "203.0.113.5" in host.resolv_conf(), "theirs")
        records = host.apply(found, FULL)
        assert records == (RestoreGlobalDns(theirs),)
        # While ours is in force, only the first record knows what was before.
        assert host.machine.call(dns.prepare, found, "qvpn0", host.index, records) == records
        host.restore(records)
        until(lambda: "203.0.113.5" in host.resolv_conf(), "theirs again")
        host.restore((RestoreGlobalDns(GlobalDns()),))  # theirs is not ours to remove
        assert "203.0.113.5" in host.resolv_conf()

    def test_global_name_servers_of_the_administrator_are_not_overruled(self, host: Host) -> None:
        more = "[global-dns-domain-*]\nservers=198.51.100.54\n"
        self.start(host, MAIN + more)
        before = host.resolv_conf()
        with pytest.raises(DnsSetupFailed, match="NetworkManager did not change"):
            host.apply(host.detect(), FULL)
        assert host.resolv_conf() == before

    def test_told_to_leave_the_file_alone_it_is_not_asked(self, host: Host) -> None:
        host.sh("echo '# Generated by NetworkManager' > /etc/resolv.conf")
        self.start(host, "dns=none\n")
        said = Detection("file", "NetworkManager is told to leave /etc/resolv.conf alone")
        # It has its name on the bus before it says how it works.
        until(lambda: host.detect() == said, "it is said to leave the file alone")


class TestDesktop:
    """What most desktops have: NetworkManager brings name servers, systemd-resolved uses them."""

    packages = (*TestSystemdResolved.packages, *TestNetworkManager.packages)

    def test_networkmanager_and_the_tunnel_share_systemd_resolved(self, host: Host) -> None:
        host.sh("ip link del qvpn0; ip tuntap add qvpn0 mode tun;" + STUB)
        host.machine.start_bus()
        host.machine.start_resolved()
        start_networkmanager(host, "dns=systemd-resolved\n")

        def given() -> bool:
            return "198.51.100.54" in host.sh("resolvectl dns eth0")

        until(given, "the connection's name servers")
        before = host.sh("resolvectl dns eth0; resolvectl domain eth0; cat /etc/resolv.conf")
        host.sh("ip addr add 192.0.2.1/32 dev qvpn0; ip link set qvpn0 up")
        host.index = int(host.sh("cat /sys/class/net/qvpn0/ifindex"))
        keeper = host.keeper()
        assert host.machine.call(keeper.set, SPLIT).backend == "systemd-resolved"
        # The network goes and comes back, and NetworkManager tells systemd-resolved.
        host.sh("ip link set eth0-peer down")
        until(lambda: not given(), "no network")
        host.sh("ip link set eth0-peer up")
        until(given, "a network again")
        assert host.check(host.detect(), SPLIT)
        assert host.machine.call(keeper.look, 1.0).error is None
        assert keeper.repairs == 0
        assert host.machine.call(keeper.remove) == ()
        after = host.sh("resolvectl dns eth0; resolvectl domain eth0; cat /etc/resolv.conf")
        assert after == before


class _Resolvconf:
    """What both kinds have in common."""

    packages: tuple[str, ...]
    words: str

    def prepare(self, host: Host) -> None:
        raise NotImplementedError

    def test_our_entry_comes_first_and_goes_without_trace(self, host: Host) -> None:
        self.prepare(host)
        host.sh("printf 'nameserver 198.51.100.53\nsearch lan\n' | resolvconf -a eth0.dhclient")
        before = host.resolv_conf()
        assert "198.51.100.53" in before
        found = host.detect()
        assert found.backend == "resolvconf"
        assert self.words in found.reason
        records = host.apply(found, FULL)
        servers = [x for x in host.resolv_conf().splitlines() if x.startswith("nameserver")]
        assert servers[:2] == ["nameserver 192.0.2.53", "nameserver 2001:db8::53"]
        assert host.check(found, FULL)
        # A lease that is renewed meanwhile changes nothing for us, and is there afterwards.
        host.sh("printf 'nameserver 198.51.100.99\nsearch lan\n' | resolvconf -a eth0.dhclient")
        assert host.check(found, FULL)
        host.sh("printf 'nameserver 198.51.100.53\nsearch lan\n' | resolvconf -a eth0.dhclient")
        host.restore(records)
        assert host.resolv_conf() == before
        host.restore(records)
        assert host.resolv_conf() == before

    def test_who_removes_our_entry_is_put_right(self, host: Host) -> None:
        self.prepare(host)
        host.sh("echo nameserver 198.51.100.53 | resolvconf -a eth0.dhclient")
        keeper = host.keeper()
        host.machine.call(keeper.set, FULL)
        host.sh("resolvconf -d tun.qvpn0")
        assert host.machine.call(keeper.look, 1.0).error is None
        assert "192.0.2.53" in host.resolv_conf()
        assert host.machine.call(keeper.remove) == ()
        assert "192.0.2.53" not in host.resolv_conf()


class TestDebianResolvconf(_Resolvconf):
    """The package resolvconf."""

    packages = ("resolvconf",)
    words = "Debian's resolvconf"

    def prepare(self, host: Host) -> None:
        host.sh("mkdir -p /run/resolvconf/interface; resolvconf --enable-updates;"
                "ln -sf ../run/resolvconf/resolv.conf /etc/resolv.conf; resolvconf -u")  # fmt: skip

    def test_one_that_is_switched_off_is_an_error_and_keeps_no_entry(self, host: Host) -> None:
        self.prepare(host)
        host.sh("echo nameserver 198.51.100.53 | resolvconf -a eth0.dhclient")
        found = host.detect()
        host.sh("resolvconf --disable-updates")
        before = host.resolv_conf()
        with pytest.raises(DnsSetupFailed, match="does not put"):
            host.apply(found, FULL)
        assert host.resolv_conf() == before
        assert "qvpn0" not in host.sh("resolvconf -i")


class TestOpenresolv(_Resolvconf):
    """The package openresolv, which can also leave other servers out."""

    packages = ("openresolv",)
    words = "openresolv"

    def prepare(self, host: Host) -> None:
        host.sh("rm -f /etc/resolv.conf; echo nameserver 198.51.100.1 | resolvconf -a lo")

    def test_only_the_tunnels_servers_are_asked(self, host: Host) -> None:
        self.prepare(host)
        host.sh("echo nameserver 198.51.100.53 | resolvconf -a eth0.dhclient")
        host.apply(host.detect(), FULL)
        assert "198.51.100" not in host.resolv_conf()
