"""/etc/resolv.conf changed for a tunnel and put back: the same file, whatever interferes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import textwrap
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from qvpn_core.errors import DnsSetupFailed, NetworkSetupFailed
from qvpn_core.net import dns
from qvpn_core.net.dns import Detection, DnsPlan, DnsRecord
from qvpn_core.net.dns.keeper import MAX_REPAIRS, PERIOD, DnsKeeper
from qvpn_core.net.dns.resolv_conf import PATH, SAVED
from tests.world.machine import Machine
from tests.world.namespaces import Namespace

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
FILE = Detection("file", "the test says so")
LINK = ("qvpn0", 7)
PLAN = DnsPlan((ip_address("192.0.2.53"),), (".",), ("corp.example",))
OTHER = DnsPlan((ip_address("192.0.2.54"), ip_address("2001:db8::53")))
BEFORE = b"# the router's\nnameserver 192.168.1.1\nsearch lan\noptions edns0 trust-ad timeout:1\n"


@pytest.fixture
def machine(namespaces_work: None, tmp_path: Path) -> Iterator[Machine]:
    """A machine with a resolv.conf of unusual owner, mode and age."""
    with Namespace("dns") as network, Machine(network, tmp_path) as machine:
        machine.call(_write_before)
        yield machine


def _write_before() -> None:
    PATH.write_bytes(BEFORE)
    PATH.chmod(0o640)
    os.chown(PATH, 12, 34)
    os.utime(PATH, ns=(1_600_000_000_000_000_001, 1_600_000_000_123_456_789))


def look(machine: Machine) -> dict[str, object]:
    """Everything of /etc that has to do with resolv.conf."""

    def inside() -> dict[str, object]:
        found: dict[str, object] = {}
        for path in sorted(PATH.parent.glob("*resolv.conf*")):
            status = os.lstat(path)
            link = stat.S_ISLNK(status.st_mode)
            content = os.readlink(path) if link else path.read_bytes()
            found[path.name] = (content, status.st_mode, status.st_uid, status.st_gid,
                                status.st_mtime_ns, status.st_ino)  # fmt: skip
        return found

    return machine.call(inside)


def apply(machine: Machine, plan: DnsPlan = PLAN, held: tuple[DnsRecord, ...] = ()) -> tuple[
    DnsRecord, ...
]:  # fmt: skip
    """As the helper does: what undoes it first, kept as bytes; then the change."""
    records = machine.call(dns.prepare, FILE, *LINK, held)
    stored = msgspec.json.encode(records)
    machine.call(dns.apply, FILE, *LINK, plan)
    return msgspec.json.decode(stored, type=tuple[DnsRecord, ...])


def restore(machine: Machine, records: tuple[DnsRecord, ...]) -> None:
    for record in reversed(records):
        machine.call(dns.restore, record)


def mount_over(machine: Machine) -> None:
    """As containers and ip netns exec do it."""
    machine.sh("touch /run/theirs; mount --bind /run/theirs /etc/resolv.conf")
    machine.call(_write_before)


# --- there and back ---------------------------------------------------------------------------


def test_a_file_is_replaced_and_put_back_as_the_same_file(machine: Machine) -> None:
    before = look(machine)
    records = apply(machine)
    text = machine.call(PATH.read_text)
    assert "nameserver 192.0.2.53\nsearch corp.example\noptions edns0 timeout:1\n" in text
    assert "192.168.1.1" not in text
    assert machine.call(os.stat, PATH).st_mode & 0o777 == 0o644
    assert machine.call(dns.check, FILE, *LINK, PLAN)
    assert not machine.call(dns.check, FILE, *LINK, OTHER)
    restore(machine, records)
    assert look(machine) == before
    restore(machine, records)
    assert look(machine) == before


def test_programs_ask_the_servers_of_the_plan(machine: Machine) -> None:
    server = machine.network.socket(socket.AF_INET, socket.SOCK_DGRAM)
    machine.network.ip("addr add 192.0.2.53/32 dev lo")
    with server:
        server.bind(("192.0.2.53", 53))
        server.settimeout(20)
        apply(machine)
        asking = machine.popen("getent", "ahostsv4", "intranet")
        assert b"\x08intranet\x04corp\x07example\0" in server.recv(512)
        machine.stop(asking)


def test_a_link_is_put_back_as_a_link_also_one_to_nowhere(machine: Machine) -> None:
    machine.sh("rm /etc/resolv.conf; ln -s ../run/nowhere /etc/resolv.conf")
    before = look(machine)
    records = apply(machine)
    assert not machine.call(PATH.is_symlink)
    assert not machine.call(Path("/run/nowhere").exists)
    restore(machine, records)
    assert look(machine) == before


def test_where_there_was_no_file_there_is_none_again(machine: Machine) -> None:
    machine.call(PATH.unlink)
    records = apply(machine)
    assert machine.call(dns.check, FILE, *LINK, PLAN)
    restore(machine, records)
    assert look(machine) == {}


def test_a_mounted_file_is_rewritten_in_place_and_back(machine: Machine) -> None:
    mount_over(machine)
    before = look(machine)
    records = apply(machine)
    during = look(machine)
    assert b"nameserver 192.0.2.53" in machine.call(PATH.read_bytes)
    assert list(during) == list(before)  # nothing is kept beside it: others may share /etc
    records = apply(machine, OTHER, records)
    assert machine.call(dns.check, FILE, *LINK, OTHER)
    restore(machine, records)
    assert look(machine) == before
    restore(machine, records)
    assert look(machine) == before


def test_a_file_mounted_over_the_end_of_a_link_is_the_one_rewritten(machine: Machine) -> None:
    machine.sh("rm /etc/resolv.conf; mkdir -p /run/systemd/resolve; cd /run/systemd/resolve;"
               "touch stub-resolv.conf theirs; echo nameserver 192.0.2.9 >theirs;"
               "ln -s /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf;"
               "mount --bind theirs stub-resolv.conf")  # fmt: skip
    before = look(machine)
    assert machine.call(dns.detect).backend == "file"
    records = apply(machine)
    assert look(machine) == before  # the link itself belongs to the machine
    assert machine.call(dns.check, FILE, *LINK, PLAN)
    restore(machine, records)
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.9\n"


def test_the_resolv_conf_of_ip_netns_exec_is_changed_and_no_other(
    namespaces_work: None, tmp_path: Path
) -> None:
    script = textwrap.dedent("""
        from ipaddress import ip_address
        from qvpn_core.net import dns
        found = dns.detect()
        records = dns.prepare(found, "qvpn0", 7)
        dns.apply(found, "qvpn0", 7, dns.DnsPlan((ip_address("192.0.2.53"),)))
        print(open("/etc/resolv.conf").read())
        for record in records:
            dns.restore(record)
    """)
    host = PATH.read_bytes() if PATH.exists() else None
    with Namespace("dns") as network:
        network.set_resolvers(["192.0.2.1"])
        before = network.resolv_conf.read_bytes()
        shown = network.run([sys.executable, "-c", script], cwd=ROOT).stdout
        assert "nameserver 192.0.2.53\n" in shown
        assert network.resolv_conf.read_bytes() == before
    assert (PATH.read_bytes() if PATH.exists() else None) == host
    assert not os.path.lexists(SAVED)


def test_a_network_namespace_that_shares_the_machines_file_is_refused(
    namespaces_work: None,
) -> None:
    with Namespace("dns") as network:
        with pytest.raises(DnsSetupFailed, match="shares /etc"):
            network.call(dns.detect)
        assert network.call(dns.leftovers) == ()


# --- others write too -------------------------------------------------------------------------


def test_what_somebody_else_wrote_since_stays(machine: Machine) -> None:
    records = apply(machine)
    machine.sh("echo nameserver 192.0.2.99 > /etc/x; mv /etc/x /etc/resolv.conf")
    assert not machine.call(dns.check, FILE, *LINK, PLAN)
    restore(machine, records)
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.99\n"
    assert not machine.call(os.path.lexists, SAVED)


def test_after_a_repair_the_last_other_writer_is_right(machine: Machine) -> None:
    records = apply(machine)
    machine.sh("echo nameserver 192.0.2.99 > /etc/x; mv /etc/x /etc/resolv.conf")
    records = apply(machine, PLAN, records)
    assert machine.call(dns.check, FILE, *LINK, PLAN)
    restore(machine, records)
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.99\n"


def test_the_same_is_so_for_a_mounted_file(machine: Machine) -> None:
    mount_over(machine)
    records = apply(machine)
    machine.sh("echo nameserver 192.0.2.99 > /etc/resolv.conf")
    restore(machine, records)
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.99\n"
    records = apply(machine)
    machine.sh("echo nameserver 192.0.2.98 > /etc/resolv.conf")
    records = apply(machine, PLAN, records)
    restore(machine, records)
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.98\n"


def test_an_option_that_somebody_adds_is_not_fought_and_goes_with_our_file(
    machine: Machine,
) -> None:
    before = look(machine)
    records = apply(machine)
    machine.sh("echo options attempts:1 >> /etc/resolv.conf")
    assert machine.call(dns.check, FILE, *LINK, PLAN)
    restore(machine, records)
    assert look(machine) == before


def test_a_file_that_somebody_deletes_comes_back(machine: Machine) -> None:
    before = look(machine)
    records = apply(machine)
    machine.call(PATH.unlink)
    assert not machine.call(dns.check, FILE, *LINK, PLAN)
    restore(machine, records)
    assert look(machine) == before


# --- where it cannot be done ------------------------------------------------------------------


def refused(machine: Machine, words: str) -> None:
    """It cannot be done, the error says why and what to do, and nothing has changed."""
    before = look(machine)
    with pytest.raises(DnsSetupFailed, match=words) as caught:
        apply(machine)
    assert caught.value.hint
    assert look(machine) == before


def test_a_protected_file_is_left_alone(machine: Machine) -> None:
    if machine.run("chattr", "+i", "/etc/resolv.conf", check=False).returncode:
        pytest.skip("this kernel's tmpfs has no immutable files")
    refused(machine, "Operation not permitted.*chattr")


@pytest.mark.parametrize("mounted", [False, True])
def test_a_read_only_file_system_is_left_alone(machine: Machine, mounted: bool) -> None:
    if mounted:
        mount_over(machine)
        machine.sh("mount -o remount,bind,ro /etc/resolv.conf")
    else:
        machine.sh("mount -o remount,bind,ro /etc")
    refused(machine, "read-only")


def test_a_full_disk_changes_nothing(machine: Machine) -> None:
    machine.sh("mkdir /run/etc; mount -t tmpfs -o size=64k full /run/etc; cp -a /etc/resolv.conf"
               " /etc/nsswitch.conf /run/etc; mount --bind /run/etc /etc;"
               "cat /dev/zero > /etc/filler 2>/dev/null || true")  # fmt: skip
    refused(machine, "disk is full")


def test_a_full_disk_under_a_mounted_file_changes_nothing(machine: Machine) -> None:
    machine.sh("mkdir /run/disk; mount -t tmpfs -o size=16k full /run/disk; touch /run/disk/theirs;"
               "mount --bind /run/disk/theirs /etc/resolv.conf;"
               "cat /dev/zero > /run/disk/filler 2>/dev/null || true")  # fmt: skip
    refused(machine, "disk is full")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("mkdir /etc/resolv.conf", "no file"),
        ("mkfifo /etc/resolv.conf", "no file"),
        ("head -c 40000 /dev/zero > /etc/resolv.conf", "more than"),
    ],
)
def test_what_is_no_resolv_conf_is_left_alone(machine: Machine, make: str, words: str) -> None:
    machine.call(PATH.unlink)
    machine.sh(make)
    with pytest.raises(DnsSetupFailed, match=words):
        machine.call(dns.detect)
    with pytest.raises(DnsSetupFailed, match=words):
        apply(machine)


def test_a_link_in_the_place_of_our_new_file_is_not_followed(machine: Machine) -> None:
    machine.sh("ln -s /etc/passwd /etc/.resolv.conf.qvpn-new; cp /etc/passwd /run/passwd")
    records = apply(machine)
    machine.sh("cmp /etc/passwd /run/passwd; test ! -e /etc/.resolv.conf.qvpn-new")
    restore(machine, records)


# --- killed at any moment ---------------------------------------------------------------------

#: Dies by SIGKILL just before its N-th change of a file; prints nothing when it gets to the end.
_DYING = """
import os, signal, sys
from ipaddress import ip_address
import msgspec
from qvpn_core.net import dns

left = int(sys.argv[2])
def count(event, arguments):
    global left
    writing = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event in ("os.rename", "os.link", "os.remove", "os.truncate", "os.utime"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

plan = dns.DnsPlan((ip_address("192.0.2.53"),), (".",), ("corp.example",))
found = dns.Detection("file", "")
real = os.pwrite
os.pwrite = lambda fd, data, at: (count("os.truncate", ()), real(fd, data, at))[1]
if sys.argv[1] == "apply":
    sys.addaudithook(count)
    dns.apply(found, "qvpn0", 7, plan)
else:
    records = msgspec.json.decode(sys.argv[1], type=tuple[dns.DnsRecord, ...])
    sys.addaudithook(count)
    for record in records:
        dns.restore(record)
"""


def dies(machine: Machine, what: str, step: int) -> bool:
    done = machine.run(sys.executable, "-c", _DYING, what, str(step), check=False, cwd=ROOT,
                       env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done.stderr
    return done.returncode != 0


@pytest.mark.parametrize("mounted", [False, True])
def test_a_kill_at_any_moment_is_undone_by_another_process(machine: Machine, mounted: bool) -> None:
    if mounted:
        mount_over(machine)
    before = look(machine)
    records = machine.call(dns.prepare, FILE, *LINK)
    stored = json.dumps(msgspec.to_builtins(records))
    deaths = 0
    while dies(machine, "apply", deaths):
        deaths += 1
        restore(machine, records)
        assert look(machine) == before, f"killed before change {deaths} of applying"
    assert deaths >= 2
    steps = 0
    while dies(machine, stored, steps):
        steps += 1
        restore(machine, records)
        assert look(machine) == before, f"killed before change {steps} of restoring"
        machine.call(dns.apply, FILE, *LINK, PLAN)
    assert steps >= 2
    assert look(machine) == before


def test_what_outlives_the_records_is_found_and_put_back(machine: Machine) -> None:
    assert machine.call(dns.leftovers) == ()
    before = look(machine)
    apply(machine)
    restore(machine, machine.call(dns.leftovers))
    assert look(machine) == before
    assert machine.call(dns.leftovers) == ()


# --- a session --------------------------------------------------------------------------------


class Journal:
    """What a helper would have written down."""

    def __init__(self) -> None:
        self.records: tuple[DnsRecord, ...] = ()

    def hold(self, records: tuple[DnsRecord, ...]) -> None:
        self.records = records


def meddle(machine: Machine) -> None:
    machine.sh("echo nameserver 192.0.2.99 > /etc/x; mv /etc/x /etc/resolv.conf")


def test_a_session_changes_plans_and_leaves_no_trace(machine: Machine) -> None:
    before = look(machine)
    journal = Journal()
    keeper = DnsKeeper(*LINK, journal.hold)
    assert keeper.watch_paths == ()
    for plan in (PLAN, OTHER, PLAN):
        report = machine.call(keeper.set, plan)
        assert (report.backend, report.error) == ("file", None)
        assert machine.call(dns.check, FILE, *LINK, plan)
        assert journal.records
    assert PATH in keeper.watch_paths
    assert machine.call(keeper.set, None).backend == "none"
    assert look(machine) == before
    machine.call(keeper.set, PLAN)
    assert machine.call(keeper.remove) == ()
    assert look(machine) == before
    assert journal.records == ()


def test_what_others_change_is_put_back_until_it_is_a_fight(machine: Machine) -> None:
    keeper = DnsKeeper(*LINK, Journal().hold)
    machine.call(keeper.set, PLAN)
    for second in range(MAX_REPAIRS):
        meddle(machine)
        assert machine.call(keeper.look, float(second)).error is None
        assert machine.call(dns.check, FILE, *LINK, PLAN)
    assert keeper.repairs == MAX_REPAIRS
    meddle(machine)
    report = machine.call(keeper.look, float(MAX_REPAIRS))
    assert "another program keeps changing" in (report.error or "")
    machine.call(keeper.look, 10 * PERIOD)
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.99\n"
    assert machine.call(keeper.remove) == ()
    assert machine.call(PATH.read_text) == "nameserver 192.0.2.99\n"


def test_a_change_now_and_then_is_no_fight(machine: Machine) -> None:
    keeper = DnsKeeper(*LINK, Journal().hold)
    machine.call(keeper.set, PLAN)
    for turn in range(2 * MAX_REPAIRS):
        meddle(machine)
        assert machine.call(keeper.look, turn * PERIOD / (MAX_REPAIRS - 1)).error is None


def test_names_of_some_domains_are_not_asked_of_all_or_of_nobody(machine: Machine) -> None:
    before = look(machine)
    keeper = DnsKeeper(*LINK, Journal().hold)
    split = DnsPlan((ip_address("192.0.2.53"),), ("corp.example",))
    report = machine.call(keeper.set, split)
    assert report.backend == "none"
    assert "corp.example are not resolved" in (report.error or "")
    assert look(machine) == before
    machine.call(keeper.set, PLAN)
    assert machine.call(keeper.set, split).backend == "none"
    assert look(machine) == before


def test_what_cannot_be_written_down_is_not_done(machine: Machine) -> None:
    before = look(machine)

    def hold(records: tuple[DnsRecord, ...]) -> None:
        raise NetworkSetupFailed("the journal cannot be written", "make room")

    keeper = DnsKeeper(*LINK, hold)
    report = machine.call(keeper.set, PLAN)
    assert "journal" in (report.error or "")
    assert look(machine) == before


def test_a_disk_that_was_full_is_tried_again(machine: Machine) -> None:
    keeper = DnsKeeper(*LINK, Journal().hold)
    machine.sh("mount -o remount,bind,ro /etc")
    report = machine.call(keeper.set, PLAN)
    assert "read-only" in (report.error or "")
    machine.sh("mount -o remount,bind,rw /etc")
    assert machine.call(keeper.look, 1.0).error is None
    assert machine.call(dns.check, FILE, *LINK, PLAN)
